//! `pollux run`
use crate::{
    Shared, Status,
    assemble::{self, Assembly},
    examine, report, stats_table,
};
use pollux_vmm::{Exit, Shutdown};
use std::{
    fs::File,
    io,
    path::{PathBuf, absolute},
};
use tracing::info;

/// The arguments of `pollux run`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The configuration, a TOML file.
    file: PathBuf,
    /// Print a table of requests, batches, notifications and latencies at the end.
    #[arg(long)]
    stats: bool,
    /// Write the same, a record a queue, to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
}

/// Why the command failed, past the configuration.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot write the statistics to {path}: {cause}", path = .path.display())]
    StatsFile { path: PathBuf, cause: io::Error },
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Assemble(#[from] assemble::Error),
    #[error(transparent)]
    Machine(#[from] pollux_vmm::machine::Error),
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, shared: &Shared) -> Status {
    // Before the working folder changes.
    let stats_json = match arguments.stats_json.as_deref().map(absolute).transpose() {
        Ok(path) => path,
        Err(cause) => return fail(&Error::StatsFile { path: arguments.stats_json.clone().unwrap_or_default(), cause }),
    };
    let (source, result) = examine::examine(&arguments.file, &shared.plugin_path());
    let examined = match result {
        Ok(examined) => examined,
        Err(found) => {
            report::show(&source, &found, shared.warns());
            return Status::BadConfiguration;
        }
    };
    report::show(&source, &examined.warnings, shared.warns());
    match start(&examined, arguments.stats, stats_json) {
        Ok(()) => Status::Success,
        Err(error) => fail(&error),
    }
}

/// The reason of a failure is no log line: it is shown whatever the log level.
fn fail(error: &Error) -> Status {
    eprintln!("pollux: {error}");
    Status::Failure
}

fn start(examined: &examine::Examined, table: bool, stats_json: Option<PathBuf>) -> Result<(), Error> {
    // Before a long run whose statistics would be lost.
    let stats_file = stats_json.map(StatsFile::create).transpose()?;
    let shutdown = Shutdown::on_signals().map_err(Error::Signals)?;
    let mut assembly = Assembly::new(examined)?;
    let result = assembly.machine.run(&shutdown);
    match &result {
        Ok(Exit::PowerOff) => info!("the guest has powered off"),
        Ok(Exit::Reboot) => info!("the guest has rebooted, and the configuration says to end then"),
        Ok(Exit::Stopped(Some(signal))) => info!("stopped by signal {signal}"),
        Ok(Exit::Stopped(None)) => info!("stopped"),
        // The caller shows it.
        Err(_) => {}
    }
    let stats = assembly.stats.clone();
    let exits = assembly.machine.exit_counts();
    // Devices end here, workers after them: whatever is in flight is drained and flushed before the numbers are read.
    drop(assembly);
    if table {
        report::print(&stats_table::table(&stats));
    }
    if let Some(file) = stats_file {
        file.write(&stats_table::json(&stats, &exits))?;
    }
    result.map(drop).map_err(Error::Machine)
}

/// The file of `--stats-json`.
struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    fn create(path: PathBuf) -> Result<Self, Error> {
        match File::create(&path) {
            Ok(file) => Ok(StatsFile { path, file }),
            Err(cause) => Err(Error::StatsFile { path, cause }),
        }
    }

    fn write(self, json: &serde_json::Value) -> Result<(), Error> {
        let failed = |cause| Error::StatsFile { path: self.path.clone(), cause };
        serde_json::to_writer_pretty(&self.file, json).map_err(|error| failed(error.into()))
    }
}
