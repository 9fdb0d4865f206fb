//! A checked configuration becomes a machine with its devices: backends opened, workers started, devices attached.
use crate::examine::{Examined, open_options};
use pollux_core::{
    config::{self, Config, Console, Device, DeviceKind, Limits},
    device::{
        DeviceModel,
        blk::{Blk, BlkOptions},
    },
    plugin::{BackendError, BlockBackend},
    stats::StatsSegment,
    worker::{Worker, WorkerError, WorkerHandle},
};
use pollux_vmm::{
    Boot, ConsoleSpec, KernelSpec, Machine, MachineSpec, Reboot, Transport, VcpuSpec,
    layout::{COMMAND_LINE_BYTES_MAX, MEMORY_BYTES_MIN, MMIO_DEVICES_MAX, PCI_DEVICES_MAX, VCPUS_MAX},
};
use std::{io, sync::Arc};
use tracing::info;

/// The machine's name in messages: that of its table.
const MACHINE_NAME: &str = "vm";

/// What a machine of `pollux_vmm` can take.
pub(crate) fn limits() -> Limits {
    Limits {
        vcpus_max: VCPUS_MAX,
        memory_bytes_min: MEMORY_BYTES_MIN,
        cmdline_bytes_max: COMMAND_LINE_BYTES_MAX,
        pci_devices_max: PCI_DEVICES_MAX,
        mmio_devices_max: MMIO_DEVICES_MAX,
    }
}

/// Why a configuration without mistakes could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The machine could not be made or a device not attached.
    #[error(transparent)]
    Machine(#[from] pollux_vmm::machine::Error),
    /// A medium that could be looked at could not be opened: most likely somebody else uses it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A worker could not be started.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// There is no memory for statistics.
    #[error("cannot make the statistics: {0}")]
    Statistics(io::Error),
}

/// Everything that runs. The fields are dropped in this order: with the machine go its devices, which drain their
/// queues and flush, and close their backends; only then may the workers go that serve them.
pub(crate) struct Assembly {
    pub(crate) machine: Machine,
    pub(crate) stats: StatsSegment,
    /// For their destructors.
    _workers: Vec<Worker>,
}

impl Assembly {
    /// Makes everything, in this order: memory and machine, backends, workers, devices. No vCPU runs yet. On an error
    /// all that was made is undone.
    pub(crate) fn new(examined: &Examined) -> Result<Self, Error> {
        let config = &examined.config;
        let machine = Machine::new(machine_spec(config))?;
        let backends = open_backends(examined)?;
        let stats = StatsSegment::anonymous(queue_count(config)).map_err(Error::Statistics)?;
        let workers = spawn_workers(config)?;
        let handles: Vec<WorkerHandle> = workers.iter().map(Worker::handle).collect();
        let mut assembly = Assembly { machine, stats, _workers: workers };
        for (device, backend) in config.devices.iter().zip(backends) {
            let model = model(device, backend, &handles, &assembly.stats);
            let transport = match device.transport {
                config::Transport::Pci => Transport::Pci,
                config::Transport::Mmio => Transport::Mmio,
            };
            let location = assembly.machine.attach(model, transport)?;
            info!("{}: attached at {location:?}", device.name.value);
        }
        Ok(assembly)
    }
}

/// The kernel and what it is started with.
pub(crate) fn kernel_spec(config: &Config) -> KernelSpec {
    let vm = &config.vm;
    KernelSpec {
        image: vm.kernel.value.clone(),
        initrd: vm.initrd.as_ref().map(|initrd| initrd.value.clone()),
        command_line: vm.cmdline.clone(),
    }
}

fn machine_spec(config: &Config) -> MachineSpec {
    let vm = &config.vm;
    MachineSpec {
        name: MACHINE_NAME.into(),
        vcpus: vm.vcpus.iter().map(|pin| VcpuSpec { pin: pin.as_ref().map(|pin| pin.value) }).collect(),
        memory_bytes: vm.memory_bytes,
        hugepages: vm.hugepages,
        boot: Boot::Kernel(kernel_spec(config)),
        console: match &vm.console {
            Console::Terminal => ConsoleSpec::Terminal,
            Console::Stdout => ConsoleSpec::Stdout,
            Console::Off => ConsoleSpec::Null,
            Console::File(path) => ConsoleSpec::File(path.clone()),
        },
        reboot: match vm.reboot {
            config::Reboot::Restart => Reboot::Restart,
            config::Reboot::Exit => Reboot::Exit,
        },
    }
}

/// A backend for each device, in their order. Devices that share a medium have an instance each: queues are numbered
/// within one.
fn open_backends(examined: &Examined) -> Result<Vec<Arc<BlockBackend>>, BackendError> {
    let open = |device: &Device| {
        let DeviceKind::Blk(blk) = &device.kind;
        let name = &blk.block.value;
        let block = examined.config.block(name).expect("references were checked");
        BlockBackend::open(&examined.plugins[name], name, &open_options(block))
    };
    examined.config.devices.iter().map(open).collect()
}

fn queue_count(config: &Config) -> usize {
    config
        .devices
        .iter()
        .map(|device| match &device.kind {
            DeviceKind::Blk(blk) => blk.queues.value,
        })
        .sum()
}

/// Starts the workers that serve a device. Another would burn its CPU for nothing.
fn spawn_workers(config: &Config) -> Result<Vec<Worker>, WorkerError> {
    let serves = |worker: &config::Worker, device: &Device| match &device.kind {
        DeviceKind::Blk(blk) => blk.workers.iter().any(|name| name.value == worker.name.value),
    };
    config
        .workers
        .iter()
        .filter(|worker| config.devices.iter().any(|device| serves(worker, device)))
        .map(|worker| Worker::spawn(&worker.name.value, worker.cpu.as_ref().map(|cpu| cpu.value), worker.idle))
        .collect()
}

fn model(
    device: &Device,
    backend: Arc<BlockBackend>,
    workers: &[WorkerHandle],
    stats: &StatsSegment,
) -> Box<dyn DeviceModel> {
    let DeviceKind::Blk(blk) = &device.kind;
    let handle = |name: &str| workers.iter().find(|worker| worker.name() == name).expect("references were checked");
    let options = BlkOptions {
        name: device.name.value.clone(),
        serial: blk.serial.clone(),
        queues: blk.queues.value,
        queue_size: blk.queue_size,
        workers: blk.workers.iter().map(|worker| handle(&worker.value).clone()).collect(),
        latency_sample: blk.latency_sample,
    };
    Box::new(Blk::new(options, backend, stats))
}
