//! How mistakes in the configuration are shown: drawn on a terminal, as lines elsewhere, as JSON on demand.
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource};
use pollux_core::config::{Diagnostic, Label, Position, Severity};
use serde_json::{Value, json};
use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

/// A configuration file: the name that the user gave it, and its text as far as it could be read.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Prints on standard output. Whoever has closed it wants no more.
pub(crate) fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Says something on standard error. It is no log line: it is shown whatever the log level.
pub(crate) fn complain(what: &dyn fmt::Display) {
    // Nothing is left to complain to.
    let _ = writeln!(io::stderr(), "pollux: {what}");
}

/// Shows `found` on standard error.
pub(crate) fn show(source: &Source, found: &[Diagnostic], warnings: bool) {
    let mut stderr = io::stderr().lock();
    let drawn = stderr.is_terminal();
    for diagnostic in found.iter().filter(|diagnostic| warnings || diagnostic.is_error()) {
        let text = if drawn { draw(source, diagnostic) } else { lines(source, diagnostic) };
        // Nothing is left to complain to.
        let _ = writeln!(stderr, "{}{}", text.trim_end(), if drawn { "\n" } else { "" });
    }
}

/// Whether the user has nothing against colours (see no-color.org).
pub(crate) fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// As lines that editors and scripts understand: `vm.toml:3:1: error: …`, then the line, then what to write.
fn lines(source: &Source, diagnostic: &Diagnostic) -> String {
    let mut text = place(source, diagnostic.labels.first());
    text += &format!(": {}: {}\n", severity(diagnostic), diagnostic.message);
    if let Some(label) = diagnostic.labels.first() {
        text += &excerpt(source, label);
    }
    for label in diagnostic.labels.iter().skip(1) {
        text += &format!("{}: note: {}\n", place(source, Some(label)), label.text);
    }
    if let Some(help) = &diagnostic.help {
        text += &format!("  help: {help}\n");
    }
    text
}

fn severity(diagnostic: &Diagnostic) -> &'static str {
    match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn place(source: &Source, label: Option<&Label>) -> String {
    match label.map(|label| Position::of(&source.text, label.span.start)) {
        Some(Position { line, column }) => format!("{}:{line}:{column}", source.name),
        None => source.name.clone(),
    }
}

/// The line of a label with what is meant underlined.
fn excerpt(source: &Source, label: &Label) -> String {
    let Position { line, column } = Position::of(&source.text, label.span.start);
    let Some(text) = source.text.lines().nth(line - 1) else { return String::new() };
    let marked = source.text.get(label.span.clone()).unwrap_or_default();
    let marked = marked.lines().next().unwrap_or_default().chars().count().max(1);
    let gutter = " ".repeat(line.to_string().len());
    // Tabs stay tabs, so that the mark stands below whatever their width.
    let indent: String =
        text.chars().take(column - 1).map(|character| if character == '\t' { '\t' } else { ' ' }).collect();
    let mark = format!("{indent}{} {}", "^".repeat(marked), label.text);
    format!("  {line} | {text}\n  {gutter} | {}\n", mark.trim_end())
}

/// Drawn, with colours if those are wanted.
fn draw(source: &Source, diagnostic: &Diagnostic) -> String {
    let theme = if wants_colours() { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(terminal_width()).with_links(false);
    let drawing =
        Drawing { diagnostic, source: NamedSource::new(&source.name, source.text.clone()).with_language("TOML") };
    let mut text = String::new();
    match handler.render_report(&mut text, &drawing) {
        Ok(()) => text,
        // A place that cannot be drawn must not cost the message.
        Err(fmt::Error) => lines(source, diagnostic),
    }
}

fn terminal_width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(100).clamp(40, 200)
}

/// One diagnostic in the shape that miette draws.
#[derive(Debug)]
struct Drawing<'d> {
    diagnostic: &'d Diagnostic,
    source: NamedSource<String>,
}

impl fmt::Display for Drawing<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.diagnostic.labels.is_empty() {
            write!(formatter, "{}: ", self.source.name())?;
        }
        formatter.write_str(&self.diagnostic.message)
    }
}

impl std::error::Error for Drawing<'_> {}

impl miette::Diagnostic for Drawing<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.diagnostic.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        (!self.diagnostic.labels.is_empty()).then_some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = self.diagnostic.labels.iter().enumerate().map(|(index, label)| {
            // An empty text would be drawn as an arrow to nowhere.
            let text = (!label.text.is_empty()).then(|| label.text.clone());
            let span = label.span.clone();
            if index == 0 {
                LabeledSpan::new_primary_with_span(text.or(Some("here".into())), span)
            } else {
                LabeledSpan::new_with_span(text, span)
            }
        });
        Some(Box::new(labels))
    }
}

/// `{"file": …, "good": …, "diagnostics": […]}`. Lines and columns count from 1, offsets in bytes from 0.
pub(crate) fn json(source: &Source, found: &[Diagnostic]) -> Value {
    let label = |label: &Label| {
        let Position { line, column } = Position::of(&source.text, label.span.start);
        json!({ "line": line, "column": column, "start": label.span.start, "end": label.span.end, "text": label.text })
    };
    let diagnostics: Vec<Value> = found
        .iter()
        .map(|diagnostic| {
            json!({
                "severity": severity(diagnostic),
                "message": diagnostic.message,
                "labels": diagnostic.labels.iter().map(label).collect::<Vec<Value>>(),
                "help": diagnostic.help,
            })
        })
        .collect();
    let good = !found.iter().any(Diagnostic::is_error);
    json!({ "file": source.name, "good": good, "diagnostics": diagnostics })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source { name: "vm.toml".into(), text: "[vm]\n\tcpus = 2\nkernl = \"x\"\n".into() }
    }

    #[test]
    fn lines_name_the_place_and_show_it() {
        let diagnostic = Diagnostic::error("no").at(&(6..10), "this").at(&(15..20), "that").help("do");
        assert_eq!(
            lines(&source(), &diagnostic),
            "vm.toml:2:2: error: no\n  2 | \tcpus = 2\n    | \t^^^^ this\nvm.toml:3:1: note: that\n  help: do\n"
        );
        let nowhere = Diagnostic::warning("hm");
        assert_eq!(lines(&source(), &nowhere), "vm.toml: warning: hm\n");
    }

    #[test]
    fn a_place_at_the_end_of_the_file_can_be_shown() {
        for end in [26, 27, 1000] {
            let diagnostic = Diagnostic::error("no").at(&(end..end), "");
            assert!(lines(&source(), &diagnostic).contains("error: no"));
            assert!(draw(&source(), &diagnostic).contains("no"));
        }
    }

    #[test]
    fn a_drawing_has_message_place_and_help() {
        let diagnostic = Diagnostic::error("unknown key").at(&(15..20), "").help("did you mean `kernel`?");
        let drawn = draw(&source(), &diagnostic);
        for part in ["unknown key", "vm.toml:3:1", "did you mean `kernel`?"] {
            assert!(drawn.contains(part), "{drawn}");
        }
    }
}
