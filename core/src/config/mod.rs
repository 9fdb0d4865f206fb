//! The configuration file: TOML in, checked and typed values out, or everything that is wrong with it at once.
//!
//! The format is described in `docs/configuration.md`, which a test compares with what is read here.
//!
//! | module | holds |
//! |---|---|
//! | [`diagnostic`] | what is wrong, where, and what to write instead |
//! | [`host`], `context` | what the file is checked against |
//! | `model` | the contents of a file |
//! | `read` | a reader over one table |
//! | `tables` | each table of the format, read by it |
//! | `options` | a plugin's options on their way to JSON |
//! | `check` | checks across several tables |
//! | [`suggest`] | "did you mean" |
mod check;
mod context;
pub mod diagnostic;
pub mod host;
mod model;
mod options;
mod read;
pub mod suggest;
mod tables;

pub use self::{
    context::{Context, Purpose},
    diagnostic::{Diagnostic, Label, Position, Severity, Span, Spanned},
    host::{Host, HugepagePool, MachineLimits},
    model::{Blk, Block, Config, Console, Device, DeviceKind, Reboot, Transport, Vm, Worker},
    options::PluginOptions,
};
use self::{diagnostic::Diagnostics, read::Table};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};
use toml::de::DeTable;

/// Longest configuration file in bytes. Longer ones are taken for something else.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads the file at `path` as text.
///
/// # Errors
/// Why it cannot be a configuration file.
pub fn read_file(path: &Path) -> Result<String, Diagnostic> {
    let unreadable = |error: io::Error| {
        let help = match error.kind() {
            io::ErrorKind::NotFound => "name the configuration file, such as vm.toml",
            io::ErrorKind::IsADirectory => "name the file in it",
            _ => "make it readable for this user",
        };
        Diagnostic::error(format!("cannot read the configuration: {error}")).help(help)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("the configuration is longer than {} MiB", FILE_BYTES_MAX >> 20);
        return Err(Diagnostic::error(message).help("name a TOML file; disk images go into [block.NAME]"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = Position::of(&String::from_utf8_lossy(error.as_bytes()), error.utf8_error().valid_up_to()).line;
        Diagnostic::error(format!("the configuration is not UTF-8 text (line {line})")).help("save it as UTF-8")
    })
}

/// Reads and checks the text of a file: the configuration, if nothing is wrong with it, and warnings; or all errors.
pub fn parse(text: &str, context: &Context<'_>) -> (Option<Config>, Vec<Diagnostic>) {
    let diagnostics = Diagnostics::default();
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    if !syntax_errors.is_empty() {
        // The parser can only guess about the rest: nothing further is reported.
        syntax_errors.iter().for_each(|error| diagnostics.push(syntax_error(text, error)));
        return (None, diagnostics.into_sorted());
    }
    let draft = tables::read(Table::root(document.get_ref(), &diagnostics), context);
    check::check(&draft, context, &diagnostics);
    let config = if diagnostics.has_errors() { None } else { draft.finish() };
    (config, diagnostics.into_sorted())
}

fn syntax_error(text: &str, error: &toml::de::Error) -> Diagnostic {
    let mut span = error.span().unwrap_or(0..0);
    if span.is_empty() && span.start < text.len() && text.is_char_boundary(span.start) {
        span.end += text[span.start..].chars().next().map_or(0, char::len_utf8);
    }
    if error.message() == "duplicate key" {
        let key = text.get(span.clone()).unwrap_or_default();
        let message = format!("`{key}` is there twice");
        return Diagnostic::error(message).at(&span, "again").help("keep one of the two, or choose another name");
    }
    if error.message().contains("recurs") {
        return Diagnostic::error("this is nested too deeply").at(&span, "").help("write it flatter");
    }
    if error.message().starts_with("string values must be quoted") {
        let value = text.get(span.clone()).unwrap_or_default().trim();
        return match value {
            "" => Diagnostic::error("there is no value").at(&span, "").help("write one after the equals sign"),
            _ => Diagnostic::error("this string is not in quotes").at(&span, "").help(format!("write \"{value}\"")),
        };
    }
    Diagnostic::error(format!("this is not TOML: {}", error.message()))
        .at(&span, "")
        .help("write key = value, with strings in \"quotes\", or [table]")
}
