//! Where statistics go when a command ends.
use crate::{report, stats_table};
use pollux_core::stats::StatsSegment;
use pollux_vmm::ExitCounts;
use std::{
    fs::File,
    io,
    path::{PathBuf, absolute},
};

/// What commands take that have statistics.
#[derive(clap::Args)]
pub(crate) struct StatsArguments {
    /// Print a table of requests, batches, notifications and latencies at the end.
    #[arg(long)]
    stats: bool,
    /// Write the same, a record a queue, to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
}

/// The statistics cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the statistics to {path}: {cause}", path = .path.display())]
pub(crate) struct Error {
    path: PathBuf,
    cause: io::Error,
}

impl StatsArguments {
    /// What is wanted. To be called before the working folder changes.
    pub(crate) fn plan(&self) -> Result<StatsPlan, Error> {
        let path = self.stats_json.as_ref();
        let path = path.map(|path| absolute(path).map_err(|cause| Error { path: path.clone(), cause })).transpose()?;
        Ok(StatsPlan { table: self.stats, path })
    }
}

/// What is wanted; nothing is touched yet.
pub(crate) struct StatsPlan {
    table: bool,
    path: Option<PathBuf>,
}

impl StatsPlan {
    /// Makes the file. To be called before a long run whose statistics would be lost.
    pub(crate) fn open(self) -> Result<StatsOutput, Error> {
        let create = |path: PathBuf| match File::create(&path) {
            Ok(file) => Ok((path, file)),
            Err(cause) => Err(Error { path, cause }),
        };
        Ok(StatsOutput { table: self.table, file: self.path.map(create).transpose()? })
    }
}

/// Where they go.
pub(crate) struct StatsOutput {
    table: bool,
    file: Option<(PathBuf, File)>,
}

impl StatsOutput {
    /// Prints and writes what is wanted.
    pub(crate) fn write(self, stats: &StatsSegment, exits: &[ExitCounts]) -> Result<(), Error> {
        if self.table {
            report::print(&stats_table::table(stats));
        }
        let Some((path, file)) = self.file else { return Ok(()) };
        serde_json::to_writer_pretty(&file, &stats_table::json(stats, exits))
            .map_err(|error| Error { path, cause: error.into() })
    }
}
