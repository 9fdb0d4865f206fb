//! Tables of lines that are refused, and the words.
use super::Folder;

/// A line of a file, what is said of it, the part that is marked, and what is to be written instead.
pub(crate) struct Case<'c> {
    line: &'c str,
    message: &'c str,
    marked: &'c str,
    help: &'c str,
}

pub(crate) const fn case<'c>(line: &'c str, message: &'c str, marked: &'c str, help: &'c str) -> Case<'c> {
    Case { line, message, marked, help }
}

/// Checks that each line, put between `before` and `after`, is refused with its words and nothing more.
pub(crate) fn refuses(before: &str, after: &str, cases: &[Case<'_>]) {
    let folder = Folder::new();
    let number = before.lines().count() + 1;
    let gutter = " ".repeat(number.to_string().len());
    for Case { line, message, marked, help } in cases {
        let at = line.find(marked).unwrap_or_else(|| panic!("{marked} in {line}"));
        let (indent, mark) = (" ".repeat(at), "^".repeat(marked.chars().count()));
        let expected = format!(
            "vm.toml:{number}:{}: error: {message}\n  {number} | {line}\n  {gutter} | {indent}{mark}\n  help: {help}\n",
            at + 1
        );
        folder.refuses(&format!("{before}{line}\n{after}"), &expected);
    }
}
