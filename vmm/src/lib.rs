//! The KVM virtual machine of Pollux: just enough of a PC for a stock kernel, and virtio devices on it.
//!
//! | module | noun |
//! |---|---|
//! | [`spec`] | what a machine is to be |
//! | [`machine`] | the machine: memory and devices that stay |
//! | `parts`, `attached` | what of it stays from run to run; a device and what connects it |
//! | [`error`] | why it could not be made or could not continue |
//! | `cycle` | one run of it, from power-on to power-off or reset |
//! | [`vm`], `vcpu`, [`irq`] | KVM's virtual machine, its processors, its interrupt routing |
//! | `vcpu_error` | why a processor could not continue |
//! | [`boot`] | kernel, initrd, registers, processor identification |
//! | `acpi` | the tables by which a kernel finds everything |
//! | [`layout`] | every address and port |
//! | [`bus`], `platform`, `serial` | the port and memory buses and the machine's own devices |
//! | [`pci`], `mmio` | how virtio devices are connected; their registers are in `pollux_core::transport` |
//! | [`console`], `terminal`, [`shutdown`] | the outside world |
//! | [`verbs`] | its devices, for the program that runs it |
//! | [`exits`] | how often vCPUs left guest mode |
//!
//! No device model and no plugin is named here: devices come as `Box<dyn DeviceModel>`.
//!
//! Unsafe code is denied except in the modules marked below: KVM's shared structures, signal handlers, and system calls
//! that the standard library does not have.
#![deny(unsafe_code)]

mod acpi;
mod attached;
pub mod boot;
pub mod bus;
#[allow(unsafe_code)] // read(2) on standard input, fcntl(2)
pub mod console;
mod control;
#[allow(unsafe_code)] // poll(2)
mod cycle;
pub mod error;
pub mod exits;
pub mod irq;
pub mod layout;
pub mod machine;
mod mmio;
mod parts;
pub mod pci;
mod platform;
mod serial;
#[allow(unsafe_code)] // signal handlers
pub mod shutdown;
pub mod spec;
#[allow(unsafe_code)] // terminal settings, signal handlers
mod terminal;
#[allow(unsafe_code)] // kvm_run, signals
mod vcpu;
mod vcpu_error;
pub mod verbs;
#[allow(unsafe_code)] // guest memory given to KVM
pub mod vm;

pub use boot::KernelSpec;
pub use console::ConsoleSpec;
pub use error::Error;
pub use exits::{ExitCounts, ExitKind};
pub use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
pub use machine::{Exit, Location, Machine, Transport};
pub use shutdown::Shutdown;
pub use spec::{Boot, MachineSpec, RawGuest, Reboot, VcpuSpec};
pub use terminal::restore_terminal_at_exit;
pub use verbs::Devices;
