//! What `pollux run` and `pollux serve` do alike: from a file to something that runs, to how it ended.
use crate::{
    Shared, Status,
    examine::{self, Examined},
    fail,
    stats_output::{StatsArguments, StatsPlan},
};
use pollux_core::config::Purpose;
use std::{fmt::Display, path::PathBuf};

/// The arguments of both.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The configuration, a TOML file.
    file: PathBuf,
    #[command(flatten)]
    stats: StatsArguments,
}

/// Examines the file, and lets `start` do the rest if there is no mistake in it.
pub(crate) fn start<E: Display>(
    arguments: &Arguments,
    purpose: Purpose,
    shared: &Shared,
    start: impl FnOnce(&Examined, StatsPlan) -> Result<(), E>,
) -> Status {
    // First, for relative paths: the working folder is the file's once that is examined.
    let stats = match arguments.stats.plan() {
        Ok(plan) => plan,
        Err(error) => return fail(&error),
    };
    let Some(examined) = examine::examine_and_show(&arguments.file, purpose, shared) else {
        return Status::BadConfiguration;
    };
    match start(&examined, stats) {
        Ok(()) => Status::Success,
        Err(error) => fail(&error),
    }
}
