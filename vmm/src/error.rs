//! Why a machine could not be made or could not continue.
use crate::{boot, bus, pci::FunctionError, vcpu_error::VcpuError};
use pollux_core::memory::MemoryError;
use std::io;
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

/// What kept a machine from being made, or from continuing.
#[derive(Debug, Error)]
pub enum Error {
    /// /dev/kvm cannot be opened.
    #[error(
        "{machine}: cannot open /dev/kvm: {source}; is the kvm module loaded, and may this user open it (group kvm)?"
    )]
    OpenKvm {
        /// The machine's name.
        machine: String,
        /// What the system said.
        source: io::Error,
    },
    /// This host's KVM is too old.
    #[error("{machine}: this host's KVM does not offer {what}; use a newer kernel")]
    OldKvm {
        /// The machine's name.
        machine: String,
        /// What is missing.
        what: &'static str,
    },
    /// The description makes no sense.
    #[error("{machine}: {reason}")]
    Spec {
        /// The machine's name.
        machine: String,
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// There is no memory for the guest.
    #[error("{machine}: {source}")]
    Memory {
        /// The machine's name.
        machine: String,
        /// Why.
        source: MemoryError,
    },
    /// A KVM call failed.
    #[error("{machine}: cannot {action}: {source}")]
    Kvm {
        /// The machine's name.
        machine: String,
        /// What was attempted.
        action: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// A system call failed.
    #[error("{machine}: cannot {action}: {source}")]
    System {
        /// The machine's name.
        machine: String,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel cannot be started.
    #[error("{machine}: {source}")]
    Boot {
        /// The machine's name.
        machine: String,
        /// Why.
        source: boot::Error,
    },
    /// A device cannot be attached.
    #[error("{device}: {reason}")]
    Attach {
        /// The device's name.
        device: String,
        /// Why, and what to do about it.
        reason: String,
    },
    /// A device cannot be put on the bus.
    #[error("{device}: {source}")]
    Function {
        /// The device's name.
        device: String,
        /// Why.
        source: FunctionError,
    },
    /// Two devices of the machine itself collide.
    #[error(transparent)]
    Bus(#[from] bus::RangeTaken),
    /// A vCPU broke down.
    #[error("{machine}: {source}")]
    Vcpu {
        /// The machine's name.
        machine: String,
        /// Why.
        source: VcpuError,
    },
}
