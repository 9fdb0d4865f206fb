//! The sockets of `pollux serve`, with a device served on each.
use super::dataplane::{self, Dataplane};
use crate::examine::Examined;
use pollux_core::{
    config::{Config, Device, Transport},
    stats::StatsSegment,
    transport::{
        DeviceHandle,
        vhost_user::{
            Server,
            socket::{Listener, SocketError, SocketSpec},
            socket_activation::InheritedSockets,
        },
    },
};
use std::io;
use tracing::info;

/// Why a configuration without mistakes could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is nothing to serve.
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
    /// There is nothing to serve it on.
    #[error("{device}: {cause}")]
    Socket { device: String, cause: SocketError },
    /// There is nobody to serve it.
    #[error("{device}: cannot start to serve it: {cause}")]
    Server { device: String, cause: io::Error },
    /// The service manager and the configuration do not agree.
    #[error(
        "the service manager has opened what no device is served on: {0}; write the path as the socket of a device, or \
         the name of a device as FileDescriptorName= in the socket unit"
    )]
    Unclaimed(String),
}

/// Everything that is served. The fields are dropped in this order: servers drain their devices, which flush and close
/// their backends; only then may the workers go that serve them.
pub(crate) struct Exports {
    servers: Vec<Server>,
    dataplane: Dataplane,
}

impl Exports {
    /// Opens the backends, starts the workers, and serves each device on a socket that was inherited for it, or else on
    /// one of its own. On an error all that was made is undone.
    pub(crate) fn start(
        examined: &Examined,
        mut inherited: InheritedSockets,
        stats: StatsSegment,
    ) -> Result<Self, Error> {
        let config = &examined.config;
        let claimed = claim(config, &mut inherited)?;
        let (dataplane, models) = Dataplane::new(examined, stats)?;
        // What is left of the start is quick: whoever connects from here on is served.
        inherited.admit();
        let mut exports = Exports { servers: Vec::new(), dataplane };
        for ((device, model), listener) in config.devices.iter().zip(models).zip(claimed) {
            let name = || device.name.value.clone();
            let listener = match listener {
                Some(listener) => listener,
                None => Listener::bind(spec(device)).map_err(|cause| Error::Socket { device: name(), cause })?,
            };
            let place = listener.path().display().to_string();
            let server = Server::start(model, listener, spec(device).any_file)
                .map_err(|cause| Error::Server { device: name(), cause })?;
            exports.servers.push(server);
            info!("{}: serving on {place}", device.name.value);
        }
        Ok(exports)
    }

    /// The verbs of each device.
    pub(crate) fn handles(&self) -> Vec<DeviceHandle> {
        self.servers.iter().map(Server::handle).collect()
    }

    /// Drains and flushes every device, closes all connections, removes the sockets that were made. What is left is
    /// what they did.
    pub(crate) fn stop(mut self) -> StatsSegment {
        self.dataplane.stats.keep_records();
        // All begin before any is waited for: a slow backend holds up its own device alone.
        self.servers.iter().for_each(Server::begin_stop);
        self.servers.iter_mut().for_each(Server::stop);
        self.dataplane.stats.clone()
    }
}

fn spec(device: &Device) -> &SocketSpec {
    match &device.transport {
        Transport::VhostUser(socket) => &socket.value,
        Transport::Pci | Transport::Mmio => unreachable!("devices of a file that is served have a socket"),
    }
}

/// The inherited socket of each device: the one that is bound to its path, or else the one with its name.
fn claim(config: &Config, inherited: &mut InheritedSockets) -> Result<Vec<Option<Listener>>, Error> {
    let devices = &config.devices;
    let mut claimed: Vec<_> = devices.iter().map(|device| inherited.bound_to(&spec(device).path)).collect();
    for (device, listener) in devices.iter().zip(&mut claimed).filter(|(_, listener)| listener.is_none()) {
        *listener = inherited.named(&device.name.value);
    }
    let rest = inherited.rest().iter().map(|socket| format!("{} ({})", socket.listener.path().display(), socket.name));
    match rest.collect::<Vec<_>>().join(", ") {
        rest if rest.is_empty() => Ok(claimed),
        rest => Err(Error::Unclaimed(rest)),
    }
}
