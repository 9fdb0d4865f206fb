//! The text files of the checkout.

/// Packages that are no members of the workspace, to be copied as they are.
pub(super) const EXAMPLES: &str = "examples/";

/// A text file of the project.
pub(super) struct Source {
    /// Relative to the checkout, with slashes.
    pub(super) path: String,
    pub(super) text: String,
}

impl Source {
    /// Lines with their numbers, from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Whether this is code that users run, not a test or a fixture of one.
    pub(super) fn is_product(&self) -> bool {
        self.path.ends_with(".rs") && self.path.contains("src/") && !self.path.contains("/tests/")
    }

    /// Lines without comments of whole lines.
    pub(super) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// `path`, as it is written in the file `from`, from the top of the checkout.
pub(super) fn joined(from: &str, path: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file as the rules have it.
    pub(crate) fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }
}
