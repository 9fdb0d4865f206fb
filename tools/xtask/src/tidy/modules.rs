//! No Rust file is dead: each is the root of a target, or a module of another one.
use super::source::{self, Source};
use serde_json::Value;
use std::{collections::BTreeSet, path::Path};

/// Rust files that nothing compiles.
pub(super) fn dead(files: &[Source], metadata: &Value, root: &Path) -> Vec<String> {
    let rust: Vec<&Source> = files.iter().filter(|file| file.path.ends_with(".rs")).collect();
    let find = |path: &str| rust.iter().copied().find(|file| file.path == path);
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut pending: Vec<(&Source, bool)> =
        roots(&rust, metadata, root).iter().filter_map(|path| Some((find(path)?, true))).collect();
    while let Some((file, is_root)) = pending.pop() {
        if reached.insert(&file.path) {
            pending.extend(modules_of(file, is_root).iter().filter_map(|path| Some((find(path)?, false))));
        }
    }
    let dead = rust.iter().filter(|file| !reached.contains(file.path.as_str()));
    dead.map(|file| format!("{}: no module names it", file.path)).collect()
}

/// The roots of Cargo's targets, and files that other code names by their folder and name, to have them compiled.
pub(super) fn roots(rust: &[&Source], metadata: &Value, root: &Path) -> BTreeSet<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let sources = targets.filter_map(|target| target["src_path"].as_str());
    let mut roots: BTreeSet<String> = sources
        .filter_map(|source| Some(Path::new(source).strip_prefix(root).ok()?.to_string_lossy().into_owned()))
        .collect();
    // Cargo's metadata does not know of packages outside of the workspace.
    let examples = rust.iter().map(|file| &file.path);
    roots.extend(
        examples.filter(|path| path.starts_with(super::source::EXAMPLES) && path.ends_with("/src/lib.rs")).cloned(),
    );
    for file in rust {
        let mut parts = file.path.rsplit('/');
        if let (Some(name), Some(folder)) = (parts.next(), parts.next()) {
            let quoted = format!("\"{folder}/{name}\"");
            if rust.iter().any(|other| other.code().any(|(_, line)| line.contains(&quoted))) {
                roots.insert(file.path.clone());
            }
        }
    }
    roots
}

/// Where the modules that a file declares may be.
fn modules_of(file: &Source, is_root: bool) -> Vec<String> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let stem = name.trim_end_matches(".rs");
    let children = if is_root || stem == "mod" { folder.to_owned() } else { format!("{folder}/{stem}") };
    let mut places = Vec::new();
    let mut explicit: Option<&str> = None;
    for (_, line) in file.code().map(|(number, line)| (number, line.trim())) {
        if let Some(path) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
            explicit = Some(path);
        } else if let Some(module) = declared(line) {
            match explicit.take() {
                Some(path) => places.push(source::joined(&file.path, path)),
                None => places.extend([format!("{children}/{module}.rs"), format!("{children}/{module}/mod.rs")]),
            }
        }
    }
    places
}

/// The module that a line declares to be in another file: `pub(crate) mod name;`.
fn declared(line: &str) -> Option<&str> {
    // Attributes may stand before it.
    let (before, name) = line.split_once("mod ")?;
    let is_declaration = before.is_empty() || before.ends_with(' ');
    let name = name.split_once(';')?.0;
    let is_name = name.chars().all(|character| character.is_alphanumeric() || character == '_');
    (is_declaration && is_name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::{super::source::tests::source, *};

    #[test]
    fn modules_are_followed_and_what_nobody_names_is_found() {
        let metadata = serde_json::json!({"packages": [
            {"targets": [{"src_path": "/p/a/src/lib.rs"}, {"src_path": "/p/a/tests/one.rs"}]},
        ]});
        let files = [
            source("a/src/lib.rs", "pub(crate) mod b;\n#[allow(unsafe_code)] // why\nmod c;\n// mod dead;\n"),
            source(
                "a/src/b.rs",
                "#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod tests;\nmod d;\nfn x() { \"guest/main.rs\" }\n",
            ),
            source("a/src/b_tests.rs", ""),
            source("a/src/b/d.rs", ""),
            source("a/src/c/mod.rs", "mod e;"),
            source("a/src/c/e.rs", ""),
            source("a/src/dead.rs", "mod f;"),
            source("a/src/d.rs", ""),
            source("examples/plugin/src/lib.rs", "mod queue;"),
            source("examples/plugin/src/queue.rs", ""),
            source("a/tests/one.rs", "mod common;"),
            source("a/tests/common/mod.rs", ""),
            source("a/tests/fixture.rs", ""),
            source("a/guest/main.rs", "mod ring;"),
            source("a/guest/ring.rs", ""),
        ];
        let faults = dead(&files, &metadata, Path::new("/p"));
        let expected = ["a/src/dead.rs", "a/src/d.rs", "a/tests/fixture.rs"];
        assert_eq!(faults, expected.map(|path| format!("{path}: no module names it")));
    }
}
