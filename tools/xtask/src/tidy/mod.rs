//! Rules about the source tree that the compiler does not check: what keeps the tree the architecture.
//!
//! | module | rules about |
//! |---|---|
//! | [`documents`] | links, paths and headings in documents, and documents that nothing leads to |
//! | [`imports`] | (no rule: reads who imports whom) |
//! | [`licences`] | what may be linked with |
//! | [`modules`] | Rust files that nothing compiles |
//! | [`rooms`] | which room may import which, and circles |
//! | [`rust_version`] | the least version of the compiler |
//! | [`source`] | (no rule: a file of the tree) |
//! | [`uses`] | how imports are written |
//! | [`width`] | lines of code and prose |

mod documents;
mod imports;
mod licences;
mod modules;
mod rooms;
mod rust_version;
mod source;
mod uses;
mod width;

use crate::{
    project::Project,
    summary::{Outcome, Summary},
};
use serde_json::Value;
use source::Source;
use std::{fs, path::Path};

/// A rule: what is checked, and how: the faults that were found.
type Rule = (&'static str, fn(&Tree<'_>) -> Vec<String>);

const RULES: &[Rule] = &[
    ("dependency directions", |tree| directions(&tree.project.metadata, &tree.project.root)),
    ("licences of dependencies", |tree| match tree.project.dependencies() {
        Ok(metadata) => licences::not_allowed(&metadata),
        Err(why) => vec![why],
    }),
    ("rust-version", |tree| match tree.project.dependencies() {
        Ok(metadata) => rust_version::faults(&metadata, &tree.files),
        Err(why) => vec![why],
    }),
    ("packages keep the common lints", |tree| common_lints(&tree.files)),
    ("plugin loading in one place", |tree| plugin_loading(&tree.files)),
    ("unsafe code only in listed modules", |tree| unsafe_modules(&tree.files)),
    ("file lengths", |tree| file_lengths(&tree.files)),
    ("line widths", |tree| width::wide_lines(&tree.files)),
    ("no dead files", |tree| modules::dead(&tree.files, &tree.project.metadata, &tree.project.root)),
    ("rooms import what they may", |tree| tree.of_crates(rooms::imports)),
    ("no import circles", |tree| tree.of_crates(rooms::circles)),
    ("one style of imports", |tree| uses::scattered(&tree.files)),
    ("links in documents", |tree| documents::links(&tree.files)),
    ("paths in documents", |tree| documents::paths(&tree.files)),
    ("documents and examples can be found", |tree| documents::reachable(&tree.files)),
    ("nothing left to do", |tree| unfinished(&tree.files)),
    ("tests that skip are counted", |tree| quiet_skips(&tree.files)),
    ("tests say what they expect", |tree| silent_unwraps(&tree.files)),
    ("no paths out of the checkout", |tree| outside_paths(&tree.files, &tree.project.root)),
];

/// What the rules are about.
struct Tree<'p> {
    project: &'p Project,
    files: Vec<Source>,
}

impl Tree<'_> {
    /// Checks a rule about who imports whom.
    fn of_crates(&self, rule: fn(&[imports::Crate]) -> Vec<String>) -> Vec<String> {
        match imports::crates(&self.files, &self.project.metadata, &self.project.root) {
            Ok(crates) => rule(&crates),
            Err(faults) => faults,
        }
    }
}

/// The names of all rules, as tests.
pub(crate) fn names() -> Vec<String> {
    RULES.iter().map(|(name, _)| title(name)).collect()
}

fn title(name: &str) -> String {
    format!("tidy: {name}")
}

/// Checks all rules, each a test of its own.
pub(crate) fn check(project: &Project, summary: &mut Summary) {
    let mut files = Vec::new();
    collect(&project.root, &project.root, &project.target, &mut files);
    files.sort_by(|first, second| first.path.cmp(&second.path));
    let tree = Tree { project, files };
    for (name, rule) in RULES {
        let faults = rule(&tree);
        let outcome = if faults.is_empty() {
            Outcome::Passed
        } else {
            Outcome::Failed(faults.iter().map(|fault| format!("    {fault}")).collect::<Vec<_>>().join("\n"))
        };
        summary.add(&title(name), outcome);
    }
}

