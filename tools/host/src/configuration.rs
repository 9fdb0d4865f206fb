//! A checked configuration file becomes objects, by the same public verbs that other callers use.
use crate::{
    action::FOREVER,
    backend::{Backend, BackendError},
    device::DeviceError,
    export::{ExportError, ExportSpec},
    host::Host,
    machine::{MachineError, machine_spec},
    worker::WorkerError,
};
use pollux_core::{
    config::{self, Config, Device},
    stats::Capacity,
    transport::vhost_user::{
        socket::{Listener, SocketSpec},
        socket_activation::InheritedSockets,
    },
};
use pollux_vmm::Transport;
use std::collections::HashMap;

/// Why a configuration without mistakes could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An export.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The service manager and the configuration do not agree.
    #[error(
        "the service manager has opened what no device is served on: {0}; write the path as the socket of a device, or \
         the name of a device as FileDescriptorName= in the socket unit"
    )]
    Unclaimed(String),
}

/// Backends whose media were inspected, by their names.
pub type Backends = HashMap<String, Backend>;

/// The capacity needed in the statistics.
pub fn capacity(config: &Config) -> Capacity {
    Capacity { workers: config.workers.len(), queues: queue_count(config), backends: config.devices.len() }
}

/// Number of queues of all devices.
pub fn queue_count(config: &Config) -> usize {
    config.devices.iter().map(|device| device.queues.value.count).sum()
}

impl Host {
    /// Makes everything that a file with a machine describes, in this order: machine, workers, backends, devices. No
    /// vCPU runs yet. Waits as long as media take to open. On an error, drop the host.
    ///
    /// # Errors
    /// The first thing that could not be made.
    pub fn start_machine(&self, config: &Config, backends: &Backends) -> Result<(), StartError> {
        let vm = config.vm.as_ref().expect("a file that is run has a [vm]");
        self.make_machine(machine_spec(vm))?;
        self.add_devices(config, backends)?;
        for device in &config.devices {
            let transport = match &device.transport {
                config::Transport::Pci => Transport::Pci,
                config::Transport::Mmio => Transport::Mmio,
                config::Transport::VhostUser(_) => unreachable!("the devices of a machine are on a bus"),
            };
            self.attach(&device.name.value, transport)?;
        }
        Ok(())
    }

    /// Makes everything that a file without a machine describes, and serves each device on the socket inherited for it,
    /// or else on one of its own. Waits as long as media take to open. On an error, drop the host.
    ///
    /// # Errors
    /// The first thing that could not be made.
    pub fn start_exports(
        &self,
        config: &Config,
        backends: &Backends,
        mut inherited: InheritedSockets,
    ) -> Result<(), StartError> {
        let claimed = claim(config, &mut inherited)?;
        self.add_devices(config, backends)?;
        // The rest of the start is quick: clients that connect from here on are served.
        inherited.admit();
        for (device, listener) in config.devices.iter().zip(claimed) {
            let socket = socket_spec(device);
            let spec = match listener {
                Some(listener) => ExportSpec::Inherited { listener, any_file: socket.any_file },
                None => ExportSpec::Made(socket.clone()),
            };
            self.add_export(&device.name.value, spec)?;
        }
        Ok(())
    }

    /// Starts only the workers that serve a device, since any other would burn its CPU for nothing; then adds the
    /// backends and opens the devices, in the order of the file.
    fn add_devices(&self, config: &Config, backends: &Backends) -> Result<(), StartError> {
        self.reserve_cpus(taken_cpus(config));
        let serves = |worker: &config::Worker, device: &Device| {
            device.workers.iter().any(|name| name.value == worker.name.value)
        };
        for worker in config.workers.iter().filter(|worker| config.devices.iter().any(|device| serves(worker, device)))
        {
            self.add_worker(worker.into())?;
        }
        let uses =
            |block: &config::Block, device: &Device| device.block().is_some_and(|name| name.value == block.name.value);
        for block in config.blocks.iter().filter(|block| config.devices.iter().any(|device| uses(block, device))) {
            self.add_probed_backend(backends[&block.name.value].clone())?;
        }
        for device in &config.devices {
            self.add_device(device.into(), FOREVER)?;
        }
        Ok(())
    }
}

/// CPUs that are reserved for a worker or a vCPU.
fn taken_cpus(config: &Config) -> Vec<usize> {
    let workers = config.workers.iter().filter_map(|worker| worker.cpu.as_ref());
    let vcpus = config.vm.iter().flat_map(|vm| vm.vcpus.iter().flatten());
    workers.chain(vcpus).map(|cpu| cpu.value).collect()
}

fn socket_spec(device: &Device) -> &SocketSpec {
    match &device.transport {
        config::Transport::VhostUser(socket) => &socket.value,
        config::Transport::Pci | config::Transport::Mmio => {
            unreachable!("devices of a file that is served have a socket")
        }
    }
}

/// The inherited socket of each device: the one that is bound to its path, or else the one with its name.
fn claim(config: &Config, inherited: &mut InheritedSockets) -> Result<Vec<Option<Listener>>, StartError> {
    let devices = &config.devices;
    let mut claimed: Vec<_> = devices.iter().map(|device| inherited.bound_to(&socket_spec(device).path)).collect();
    for (device, listener) in devices.iter().zip(&mut claimed).filter(|(_, listener)| listener.is_none()) {
        *listener = inherited.named(&device.name.value);
    }
    let rest = inherited.rest().iter().map(|socket| format!("{} ({})", socket.listener.path().display(), socket.name));
    match rest.collect::<Vec<_>>().join(", ") {
        rest if rest.is_empty() => Ok(claimed),
        rest => Err(StartError::Unclaimed(rest)),
    }
}
