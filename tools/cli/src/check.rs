//! `pollux check`
use crate::{Shared, Status, examine, report, units};
use pollux_core::config::{Config, Purpose};
use pollux_host::configuration;
use std::path::PathBuf;

/// The arguments of `pollux check`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The configuration, a TOML file.
    file: PathBuf,
    /// Print one JSON object with everything that was found.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn check(arguments: &Arguments, shared: &Shared) -> Status {
    let (source, result) = examine::examine(&arguments.file, Purpose::Any, &shared.plugin_path());
    let (found, status) = match &result {
        Ok(examined) => (&examined.warnings, Status::Success),
        Err(found) => (found, Status::BadConfiguration),
    };
    if arguments.json {
        report::print(&format!("{}\n", report::json(&source, found)));
        return status;
    }
    report::show(&source, found, shared.warns());
    if let Ok(examined) = &result
        && shared.warns()
    {
        report::print(&format!("{}: {}\n", source.name, summary(&examined.config)));
    }
    status
}

/// What the configuration describes, in a line.
fn summary(config: &Config) -> String {
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let devices = format!(
        "{} with {}",
        count(config.devices.len(), "device"),
        count(configuration::queue_count(config), "queue")
    );
    let workers = count(config.workers.len(), "worker");
    match &config.vm {
        Some(vm) => {
            let (vcpus, memory) = (count(vm.vcpus.len(), "vCPU"), units::bytes(vm.memory_bytes));
            format!("good: {vcpus}, {memory} of memory, {devices}, {workers}")
        }
        None => format!("good: {devices} to serve, {workers}"),
    }
}
