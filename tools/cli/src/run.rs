//! `pollux run`
use crate::{
    Shared, Status,
    examine::Examined,
    signals,
    start::{Arguments, start},
    stats_output::{self, StatsPlan},
};
use pollux_core::config::Purpose;
use pollux_host::{Host, StartError, configuration, machine::MachineError};
use pollux_vmm::{Exit, Shutdown};
use std::{io, sync::Arc};
use tracing::info;

/// Why the command failed, past the configuration.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Stats(#[from] stats_output::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Machine(#[from] MachineError),
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
    let segment = output.segment(configuration::capacity(&examined.config))?;
    let host = Arc::new(Host::new(&examined.plugins, segment));
    host.start_machine(&examined.config, &examined.backends)?;
    let (refreshed, stopped) = (host.clone(), shutdown.clone());
    hangup
        .on_each(move || {
            if terminal.has_gone() {
                stopped.request_by(nix::libc::SIGHUP);
            } else {
                info!("SIGHUP: measuring all media again");
                refreshed.refresh();
            }
        })
        .map_err(Error::Signals)?;
    let result = host.run_machine(&shutdown);
    match &result {
        Ok(Exit::PowerOff) => info!("the guest has powered off"),
        Ok(Exit::Reboot) => info!("the guest has rebooted, and the configuration says to end then"),
        Ok(Exit::Stopped(Some(signal))) => info!("stopped by signal {signal}"),
        Ok(Exit::Stopped(None)) => info!("stopped"),
        // The caller shows it.
        Err(_) => {}
    }
    let exits = host.exit_counts();
    // Devices end here, workers after them: whatever is in flight is drained and flushed before the numbers are read.
    host.stop();
    output.write(&host.stats().snapshot(), &exits)?;
    result.map(drop).map_err(Error::Machine)
}
