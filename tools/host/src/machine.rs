//! The machine: what `[vm]` describes. A process has one, or none.
use crate::device::DeviceError;
use pollux_core::config::{self, Console, MachineLimits, Vm};
use pollux_vmm::{
    Boot, ConsoleSpec, KernelSpec, Machine, MachineSpec, Reboot, Shutdown, VcpuSpec,
    layout::{COMMAND_LINE_BYTES_MAX, MEMORY_BYTES_MIN, MMIO_DEVICES_MAX, PCI_DEVICES_MAX, VCPUS_MAX},
};

/// The machine's name in messages: that of its table.
const MACHINE_NAME: &str = "vm";

/// Why a machine cannot be made, changed or run.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is one.
    #[error("vm: there is a machine already; a process has one")]
    Exists,
    /// There is none.
    #[error("vm: there is no machine; make one first")]
    None,
    /// It runs.
    #[error("vm: the machine runs, and has no controller to plug devices in with; attach them before it is started")]
    Running,
    /// The device cannot be attached.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The machine refuses. A device that could not be attached is closed.
    #[error(transparent)]
    Machine(#[from] pollux_vmm::machine::Error),
}

/// Where the machine is.
#[derive(Default)]
pub(crate) enum Slot {
    /// There is none.
    #[default]
    None,
    /// It does not run.
    Stopped(Box<Machine>),
    /// The thread that runs it holds it, until the run ends or is asked to stop.
    Running(MachineSpec, Shutdown),
}

/// The limits of a machine of `pollux_vmm`.
pub fn limits() -> MachineLimits {
    MachineLimits {
        vcpus_max: VCPUS_MAX,
        memory_bytes_min: MEMORY_BYTES_MIN,
        cmdline_bytes_max: COMMAND_LINE_BYTES_MAX,
        pci_devices_max: PCI_DEVICES_MAX,
        mmio_devices_max: MMIO_DEVICES_MAX,
    }
}

/// The kernel and what it is started with.
pub fn kernel_spec(vm: &Vm) -> KernelSpec {
    KernelSpec {
        image: vm.kernel.value.clone(),
        initrd: vm.initrd.as_ref().map(|initrd| initrd.value.clone()),
        command_line: vm.cmdline.clone(),
    }
}

/// The machine that `[vm]` describes.
pub fn machine_spec(vm: &Vm) -> MachineSpec {
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
