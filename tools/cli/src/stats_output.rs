//! Where statistics go: while a command runs, and when it ends.
use crate::{report, stats_json, stats_table};
use pollux_core::stats::{Capacity, MAGIC, Snapshot, StatsSegment};
use pollux_vmm::ExitCounts;
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf, absolute},
};

/// What commands take that have statistics.
#[derive(clap::Args)]
pub(crate) struct StatsArguments {
    /// Print a table of requests, batches, notifications and latencies at the end, and one of the workers.
    #[arg(long)]
    stats: bool,
    /// Write the same, a record a queue, to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Keep the counters in FILE, which `pollux stats FILE` and other programs read at any time, also after a crash.
    ///
    /// Without it they are in anonymous memory, which `pollux stats PID` finds as long as the process lives. FILE is
    /// best on a tmpfs such as /run; an older segment is replaced, anything else left alone. It stays at the end.
    #[arg(long, value_name = "FILE")]
    stats_segment: Option<PathBuf>,
}

/// The statistics cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot write the statistics to {path}: {cause}", path = .0.display(), cause = .1)]
    File(PathBuf, io::Error),
    #[error("cannot make the statistics segment {path}: {cause}", path = .0.display(), cause = .1)]
    Segment(PathBuf, io::Error),
    #[error("cannot make the statistics: {0}")]
    Memory(io::Error),
}

impl StatsArguments {
    /// What is wanted. To be called before the working folder changes.
    pub(crate) fn plan(&self) -> Result<StatsPlan, Error> {
        let whole = |path: &Option<PathBuf>| match path {
            Some(path) => absolute(path).map(Some).map_err(|cause| Error::File(path.clone(), cause)),
            None => Ok(None),
        };
        Ok(StatsPlan { table: self.stats, path: whole(&self.stats_json)?, segment: whole(&self.stats_segment)? })
    }
}

/// What is wanted; nothing is touched yet.
pub(crate) struct StatsPlan {
    table: bool,
    path: Option<PathBuf>,
    segment: Option<PathBuf>,
}

impl StatsPlan {
    /// Makes the file for the end. To be called before a long run whose statistics would be lost.
    pub(crate) fn open(self) -> Result<StatsOutput, Error> {
        let create = |path: PathBuf| match File::create(&path) {
            Ok(file) => Ok((path, file)),
            Err(cause) => Err(Error::File(path, cause)),
        };
        Ok(StatsOutput { table: self.table, file: self.path.map(create).transpose()?, segment: self.segment })
    }
}

/// Where they go.
pub(crate) struct StatsOutput {
    table: bool,
    file: Option<(PathBuf, File)>,
    segment: Option<PathBuf>,
}

impl StatsOutput {
    /// Makes the segment, in its file if there is to be one.
    pub(crate) fn segment(&self, capacity: Capacity) -> Result<StatsSegment, Error> {
        match &self.segment {
            Some(path) => create_segment(path, capacity).map_err(|cause| Error::Segment(path.clone(), cause)),
            None => StatsSegment::anonymous_with(capacity).map_err(Error::Memory),
        }
    }

    /// Prints and writes what is wanted.
    pub(crate) fn write(self, stats: &Snapshot, exits: &[ExitCounts]) -> Result<(), Error> {
        if self.table {
            report::print(&stats_table::tables(stats, None));
        }
        let Some((path, file)) = self.file else { return Ok(()) };
        serde_json::to_writer_pretty(&file, &stats_json::json(stats, exits))
            .map_err(|error| Error::File(path, error.into()))
    }
}

/// Makes it beside its place and moves it there when it is whole: who has the one before it open goes on with that, and
/// nobody finds half of one.
fn create_segment(path: &Path, capacity: Capacity) -> io::Result<StatsSegment> {
    if !may_be_replaced(path)? {
        return Err(io::Error::other(
            "there is something that is no statistics segment; choose another place, or remove it",
        ));
    }
    let mut name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let file = File::options().read(true).write(true).create_new(true).open(&temporary)?;
    let made = StatsSegment::create(file, capacity).and_then(|made| fs::rename(&temporary, path).map(|()| made));
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made
}

/// Whether there is nothing, an empty file, or a segment.
fn may_be_replaced(path: &Path) -> io::Result<bool> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut magic = [0; 8];
    Ok(metadata.is_file()
        && (metadata.len() == 0
            || File::open(path)?.read_exact(&mut magic).is_ok() && u64::from_le_bytes(magic) == MAGIC))
}