/// Reads the checkout, except Git's folder and Cargo's output. Files that are not text are left out.
fn collect(root: &Path, folder: &Path, target: &Path, files: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            // A package that is no member of the workspace has its own.
            let is_own_output = path.ends_with("target") && folder.join("Cargo.toml").exists();
            let is_output = path == target || is_own_output;
            if !is_output && ![".git", "__pycache__"].contains(&entry.file_name().to_string_lossy().as_ref()) {
                collect(root, &path, target, files);
            }
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(Source { path, text });
        }
    }
}

/// Folders of plugins, which know the interface and the guard of mappings alone; the latter are made to be refused.
const PLUGIN_FOLDERS: [&str; 2] = ["plugins", "core/tests/fixtures"];

/// What the tests of every package but plugins may depend on, beyond what the package itself may.
const TEST_PACKAGES: &[&str] =
    &["pollux-abi", "pollux-driver", "pollux-loadgen", "pollux-test-guest", "pollux-testing"];

/// What each package but plugins may depend on: plugins → abi, guard ← core ← vmm ← host ← cli.
const DIRECTIONS: &[(&str, &[&str])] = &[
    ("pollux-abi", &[]),
    ("pollux-guard", &[]),
    ("pollux-core", &["pollux-abi", "pollux-guard"]),
    ("pollux-vmm", &["pollux-core"]),
    ("pollux-driver", &["pollux-core"]),
    ("pollux-test-guest", &["pollux-core", "pollux-vmm"]),
    ("pollux-testing", &["pollux-abi", "pollux-core", "pollux-driver"]),
    ("pollux-loadgen", &["pollux-core", "pollux-driver"]),
    ("pollux-host", &["pollux-abi", "pollux-core", "pollux-vmm"]),
    ("pollux", &["pollux-abi", "pollux-core", "pollux-host", "pollux-loadgen", "pollux-vmm"]),
    ("pollux-fuzz", &["pollux-core", "pollux-driver", "pollux-testing", "pollux-vmm"]),
    (
        "pollux-benches",
        &[
            "pollux-abi",
            "pollux-core",
            "pollux-driver",
            "pollux-loadgen",
            "pollux-test-guest",
            "pollux-testing",
            "pollux-vmm",
        ],
    ),
    ("xtask", &[]),
];

fn directions(metadata: &Value, root: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in &packages {
        let (Some(name), Some(manifest)) = (package["name"].as_str(), package["manifest_path"].as_str()) else {
            continue;
        };
        let is_plugin = PLUGIN_FOLDERS.iter().any(|folder| Path::new(manifest).starts_with(root.join(folder)));
        let allowed: &[&str] = if is_plugin {
            &["pollux-abi", "pollux-guard"]
        } else if let Some((_, allowed)) = DIRECTIONS.iter().find(|(package, _)| *package == name) {
            allowed
        } else {
            faults.push(format!("{name}: a new package: say in tools/xtask/src/tidy/mod.rs what it may depend on"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let is_of_tests = dependency["kind"].as_str() == Some("dev");
            let dependency = dependency["name"].as_str().unwrap_or_default();
            let is_allowed =
                allowed.contains(&dependency) || is_of_tests && !is_plugin && TEST_PACKAGES.contains(&dependency);
            if names.contains(&dependency) && !is_allowed {
                faults.push(format!("{name} depends on {dependency}; it may depend on {allowed:?} alone"));
            }
        }
    }
    faults
}

fn common_lints(files: &[Source]) -> Vec<String> {
    let manifests = files.iter().filter(|file| file.path.ends_with("/Cargo.toml"));
    manifests
        .filter(|file| !file.path.starts_with(source::EXAMPLES))
        .filter(|file| !file.text.contains("[lints]\nworkspace = true"))
        .map(|file| format!("{}: write [lints] with workspace = true", file.path))
        .collect()
}

/// Only the plugin host names the crates that load plugins; the interface crate is written with one of them.
fn plugin_loading(files: &[Source]) -> Vec<String> {
    let loaders = ["libloading", "abi_stable"];
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.is_product()) {
        if ["abi/", "core/src/plugin/", "tools/xtask/"].iter().any(|folder| file.path.starts_with(folder)) {
            continue;
        }
        for (number, line) in file.code() {
            if let Some(loader) = loaders.iter().find(|loader| line.contains(*loader)) {
                faults.push(format!("{}:{number}: {loader} belongs in core/src/plugin", file.path));
            }
        }
    }
    faults
}

/// Each crate forbids unsafe code, or denies it and excepts modules where they are declared, which is the list, or
/// single functions.
fn unsafe_modules(files: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let is_root = file.path.ends_with("src/lib.rs") || file.path.ends_with("src/main.rs");
        let header = ["#![deny(unsafe_code)]", "#![forbid(unsafe_code)]"];
        if is_root && !header.iter().any(|line| file.text.contains(line)) {
            faults.push(format!("{}: write #![deny(unsafe_code)], or forbid", file.path));
        }
        let code: Vec<(usize, &str)> = file.code().collect();
        for (position, (number, line)) in code.iter().enumerate() {
            let is_attribute = line.trim_start().starts_with('#');
            let excepts = is_attribute && line.contains("allow(") && line.contains("unsafe_code");
            let mut following = code[position + 1..].iter().map(|(_, line)| line.trim_start());
            let item = following.find(|line| !line.starts_with("#[")).unwrap_or_default();
            let is_narrow = ["mod ", "fn "].iter().any(|word| {
                item.trim_start_matches("pub").trim_start_matches("(crate)").trim_start().starts_with(word)
            });
            if excepts && !is_narrow {
                faults.push(format!("{}:{number}: except a module or a function from the rule, not this", file.path));
            }
        }
    }
    faults
}

