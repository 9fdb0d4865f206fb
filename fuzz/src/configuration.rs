//! Any text as a configuration file.
use pollux_core::config::{Context, Diagnostic, Purpose, parse};
use pollux_testing::host::{host, limits};
use std::path::Path;

/// Reads a file for each purpose.
///
/// # Panics
/// Neither a configuration nor an error comes of it, or a message has no place in the text or names no way out.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (host, limits) = (host(), limits());
    for purpose in [Purpose::Run, Purpose::Serve, Purpose::Any] {
        let context = Context { purpose, folder: Path::new("/proc/self"), host: &host, limits: &limits };
        let (config, diagnostics) = parse(text, &context);
        let has_errors = diagnostics.iter().any(Diagnostic::is_error);
        assert_eq!(config.is_none(), has_errors, "a configuration or an error: {diagnostics:?}");
        diagnostics.iter().for_each(|diagnostic| check(diagnostic, text));
        if let Some(config) = config {
            for block in &config.blocks {
                assert!(block.options.json.starts_with('{'), "a plugin gets an object: {}", block.options.json);
            }
        }
    }
}

/// A message can be shown at its place, and says what to do.
fn check(diagnostic: &Diagnostic, text: &str) {
    assert!(!diagnostic.message.is_empty(), "a message without words");
    assert!(diagnostic.help.as_deref().is_some_and(|help| !help.is_empty()), "no way out: {diagnostic:?}");
    for label in &diagnostic.labels {
        assert!(text.get(label.span.clone()).is_some(), "a place that is not in the text: {diagnostic:?}");
    }
}
