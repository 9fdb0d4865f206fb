//! `pollux serve`
use crate::{
    Shared, Status,
    examine::Examined,
    fail, service_manager, signals,
    start::{Arguments, start},
    stats_output::{self, StatsPlan},
};
use pollux_core::{config::Purpose, transport::vhost_user::socket_activation::InheritedSockets};
use pollux_host::{Host, StartError, configuration};
use pollux_vmm::Shutdown;
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
}

/// Runs the command.
pub(crate) fn serve(arguments: &Arguments, shared: &Shared) -> Status {
    // First, while their descriptors have the numbers that they came with.
    let inherited = match InheritedSockets::take() {
        Ok(inherited) => inherited,
        Err(error) => return fail(&error),
    };
    start(arguments, Purpose::Serve, shared, |examined, stats| serve_devices(examined, inherited, stats))
}

fn serve_devices(examined: &Examined, inherited: InheritedSockets, stats: StatsPlan) -> Result<(), Error> {
    let output = stats.open()?;
    let shutdown = Shutdown::on_termination().map_err(Error::Signals)?;
    let hangup = signals::block_hangup().map_err(Error::Signals)?;
    signals::ignore_terminal_output();
    let segment = output.segment(configuration::capacity(&examined.config))?;
    let host = Arc::new(Host::new(&examined.plugins, segment));
    host.start_exports(&examined.config, &examined.backends, inherited)?;
    let refreshed = host.clone();
    hangup
        .on_each(move || {
            info!("SIGHUP: measuring all media again");
            refreshed.refresh();
        })
        .map_err(Error::Signals)?;
    service_manager::ready();
    shutdown.wait();
    if let Some(signal) = shutdown.signal() {
        info!("stopped by signal {signal}");
    }
    service_manager::stopping();
    // Whatever is in flight is drained and flushed before the numbers are read.
    host.stop();
    output.write(&host.stats().snapshot(), &[])?;
    Ok(())
}
