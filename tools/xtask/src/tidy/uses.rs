//! One style of imports: a single block, with one tree for each crate.
use super::source::Source;
use syn::{Item, ItemUse, UseTree, Visibility};

/// Modules with imports in several places, or several trees for one crate. Re-exports are trees of their own.
pub(super) fn scattered(files: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        // What cannot be read is the compiler's to complain of, and another rule's.
        if let Ok(parsed) = syn::parse_file(&file.text) {
            module(file, &parsed.items, &mut faults);
        }
    }
    faults
}

fn module(file: &Source, items: &[Item], faults: &mut Vec<String>) {
    let mut seen: Vec<Import> = Vec::new();
    // Whether something else has come after the first import.
    let mut is_over = false;
    for item in items {
        match item {
            Item::Use(item) => {
                let import = Import::of(item);
                let line = import.line;
                if is_over {
                    faults.push(format!("{}:{line}: write this in the block of imports above", file.path));
                } else if seen.last().is_some_and(|above| has_gap(file, above.line, line)) {
                    faults.push(format!("{}:{line}: no blank line between imports", file.path));
                } else if seen.iter().any(|above| above.is_mergeable(&import)) {
                    faults.push(format!("{}:{line}: {} has a tree above: write one", file.path, import.krate));
                }
                seen.push(import);
            }
            Item::Mod(inner) => {
                is_over |= !seen.is_empty();
                if let Some((_, items)) = &inner.content {
                    module(file, items, faults);
                }
            }
            _ => is_over |= !seen.is_empty(),
        }
    }
}

/// What matters of an import.
struct Import {
    line: usize,
    krate: String,
    visibility: String,
    /// Those with attributes stand alone.
    is_plain: bool,
}

impl Import {
    fn of(item: &ItemUse) -> Self {
        let krate = match &item.tree {
            UseTree::Path(path) => path.ident.to_string(),
            UseTree::Name(name) => name.ident.to_string(),
            UseTree::Rename(rename) => rename.ident.to_string(),
            UseTree::Glob(_) | UseTree::Group(_) => String::new(),
        };
        let visibility = match &item.vis {
            Visibility::Inherited => String::new(),
            Visibility::Public(_) => "pub".to_owned(),
            Visibility::Restricted(restricted) => {
                restricted.path.segments.iter().map(|segment| segment.ident.to_string()).collect()
            }
        };
        let line = item.use_token.span.start().line;
        Import { line, krate, visibility, is_plain: item.attrs.is_empty() }
    }

    fn is_mergeable(&self, other: &Import) -> bool {
        self.is_plain && other.is_plain && self.krate == other.krate && self.visibility == other.visibility
    }
}

/// Whether a line between these two is blank.
fn has_gap(file: &Source, first: usize, second: usize) -> bool {
    file.lines().skip(first).take(second - first - 1).any(|(_, line)| line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::{super::source::tests::source, *};

    #[test]
    fn imports_are_one_block_with_one_tree_for_each_crate() {
        let good = "//! Docs.\nmod a;\nuse self::a::A;\npub use self::a::B;\nuse crate::{\n    b::C,\n    d::D,\n};\n\
            use std::io;\n\nfn f() {\n    use std::fs;\n}\n\nmod tests {\n    use super::*;\n    use std::fs;\n}\n";
        assert_eq!(scattered(&[source("a.rs", good)]), [""; 0]);
        let bad = "use std::io;\nuse std::fs;\n\nuse crate::a;\nconst A: u8 = 0;\nuse super::b;\n";
        let expected = [
            "a.rs:2: std has a tree above: write one",
            "a.rs:4: no blank line between imports",
            "a.rs:6: write this in the block of imports above",
        ];
        assert_eq!(scattered(&[source("a.rs", bad)]), expected);
        let inside = "mod a {\n    use std::io;\n    use std::fs;\n}\n";
        assert_eq!(scattered(&[source("a.rs", inside)]), ["a.rs:3: std has a tree above: write one"]);
    }
}
