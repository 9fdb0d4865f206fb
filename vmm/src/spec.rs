//! The description from which a [`crate::Machine`] is made.
use crate::{boot::KernelSpec, console::ConsoleSpec};
use kvm_bindings::{kvm_regs, kvm_sregs};
use pollux_core::memory::GuestMemory;
use std::{fmt, io, sync::Arc};

/// A virtual machine without its virtio devices, which are attached later.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Appears in messages.
    pub name: String,
    /// The virtual processors; the first one boots.
    pub vcpus: Vec<VcpuSpec>,
    /// Size of guest memory in bytes; whole pages.
    pub memory_bytes: u64,
    /// Back guest memory with pages of this size in bytes (2 MiB or 1 GiB).
    pub hugepages: Option<u64>,
    /// What the processors run.
    pub boot: Boot,
    /// What the serial port is connected to.
    pub console: ConsoleSpec,
    /// What a reset by the guest does.
    pub reboot: Reboot,
}

/// A virtual processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSpec {
    /// The host CPU that its thread is pinned to.
    pub pin: Option<usize>,
}

/// What a machine does when its guest resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reboot {
    /// Starts again from the kernel's files, as a PC does.
    #[default]
    Restart,
    /// Ends the run with [`crate::Exit::Reboot`].
    Exit,
}

/// What a machine starts with.
#[derive(Clone)]
pub enum Boot {
    /// A Linux kernel.
    Kernel(KernelSpec),
    /// Code provided by the caller, for tests and benchmarks.
    Raw(Arc<dyn RawGuest>),
}

impl fmt::Debug for Boot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Boot::Kernel(kernel) => kernel.fmt(formatter),
            Boot::Raw(_) => formatter.write_str("Raw"),
        }
    }
}

/// A guest that is put into memory by hand: for tests and benchmarks, not for users.
///
/// The machine is the same as for a kernel, but no boot structures and no ACPI tables are written, and all vCPUs
/// run from the start. Addresses are those of [`crate::layout`]: PCI functions are found by reading ECAM, virtio-mmio
/// devices lie one behind the other, and a byte written to the sleep control port powers off.
pub trait RawGuest: Send + Sync {
    /// Writes code, tables and data into guest memory. Called before each start, after a reset too.
    ///
    /// # Errors
    /// End the run of the machine.
    fn load(&self, memory: &GuestMemory) -> io::Result<()>;

    /// Sets the registers with which a vCPU starts. They come as KVM resets them: 16-bit real mode.
    fn registers(&self, vcpu: usize, registers: &mut kvm_regs, system: &mut kvm_sregs);
}