const LINES_WARN: usize = 500;
const LINES_MAX: usize = 700;

fn file_lengths(files: &[Source]) -> Vec<String> {
    let code = files.iter().filter(|file| [".rs", ".py", ".sh"].iter().any(|suffix| file.path.ends_with(suffix)));
    let mut faults = Vec::new();
    for (path, lines) in code.map(|file| (&file.path, file.text.lines().count())) {
        if lines > LINES_MAX {
            faults.push(format!("{path}: {lines} lines; {LINES_MAX} is the end"));
        } else if lines > LINES_WARN {
            println!("warning: {path}: {lines} lines, more than {LINES_WARN}");
        }
    }
    faults
}

fn unfinished(files: &[Source]) -> Vec<String> {
    // Written in two halves, so that this file does not name them.
    let marks = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X:"), concat!("#[", "ignore")];
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.path != "Cargo.lock") {
        for (number, line) in file.lines() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
                faults.push(format!("{}:{number}: {mark}", file.path));
            }
        }
    }
    faults
}

/// A test that cannot run says so by the word that the summary of all tests looks for (`cargo_test`). Benchmarks are no
/// tests.
fn quiet_skips(files: &[Source]) -> Vec<String> {
    // In two halves, as above.
    let mark = concat!("\"skip", "ped: ");
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs") && !file.path.starts_with("benches/")) {
        for (number, _) in file.code().filter(|(_, line)| line.contains(mark)) {
            faults.push(format!("{}:{number}: write SKIPPED, or it counts as passed", file.path));
        }
    }
    faults
}

/// Where a value must be there, the message of its absence says so.
fn silent_unwraps(files: &[Source]) -> Vec<String> {
    // In two halves, as above.
    let marks = [concat!(".unw", "rap()"), concat!(".unw", "rap_err()")];
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        for (number, line) in file.code() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
                faults.push(format!("{}:{number}: {mark}: write expect, with words", file.path));
            }
        }
    }
    faults
}

/// No file names this checkout's own place, or a relative path that leaves it.
fn outside_paths(files: &[Source], root: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    let place = root.to_string_lossy();
    for file in files {
        let depth = Path::new(&file.path).components().count() - 1;
        for (number, line) in file.lines() {
            // A checkout at the top, such as /src, would be found in words that have nothing to do with it.
            if root.components().count() > 2 && line.contains(place.as_ref()) {
                faults.push(format!("{}:{number}: names the checkout's own path", file.path));
            }
            if steps_up(line) > depth {
                faults.push(format!("{}:{number}: a relative path that leaves the checkout", file.path));
            }
        }
    }
    faults
}

