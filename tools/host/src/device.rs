//! Devices: what `[device.NAME]` describes, each in front of a medium that is open as long as the device exists.
use crate::{
    action::{Action, Unfinished},
    backend::Backend,
};
use pollux_core::{
    config,
    device::{
        DeviceModel,
        blk::{Blk, BlkOptions},
    },
    plugin::BackendError as MediumError,
    queue::QueueOptions,
    stats::StatsSegment,
    transport::{DeviceHandle, HandleError, vhost_user::Server},
    worker::WorkerHandle,
};
use pollux_vmm::Location;

/// Of a longer name, a record of the statistics keeps so many bytes.
const RECORDED_BYTES: usize = 64;

/// Why a device cannot be added, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is one of that name.
    #[error("{0}: there is a device of that name already; remove it first, or choose another name")]
    Exists(String),
    /// There is none of that name.
    #[error("{name}: there is no device of that name; there {there}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        there: String,
    },
    /// What it refers to is not there.
    #[error("{device}: there is no {what} {name}; there {there}")]
    Dangling {
        /// The device.
        device: String,
        /// `block` or `worker`.
        what: &'static str,
        /// The unknown name.
        name: String,
        /// Those that there are.
        there: String,
    },
    /// It has no worker.
    #[error("{0}: it has no worker to serve it; name at least one")]
    NoWorker(String),
    /// Its backend serves fewer queues.
    #[error("{device}: it has {queues} queues, but its backend serves {most}; give it {most} or less")]
    Queues {
        /// The device.
        device: String,
        /// Its queues.
        queues: usize,
        /// Those that the backend serves.
        most: usize,
    },
    /// Another device uses the medium, and one of the two writes.
    #[error(
        "{device}: device {other} uses the same medium (block {block}), and they would not only read it; give each a \
         medium of its own, or write read_only = true in both blocks"
    )]
    SameMedium {
        /// The device.
        device: String,
        /// The other device.
        other: String,
        /// The other device's backend.
        block: String,
    },
    /// The statistics have no room for its queues.
    #[error("{0}: the statistics have no room for its queues; remove another device, or start with more")]
    Statistics(String),
    /// Its medium cannot be opened: most likely it is in use elsewhere.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// There is nothing to pause or to resume.
    #[error("{0}: nobody reaches it; serve it or attach it first")]
    Unreached(String),
    /// It cannot be paused or resumed.
    #[error(transparent)]
    Handle(#[from] HandleError),
    /// It is used.
    #[error("{device}: it is {place}")]
    InUse {
        /// The device.
        device: String,
        /// By whom, and what to do.
        place: String,
    },
    /// Something else is being done to it.
    #[error("{device}: it is {doing}, since {seconds} s; try again later")]
    Busy {
        /// The device.
        device: String,
        /// What is being done to it.
        doing: &'static str,
        /// For how long already.
        seconds: u64,
    },
    /// It has not ended.
    #[error("{device}: {cause}")]
    Unfinished {
        /// The device.
        device: String,
        /// Why.
        cause: Unfinished,
    },
    /// Everything is being stopped.
    #[error("{0}: nothing is added any more: the process is about to end")]
    Stopping(String),
}

impl DeviceError {
    /// Something else is being done to the device.
    pub(crate) fn busy(device: &str, action: Action) -> Self {
        DeviceError::Busy { device: device.into(), doing: action.doing, seconds: action.seconds() }
    }
}

/// The description of a device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Its name.
    pub name: String,
    /// The workers that its queues are assigned to in turn; at least one.
    pub workers: Vec<String>,
    /// How its queues are set up.
    pub queues: QueueOptions,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Blk(BlkSpec),
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkSpec {
    /// The backend behind it.
    pub block: String,
    /// What the guest reads as its serial number, at most 20 bytes; empty: the device's name.
    pub serial: String,
}

impl DeviceSpec {
    /// The backend behind it.
    pub fn block(&self) -> &str {
        match &self.kind {
            DeviceKind::Blk(blk) => &blk.block,
        }
    }

    /// `type` in the configuration.
    pub fn type_name(&self) -> &'static str {
        match self.kind {
            DeviceKind::Blk(_) => "blk",
        }
    }
}

impl From<&config::Device> for DeviceSpec {
    fn from(device: &config::Device) -> Self {
        let config::DeviceKind::Blk(blk) = &device.kind;
        DeviceSpec {
            name: device.name.value.clone(),
            workers: device.workers.iter().map(|worker| worker.value.clone()).collect(),
            queues: device.queues.value,
            kind: DeviceKind::Blk(BlkSpec { block: blk.block.value.clone(), serial: blk.serial.clone() }),
        }
    }
}

/// Where a device is.
pub(crate) enum Place {
    /// It is neither served nor attached.
    Idle(Box<dyn DeviceModel>),
    /// Front ends reach it over a socket.
    Exported(Server),
    /// The machine's guest reaches it.
    Attached(Location, DeviceHandle),
    /// On its way from one to the other.
    Changing(Action),
}

/// A device that was added.
pub(crate) struct HostedDevice {
    pub(crate) spec: DeviceSpec,
    pub(crate) place: Place,
}

impl HostedDevice {
    /// Its verbs, if it is served or attached.
    pub(crate) fn handle(&self) -> Option<DeviceHandle> {
        match &self.place {
            Place::Exported(server) => Some(server.handle()),
            Place::Attached(_, handle) => Some(handle.clone()),
            Place::Idle(_) | Place::Changing(_) => None,
        }
    }

    /// Begins to drain it without waiting, if possible.
    pub(crate) fn begin_stop(&self) {
        if let Place::Exported(server) = &self.place {
            server.begin_stop();
        }
    }

    /// Drains it and closes its medium.
    pub(crate) fn stop(self) {
        match self.place {
            // Not merely stopped: a verb that is at work would close the medium later, on its own thread.
            Place::Exported(server) => drop(server.into_model()),
            Place::Idle(model) => drop(model),
            // The machine's devices went with it.
            Place::Attached(..) | Place::Changing(_) => {}
        }
    }
}

/// Opens the medium and makes the model in front of it.
pub(crate) fn open_model(
    spec: &DeviceSpec,
    backend: &Backend,
    workers: Vec<WorkerHandle>,
    stats: &StatsSegment,
) -> Result<Box<dyn DeviceModel>, DeviceError> {
    let medium = backend.open()?;
    let DeviceKind::Blk(blk) = &spec.kind;
    let options = BlkOptions { name: spec.name.clone(), serial: blk.serial.clone(), workers, queues: spec.queues };
    let model = Blk::new(options, medium, stats);
    let recorded = &spec.name[..spec.name.floor_char_boundary(RECORDED_BYTES)];
    let counted = stats.blk_queues().filter(|queue| queue.device() == recorded).count();
    if counted < spec.queues.count {
        return Err(DeviceError::Statistics(spec.name.clone()));
    }
    Ok(Box::new(model))
}
