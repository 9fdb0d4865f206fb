//! Lines are no wider than a window.
use super::{documents, source::Source};

/// The widest line of code and of prose, in characters.
const COLUMNS_MAX: usize = 120;

/// Lines of Rust and of documents that are wider. Rows of tables may be, in documents and in comments, and so may
/// blocks of code in documents.
pub(super) fn wide_lines(files: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files {
        let lines: Vec<(usize, &str)> = if file.path.ends_with(".rs") {
            file.lines().filter(|(_, line)| !is_row(comment(line))).collect()
        } else if file.path.ends_with(".md") {
            documents::prose(file).filter(|(_, line)| !is_row(line)).collect()
        } else {
            continue;
        };
        for (number, line) in lines {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                faults.push(format!("{}:{number}: {columns} columns; {COLUMNS_MAX} is the end", file.path));
            }
        }
    }
    faults
}

/// The text of a comment, or nothing.
fn comment(line: &str) -> &str {
    let text = line.trim_start().strip_prefix("//").unwrap_or_default();
    text.trim_start_matches(['/', '!'])
}

/// Whether a line is a row of a table.
fn is_row(line: &str) -> bool {
    line.trim_start().starts_with('|')
}

#[cfg(test)]
mod tests {
    use super::{super::source::tests::source, *};

    #[test]
    fn only_rows_of_tables_and_code_in_documents_may_be_wide() {
        let wide = "é".repeat(121);
        let document = format!("{wide}\n| {wide} |\n```\n{wide}\n```\n{}\n", "é".repeat(120));
        let code = format!("//! | {wide} |\n    /// | {wide} |\n// {wide}\nlet x = y | {wide};\n");
        let files = [source("a.md", &document), source("a.rs", &code), source("a.json", &wide)];
        let expected = ["a.md:1: 121", "a.rs:3: 124", "a.rs:4: 134"];
        assert_eq!(wide_lines(&files), expected.map(|fault| format!("{fault} columns; 120 is the end")));
    }
}