/// The longest run of `../` in a line.
fn steps_up(line: &str) -> usize {
    let (mut longest, mut rest) = (0, line);
    while let Some(start) = rest.find("../") {
        rest = &rest[start..];
        let mut steps = 0;
        while let Some(after) = rest.strip_prefix("../") {
            steps += 1;
            rest = after;
        }
        longest = longest.max(steps);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::{source::tests::source, *};

    #[test]
    fn an_exception_stands_where_the_module_is_declared() {
        let good = "#![deny(unsafe_code)]\n#[allow(unsafe_code)] // why\npub mod memory;\nmod other;\n";
        assert_eq!(unsafe_modules(&[source("core/src/lib.rs", good)]), [""; 0]);
        let bad = "#![deny(unsafe_code)]\n#[allow(unsafe_code)]\nimpl Memory {\n";
        assert_eq!(unsafe_modules(&[source("core/src/lib.rs", bad)]).len(), 1);
        assert_eq!(unsafe_modules(&[source("core/src/lib.rs", "mod other;\n")]).len(), 1);
    }

    #[test]
    fn loaders_are_found_in_code_and_not_in_comments() {
        let text = "// libloading opens it\nuse libloading::Library;\n";
        let faults = plugin_loading(&[source("core/src/worker/mod.rs", text), source("core/src/plugin/load.rs", text)]);
        assert_eq!(faults, ["core/src/worker/mod.rs:2: libloading belongs in core/src/plugin"]);
    }

    #[test]
    fn a_skip_in_small_letters_is_found() {
        let text = ["SKIPPED", concat!("skip", "ped")].map(|word| format!("println!(\"{word}: no disk\");\n"));
        let files = [source("core/tests/a.rs", &text.concat()), source("benches/benches/b.rs", &text[1])];
        assert_eq!(quiet_skips(&files), ["core/tests/a.rs:2: write SKIPPED, or it counts as passed"]);
    }

    #[test]
    fn an_unwrap_without_words_is_found() {
        let text = ["let a = b.expect(\"b\");\n// c", "a.unwrap_or(0)", concat!("d.unw", "rap();")].join("\n");
        let expected = [concat!("a.rs:4: .unw", "rap(): write expect, with words")];
        assert_eq!(silent_unwraps(&[source("a.rs", &text)]), expected);
    }

    #[test]
    fn paths_out_of_the_checkout_are_found() {
        let files = [source("docs/a.md", "see ../README.md, not ../../notes.md"), source("b.md", "cd x/..")];
        let faults = outside_paths(&files, Path::new("/home/user/pollux"));
        assert_eq!(faults, ["docs/a.md:1: a relative path that leaves the checkout"]);
        let files = [source("a.sh", "cd /home/user/pollux/target")];
        assert_eq!(outside_paths(&files, Path::new("/home/user/pollux")).len(), 1);
    }

    #[test]
    fn a_package_may_not_look_up() {
        let metadata = serde_json::json!({"packages": [
            {"name": "pollux-abi", "manifest_path": "/p/abi/Cargo.toml", "dependencies": [{"name": "pollux-core"}]},
            {"name": "pollux-core", "manifest_path": "/p/core/Cargo.toml", "dependencies": [{"name": "pollux-abi"}]},
            {"name": "pollux-mem", "manifest_path": "/p/plugins/mem/Cargo.toml",
             "dependencies": [{"name": "pollux-core"}]},
        ]});
        let faults = directions(&metadata, Path::new("/p"));
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn what_is_for_tests_is_linked_by_tests_alone() {
        let package = |kind: &str| {
            let dependency = serde_json::json!({"name": "pollux-testing", "kind": kind});
            serde_json::json!({"packages": [
                {"name": "pollux-core", "manifest_path": "/p/core/Cargo.toml", "dependencies": [dependency]},
                {"name": "pollux-testing", "manifest_path": "/p/tools/testing/Cargo.toml", "dependencies": []},
            ]})
        };
        assert_eq!(directions(&package("dev"), Path::new("/p")), [""; 0]);
        assert_eq!(directions(&package("normal"), Path::new("/p")).len(), 1);
    }
}
