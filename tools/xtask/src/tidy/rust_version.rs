//! The workspace builds with the compiler that it names as its least: so do its dependencies. What the standard library
//! had in that version is checked by clippy (`incompatible_msrv`).
use super::source::Source;
use serde_json::Value;
use std::collections::BTreeSet;

/// Dependencies that want a newer compiler than the packages of the workspace, and packages outside of the workspace,
/// such as examples, that name another one. `metadata` is that of all packages, with what depends on what.
pub(super) fn faults(metadata: &Value, files: &[Source]) -> Vec<String> {
    let ids = |value: &Value| -> BTreeSet<String> {
        value.as_array().into_iter().flatten().filter_map(|id| Some(id.as_str()?.to_owned())).collect()
    };
    let members = ids(&metadata["workspace_members"]);
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let used: BTreeSet<&str> = nodes.filter_map(|node| node["id"].as_str()).collect();
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let of_members = packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| members.contains(id)));
    let versions: BTreeSet<&str> = of_members.filter_map(|package| package["rust_version"].as_str()).collect();
    let (Some(&ours), 1) = (versions.first(), versions.len()) else {
        return vec![format!("the packages of the workspace name these versions of Rust: {versions:?}")];
    };
    let mut faults = Vec::new();
    for package in packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id))) {
        let name = package["name"].as_str().unwrap_or_default();
        if let Some(theirs) = package["rust_version"].as_str()
            && numbers(theirs) > numbers(ours)
        {
            faults.push(format!("{name} wants Rust {theirs}, the workspace says {ours}"));
        }
    }
    let line = format!("rust-version = \"{ours}\"");
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let names_it = file.text.contains("rust-version.workspace = true") || file.text.contains(&line);
        if !names_it {
            faults.push(format!("{}: write {line}, or rust-version.workspace = true", file.path));
        }
    }
    faults
}

/// `1.92` and `1.92.0` are the same.
fn numbers(version: &str) -> [u64; 3] {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{super::source::tests::source, *};

    fn metadata(theirs: &str) -> Value {
        serde_json::json!({
            "workspace_members": ["core"],
            "resolve": {"nodes": [{"id": "core"}, {"id": "one"}, {"id": "silent"}]},
            "packages": [
                {"id": "core", "name": "core", "rust_version": "1.92"},
                {"id": "one", "name": "one", "rust_version": theirs},
                {"id": "silent", "name": "silent", "rust_version": null},
                {"id": "unused", "name": "unused", "rust_version": "2.0"},
            ],
        })
    }

    #[test]
    fn dependencies_may_want_no_newer_compiler() {
        for theirs in ["1.92", "1.92.0", "1.9", "1.56.1"] {
            assert_eq!(faults(&metadata(theirs), &[]), [""; 0]);
        }
        for theirs in ["1.92.1", "1.93", "1.100", "2.0"] {
            assert_eq!(faults(&metadata(theirs), &[]), [format!("one wants Rust {theirs}, the workspace says 1.92")]);
        }
    }

    #[test]
    fn every_package_names_the_version() {
        let files = [
            source("core/Cargo.toml", "rust-version.workspace = true\n"),
            source("examples/a/Cargo.toml", "rust-version = \"1.92\"\n"),
            source("examples/b/Cargo.toml", "rust-version = \"1.90\"\n"),
        ];
        let expected = "examples/b/Cargo.toml: write rust-version = \"1.92\", or rust-version.workspace = true";
        assert_eq!(faults(&metadata("1.92"), &files), [expected]);
    }
}
