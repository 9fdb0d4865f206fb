//! The machine of `pollux run`, with the devices attached to it.
use super::dataplane::{self, Dataplane};
use crate::examine::Examined;
use pollux_core::{
    config::{self, Console, Limits, Vm},
    stats::StatsSegment,
};
use pollux_vmm::{
    Boot, ConsoleSpec, KernelSpec, Machine, MachineSpec, Reboot, Transport, VcpuSpec,
    layout::{COMMAND_LINE_BYTES_MAX, MEMORY_BYTES_MIN, MMIO_DEVICES_MAX, PCI_DEVICES_MAX, VCPUS_MAX},
};
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
    /// There is nothing to attach to it.
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
}

/// Everything that runs. The fields are dropped in this order: with the machine go its devices, which drain their
/// queues and flush, and close their backends; only then may the workers go that serve them.
pub(crate) struct Assembly {
    pub(crate) machine: Machine,
    pub(crate) dataplane: Dataplane,
}

impl Assembly {
    /// Makes everything, in this order: memory and machine, backends, workers, devices. No vCPU runs yet. On an error
    /// all that was made is undone.
    pub(crate) fn new(examined: &Examined, stats: StatsSegment) -> Result<Self, Error> {
        let config = &examined.config;
        let vm = config.vm.as_ref().expect("a file that is run has a [vm]");
        let machine = Machine::new(machine_spec(vm))?;
        let (dataplane, models) = Dataplane::new(examined, stats)?;
        let mut assembly = Assembly { machine, dataplane };
        for (device, model) in config.devices.iter().zip(models) {
            let transport = match &device.transport {
                config::Transport::Pci => Transport::Pci,
                config::Transport::Mmio => Transport::Mmio,
                config::Transport::VhostUser(_) => unreachable!("the devices of a machine are on a bus"),
            };
            let location = assembly.machine.attach(model, transport)?;
            info!("{}: attached at {location:?}", device.name.value);
        }
        Ok(assembly)
    }
}

/// The kernel and what it is started with.
pub(crate) fn kernel_spec(vm: &Vm) -> KernelSpec {
    KernelSpec {
        image: vm.kernel.value.clone(),
        initrd: vm.initrd.as_ref().map(|initrd| initrd.value.clone()),
        command_line: vm.cmdline.clone(),
    }
}

fn machine_spec(vm: &Vm) -> MachineSpec {
    MachineSpec {
        name: MACHINE_NAME.into(),
        vcpus: vm.vcpus.iter().map(|pin| VcpuSpec { pin: pin.as_ref().map(|pin| pin.value) }).collect(),
        memory_bytes: vm.memory_bytes,
        hugepages: vm.hugepages,
        boot: Boot::Kernel(kernel_spec(vm)),
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
