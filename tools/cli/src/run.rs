//! `pollux run`
use crate::{
    Shared, Status,
    assemble::{
        dataplane,
        machine::{self, Assembly},
    },
    examine::Examined,
    signals,
    start::{Arguments, start},
    stats_output::{self, StatsPlan},
};
use pollux_core::config::Purpose;
use pollux_vmm::{Exit, Shutdown};
use std::io;
use tracing::info;

/// Why the command failed, past the configuration.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Stats(#[from] stats_output::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Assemble(#[from] machine::Error),
    #[error(transparent)]
    Machine(#[from] pollux_vmm::machine::Error),
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, shared: &Shared) -> Status {
    start(arguments, Purpose::Run, shared, run_machine)
}

fn run_machine(examined: &Examined, stats: StatsPlan) -> Result<(), Error> {
    // First of all that handles signals, so that it comes last: a SIGBUS that a mapping survives is no end of the
    // process.
    pollux_vmm::restore_terminal_at_exit();
    let output = stats.open()?;
    let terminal = signals::ControllingTerminal::find();
    let shutdown = Shutdown::on_termination().map_err(Error::Signals)?;
    let hangup = signals::block_hangup().map_err(Error::Signals)?;
    let segment = output.segment(dataplane::capacity(&examined.config))?;
    let mut assembly = Assembly::new(examined, segment)?;
    let (devices, stopped) = (assembly.machine.devices(), shutdown.clone());
    hangup
        .on_each(move || {
            if terminal.has_gone() {
                stopped.request_by(nix::libc::SIGHUP);
            } else {
                info!("SIGHUP: measuring all media again");
                devices.refresh();
            }
        })
        .map_err(Error::Signals)?;
    let result = assembly.machine.run(&shutdown);
    match &result {
        Ok(Exit::PowerOff) => info!("the guest has powered off"),
        Ok(Exit::Reboot) => info!("the guest has rebooted, and the configuration says to end then"),
        Ok(Exit::Stopped(Some(signal))) => info!("stopped by signal {signal}"),
        Ok(Exit::Stopped(None)) => info!("stopped"),
        // The caller shows it.
        Err(_) => {}
    }
    let stats = assembly.dataplane.stats.clone();
    let exits = assembly.machine.exit_counts();
    stats.keep_records();
    // Devices end here, workers after them: whatever is in flight is drained and flushed before the numbers are read.
    drop(assembly);
    output.write(&stats.snapshot(), &exits)?;
    result.map(drop).map_err(Error::Machine)
}
