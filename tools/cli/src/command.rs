//! What every command takes, and how it ends.
use crate::report;
use clap::{ArgAction, Args};
use pollux_core::plugin::PluginPath;
use std::{fmt, path::PathBuf};
use tracing::level_filters::LevelFilter;

/// What every command takes.
#[derive(Args)]
pub(crate) struct Shared {
    /// Look for plugins in DIR first; may be repeated.
    ///
    /// Then follow those of POLLUX_PLUGIN_PATH (separated by colons), the folder of this program, and
    /// /usr/lib/pollux/plugins.
    #[arg(long, value_name = "DIR", global = true)]
    plugin_path: Vec<PathBuf>,
    /// Log more: informative lines; twice: for debugging; three times: everything.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Log and warn less: errors only; twice: nothing.
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "verbose")]
    quiet: u8,
    /// Log lines of this level and above: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", global = true, conflicts_with_all = ["verbose", "quiet"])]
    log: Option<LevelFilter>,
}

impl Shared {
    pub(crate) fn plugin_path(&self) -> PluginPath {
        PluginPath::new(&self.plugin_path)
    }

    pub(crate) fn level(&self) -> LevelFilter {
        match (self.log, self.verbose, self.quiet) {
            (Some(level), ..) => level,
            (None, 0, 0) => LevelFilter::WARN,
            (None, 0, 1) => LevelFilter::ERROR,
            (None, 0, _) => LevelFilter::OFF,
            (None, 1, _) => LevelFilter::INFO,
            (None, 2, _) => LevelFilter::DEBUG,
            (None, ..) => LevelFilter::TRACE,
        }
    }

    /// Whether warnings are shown.
    pub(crate) fn warns(&self) -> bool {
        self.level() >= LevelFilter::WARN
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    Failure,
    BadConfiguration,
    /// Stopped by this signal, before it was done.
    Stopped(i32),
}

/// Says why a command failed.
pub(crate) fn fail(error: &dyn fmt::Display) -> Status {
    report::complain(error);
    Status::Failure
}
