//! The file descriptors that this process may have open.
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pollux_core::config::{Config, Diagnostic, Transport};
use tracing::{debug, warn};

/// Of the process itself and of a worker.
const OF_PROCESS: u64 = 6;
const OF_WORKER: u64 = 2;
/// Of a device that nobody uses: its socket, what wakes its thread, what its medium reports changes by.
const OF_DEVICE: u64 = 5;
/// Of a medium in use, besides: its file, as the plugin `uring` opens it.
const OF_MEDIUM: u64 = 5;
/// Of a queue in use: its kick, its call and what it reports failures by; and as the plugin `uring` opens it, a
/// ring, what wakes its worker, twice, and an open file to sync through.
const OF_QUEUE: u64 = 7;
/// Of a front end: its connection, and the regions of its guest's memory while they are mapped.
const OF_FRONT_END: u64 = 10;

/// Raises the limit as far as this process may. Media, sockets, and the events and memory regions that front ends hand
/// over each take one; the limit that every process begins with is 1024, for the sake of select(2), which nothing here
/// uses.
pub(crate) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most));
    match raised {
        Ok(most) => debug!("up to {most} file descriptors"),
        Err(error) => warn!("cannot raise the limit of file descriptors: {error}"),
    }
}

/// Whether there are enough for what the configuration describes: an error if it cannot start, a warning if that leaves
/// no room for all of its front ends.
pub(crate) fn examine(config: &Config) -> Option<Diagnostic> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let (start, busy) = needed(config);
    let devices = config.devices.len();
    let help = format!(
        "raise the limit: `ulimit -Hn {busy}`, or LimitNOFILE={busy} in the service's unit; or serve fewer devices"
    );
    if most < start {
        let message = format!("{devices} devices take {start} file descriptors, and this process may have {most}");
        return Some(Diagnostic::error(message).help(help));
    }
    let message = format!(
        "{devices} devices take {busy} file descriptors when all are in use, and this process may have {most}: the \
         last front ends will be turned away"
    );
    (most < busy).then(|| Diagnostic::warning(message).help(help))
}

/// How many are needed to start, and with every queue in use.
fn needed(config: &Config) -> (u64, u64) {
    let mut start = OF_PROCESS + OF_WORKER * config.workers.len() as u64;
    let mut in_use = 0;
    for device in &config.devices {
        let queues = device.queues.value.count as u64;
        start += OF_DEVICE;
        in_use += OF_QUEUE * queues + if device.block().is_some() { OF_MEDIUM } else { 0 };
        match device.transport {
            Transport::VhostUser(_) => in_use += OF_FRONT_END,
            // An event for each queue's kicks, and one for each interrupt, before any is in use.
            Transport::Pci | Transport::Mmio => start += 2 * queues,
        }
    }
    (start, start + in_use)
}
