//! Why a vCPU could not go on.
use std::io;
use thiserror::Error;

/// Why a vCPU could not go on.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// `KVM_RUN` failed.
    #[error("vCPU {index}: KVM_RUN failed: {source}")]
    Run {
        /// Which vCPU.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host has no memory for an address of the guest.
    #[error(
        "vCPU {index}: the host has no memory behind the guest's ({source}); most likely memory or huge pages ran out: \
         free or reserve more of them, or give the machine less memory"
    )]
    Memory {
        /// Which vCPU.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// KVM could not do what the guest asked for, mostly an instruction that it cannot emulate.
    #[error(
        "vCPU {index}: KVM gave up at rip {rip:#x} (suberror {suberror}: {meaning}); the guest did something \
         that this host's KVM does not emulate"
    )]
    Internal {
        /// Which vCPU.
        index: usize,
        /// Address of the instruction.
        rip: u64,
        /// KVM's number for what went wrong.
        suberror: u32,
        /// The number in words.
        meaning: &'static str,
    },
    /// The processor refused the guest's state.
    #[error("vCPU {index}: the processor refused to enter the guest (reason {reason:#x}, on CPU {cpu})")]
    Entry {
        /// Which vCPU.
        index: usize,
        /// The processor's reason.
        reason: u64,
        /// The host CPU on which it happened.
        cpu: u32,
    },
    /// An exit that this machine neither uses nor asked for.
    #[error("vCPU {index}: unexpected exit {exit}")]
    Unexpected {
        /// Which vCPU.
        index: usize,
        /// The exit and its details.
        exit: String,
    },
    /// Our own mistake.
    #[error("vCPU {index}: its thread panicked: {message}")]
    Panicked {
        /// Which vCPU.
        index: usize,
        /// What it panicked with.
        message: String,
    },
}
