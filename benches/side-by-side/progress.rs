//! How far it is. Nothing is shown where standard error is no terminal.
use super::interrupt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{error::Error, fmt};

/// A bar on standard error.
pub(crate) struct Progress(ProgressBar);

/// There was a signal.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl Error for Interrupted {}

impl Progress {
    pub(crate) fn new(steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
        Progress(style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)))
    }

    /// The next step begins.
    pub(crate) fn step(&self, what: &str) -> Result<(), Interrupted> {
        self.0.inc(1);
        self.0.set_message(what.to_owned());
        if interrupt::received() { Err(Interrupted) } else { Ok(()) }
    }

    /// So many steps are not made.
    pub(crate) fn skip(&self, steps: u64) {
        self.0.inc(steps);
    }

    /// Prints a line above the bar.
    pub(crate) fn print(&self, line: &str) {
        self.0.suspend(|| println!("{line}"));
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
