//! Rules about documents: what they point to is there, and something points to each of them.
use super::source::{self, Source};
use std::collections::{BTreeSet, HashMap};

/// Where a reader begins.
const FRONT_PAGE: &str = "README.md";
/// Folders whose files are part of what the documents tell.
const TOLD_FOLDERS: [&str; 1] = ["examples/"];

fn is_document(file: &Source) -> bool {
    file.path.ends_with(".md")
}

/// Every link leads to a file, folder or heading that exists. Links to other places are not looked at.
pub(super) fn links(files: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| is_document(file)) {
        for (number, target) in links_of(file) {
            if let Err(why) = follow(files, file, &target) {
                faults.push(format!("{}:{number}: {target}: {why}", file.path));
            }
        }
    }
    faults
}

/// Every document and every example can be reached from the front page. A link to a folder leads to all its files.
pub(super) fn reachable(files: &[Source]) -> Vec<String> {
    let mut reached = BTreeSet::from([FRONT_PAGE.to_owned()]);
    let mut pending = vec![FRONT_PAGE.to_owned()];
    while let Some(path) = pending.pop() {
        let Some(file) = files.iter().find(|file| file.path == path && is_document(file)) else { continue };
        for (_, target) in links_of(file) {
            if let Ok(path) = follow(files, file, &target)
                && reached.insert(path.clone())
            {
                pending.push(path);
            }
        }
    }
    let told = |file: &&Source| is_document(file) || TOLD_FOLDERS.iter().any(|folder| file.path.starts_with(folder));
    files
        .iter()
        .filter(told)
        .filter(|file| !reached.contains(&file.path) && !folders_of(&file.path).any(|folder| reached.contains(folder)))
        .map(|file| format!("{}: no link leads here from {FRONT_PAGE}", file.path))
        .collect()
}

/// The folders that a file is in, but those that are told of file by file.
fn folders_of(path: &str) -> impl Iterator<Item = &str> {
    let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
    folders.filter(|folder| !TOLD_FOLDERS.iter().any(|told| told.trim_end_matches('/') == *folder))
}

/// A path in backquotes that begins with a folder of the checkout, such as `core/src/lib.rs`, exists.
pub(super) fn paths(files: &[Source]) -> Vec<String> {
    let folders: BTreeSet<&str> = files.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| is_document(file)) {
        for (number, line) in prose(file) {
            for path in line.split('`').skip(1).step_by(2) {
                let is_path = path.split_once('/').is_some_and(|(folder, _)| folders.contains(folder));
                let is_plain = !path.contains(|character: char| " *{}()<>$…,:".contains(character));
                if is_path && is_plain && !exists(files, path.trim_end_matches('/')) {
                    faults.push(format!("{}:{number}: there is no {path}", file.path));
                }
            }
        }
    }
    faults
}

/// The lines that are not in a block of code, with their numbers.
pub(super) fn prose(file: &Source) -> impl Iterator<Item = (usize, &str)> {
    let mut within = false;
    file.lines().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        within ^= is_fence;
        !is_fence && !within
    })
}

/// What the links of a document lead to in the checkout, with the numbers of their lines.
fn links_of(file: &Source) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(file) {
        // What is in backquotes is text, but a label in square brackets may be.
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        let is_elsewhere = |target: &&str| target.contains("://") || target.starts_with("mailto:");
        links.extend(targets.filter(|target| !is_elsewhere(target)).map(|target| (number, target.to_owned())));
    }
    links
}

/// The path that a link in `file` leads to, from the top of the checkout.
fn follow(files: &[Source], file: &Source, target: &str) -> Result<String, String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let path = match path {
        "" => file.path.clone(),
        _ => source::joined(&file.path, path),
    };
    if !exists(files, &path) {
        return Err(format!("there is no {path}"));
    }
    let Some(anchor) = anchor else { return Ok(path) };
    let document = files.iter().find(|file| file.path == path && is_document(file));
    match document {
        Some(document) if anchors(document).contains(anchor) => Ok(path),
        Some(_) => Err(format!("{path} has no heading for it")),
        None => Err("only documents have headings".to_owned()),
    }
}

/// Whether a file or a folder of that path is in the checkout.
fn exists(files: &[Source], path: &str) -> bool {
    let folder = format!("{path}/");
    files.iter().any(|file| file.path == path || file.path.starts_with(&folder))
}

/// What the headings of a document are called in links to them, as GitHub has it.
fn anchors(file: &Source) -> BTreeSet<String> {
    let mut times: HashMap<String, usize> = HashMap::new();
    let headings = prose(file).map(|(_, line)| line).filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let lower = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = lower.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
            let name: String = kept.map(|character| if character == ' ' { '-' } else { character }).collect();
            let count = times.entry(name.clone()).or_default();
            *count += 1;
            if *count == 1 { name } else { format!("{name}-{}", *count - 1) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::source::tests::source, *};

    fn tree() -> Vec<Source> {
        vec![
            source("README.md", "See [docs](docs/a.md#two-words) and [the web](https://example.org/x).\n"),
            source("docs/a.md", "# Two words!\n[back](../README.md), [here](#two-words), [code](../core/src)\n"),
            source("core/src/lib.rs", "//! [not looked at](nowhere.md)\n"),
        ]
    }

    #[test]
    fn links_to_files_folders_and_headings_are_followed() {
        assert_eq!(links(&tree()), [""; 0]);
        assert_eq!(reachable(&tree()), [""; 0]);
    }

    #[test]
    fn a_link_to_nothing_is_found() {
        let mut files = tree();
        let text = "[a](b.md) [b](a.md#three)\n```\n[c](d.md)\n```\n[d](../core/src/lib.rs#x)\n";
        files.push(source("docs/c.md", text));
        let expected = [
            "docs/c.md:1: b.md: there is no docs/b.md",
            "docs/c.md:1: a.md#three: docs/a.md has no heading for it",
            "docs/c.md:5: ../core/src/lib.rs#x: only documents have headings",
        ];
        assert_eq!(links(&files), expected);
    }

    #[test]
    fn a_document_or_an_example_that_nobody_finds_is_named() {
        let mut files = tree();
        files.push(source("docs/lost.md", "[alone](lost.md)\n"));
        files.push(source("examples/lost.toml", "\n"));
        files.push(source("examples/found/a/b.c", "\n"));
        files.push(source("docs/b.md", "[a folder](../examples/found), [all](../examples)\n"));
        files.push(source("docs/c.md", "\n"));
        files[1].text += "[b](b.md)\n";
        let lost = ["docs/lost.md", "examples/lost.toml", "docs/c.md"]
            .map(|path| format!("{path}: no link leads here from README.md"));
        assert_eq!(reachable(&files), lost);
    }

    #[test]
    fn paths_that_are_gone_are_found_in_prose() {
        let mut files = tree();
        files.push(source(
            "docs/b.md",
            "`core/src/lib.rs`, `core/gone.rs`, `core/*.rs`, `/etc/gone`\n```\n`core/x`\n```\n",
        ));
        assert_eq!(paths(&files), ["docs/b.md:1: there is no core/gone.rs"]);
    }

    #[test]
    fn headings_are_called_as_github_calls_them() {
        let document = source("a.md", "# `pollux run`, twice\n## `pollux run`, twice\n```sh\n# no heading\n```\n");
        let expected = ["pollux-run-twice", "pollux-run-twice-1"].map(str::to_owned);
        assert_eq!(anchors(&document), BTreeSet::from(expected));
    }
}
