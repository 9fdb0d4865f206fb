//! All objects of a host, as they are now, to be shown to people or programs.
use crate::{
    backend::Backend,
    device::{HostedDevice, Place},
    host::Host,
    machine::Slot,
    objects::Objects,
    worker::WorkerSpec,
};
use pollux_vmm::{Location, MachineSpec};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::PathBuf};

/// Everything that a process runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The machine, if there is one.
    pub machine: Option<MachineDescription>,
    /// Workers, in the order in which they were added.
    pub workers: Vec<WorkerDescription>,
    /// The plugins of the backends, each once.
    pub plugins: Vec<PluginDescription>,
    /// Backends, in the order in which they were added.
    pub backends: Vec<BackendDescription>,
    /// Devices, in the order in which they were added.
    pub devices: Vec<DeviceDescription>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineDescription {
    /// Whether its vCPUs run.
    pub running: bool,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Size of its memory in bytes.
    pub memory_bytes: u64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerDescription {
    /// Its name.
    pub name: String,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Its idle policy: `spin`, `adaptive`, `interrupt`.
    pub idle: String,
    /// The devices that it serves.
    pub devices: Vec<String>,
}

/// A plugin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginDescription {
    /// Its own name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Its file.
    pub path: PathBuf,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendDescription {
    /// Its name.
    pub name: String,
    /// The plugin's file.
    pub plugin: PathBuf,
    /// The plugin's options.
    pub options: Value,
    /// Whether its devices are read-only.
    pub read_only: bool,
    /// Size of the medium in bytes when it was inspected.
    pub capacity_bytes: u64,
    /// Size of its blocks in bytes.
    pub block_bytes: u32,
    /// The devices that use it.
    pub devices: Vec<String>,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceDescription {
    /// Its name.
    pub name: String,
    /// Its kind: `blk`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The backend behind it.
    pub block: String,
    /// The workers that serve its queues.
    pub workers: Vec<String>,
    /// Number of queues.
    pub queues: usize,
    /// Size of each.
    pub queue_size: u16,
    /// Where it is.
    #[serde(flatten)]
    pub place: DevicePlace,
}

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum DevicePlace {
    /// It is neither served nor attached.
    Idle,
    /// It is served.
    Exported {
        /// On this socket.
        socket: PathBuf,
    },
    /// The machine's guest reaches it.
    Attached {
        /// `pci` or `mmio`.
        bus: &'static str,
        /// PCI device number, or guest-physical address of the registers.
        place: u64,
    },
    /// Something is being done to it.
    Changing {
        /// What, in the middle of a sentence: `being drained`.
        doing: &'static str,
        /// For how long, in seconds.
        seconds: u64,
    },
}

impl Host {
    /// Describes all objects as they are now. `[any thread]` It does not wait.
    pub fn describe(&self) -> Description {
        self.shared.lock().describe()
    }
}

impl Objects {
    fn describe(&self) -> Description {
        let plugins: BTreeMap<_, _> =
            self.backends.iter().map(|backend| (backend.plugin().path(), backend.plugin())).collect();
        let plugin = |(path, plugin): (_, &pollux_core::plugin::Plugin)| PluginDescription {
            name: plugin.name().into(),
            version: plugin.version().into(),
            path: std::path::Path::to_owned(path),
        };
        Description {
            machine: self.machine.describe(),
            workers: self.workers.iter().map(|worker| self.describe_worker(&worker.spec)).collect(),
            plugins: plugins.into_iter().map(plugin).collect(),
            backends: self.backends.iter().map(|backend| self.describe_backend(backend)).collect(),
            devices: self.devices.iter().map(HostedDevice::describe).collect(),
        }
    }

    fn describe_worker(&self, spec: &WorkerSpec) -> WorkerDescription {
        WorkerDescription {
            name: spec.name.clone(),
            cpu: spec.cpu,
            idle: spec.idle.to_string(),
            devices: self.names_of(|device| device.spec.workers.contains(&spec.name)),
        }
    }

    fn describe_backend(&self, backend: &Backend) -> BackendDescription {
        let spec = backend.spec();
        BackendDescription {
            name: spec.name.clone(),
            plugin: backend.plugin().path().to_owned(),
            options: serde_json::from_str(&spec.options).unwrap_or_default(),
            read_only: !backend.writes(),
            capacity_bytes: backend.info().capacity,
            block_bytes: backend.info().logical_block_size,
            devices: self.names_of(|device| device.spec.block() == spec.name),
        }
    }

    fn names_of(&self, is_meant: impl Fn(&HostedDevice) -> bool) -> Vec<String> {
        self.devices.iter().filter(|device| is_meant(device)).map(|device| device.spec.name.clone()).collect()
    }
}

impl Slot {
    fn describe(&self) -> Option<MachineDescription> {
        let describe = |running, spec: &MachineSpec| {
            let (vcpus, memory_bytes) = (spec.vcpus.len(), spec.memory_bytes);
            Some(MachineDescription { running, vcpus, memory_bytes })
        };
        match self {
            Slot::None => None,
            Slot::Stopped(machine) => describe(false, machine.spec()),
            Slot::Running(spec, _) => describe(true, spec),
        }
    }
}

impl HostedDevice {
    fn describe(&self) -> DeviceDescription {
        DeviceDescription {
            name: self.spec.name.clone(),
            kind: self.spec.type_name().into(),
            block: self.spec.block().into(),
            workers: self.spec.workers.clone(),
            queues: self.spec.queues.count,
            queue_size: self.spec.queues.size,
            place: match &self.place {
                Place::Idle(_) => DevicePlace::Idle,
                Place::Exported(server) => DevicePlace::Exported { socket: server.path().to_owned() },
                Place::Attached(Location::Pci { device }, _) => {
                    DevicePlace::Attached { bus: "pci", place: (*device).into() }
                }
                Place::Attached(Location::Mmio { address, .. }, _) => {
                    DevicePlace::Attached { bus: "mmio", place: *address }
                }
                Place::Changing(action) => DevicePlace::Changing { doing: action.doing, seconds: action.seconds() },
            },
        }
    }
}
