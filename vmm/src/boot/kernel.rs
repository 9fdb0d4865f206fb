//! A kernel, and why it cannot be started.
use pollux_core::memory::MemoryError;
use std::{io, path::PathBuf};
use thiserror::Error;
use vm_memory::GuestMemoryError;

/// A kernel and what it is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// A bzImage or an ELF file with a PVH entry.
    pub image: PathBuf,
    /// The initial RAM disk, if any.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; at most 2047 bytes.
    pub command_line: String,
}

/// Why a kernel cannot be started.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a kernel of a known kind.
    #[error(
        "kernel {}: neither a bzImage (such as /boot/vmlinuz-…) nor an ELF file (vmlinux); is it compressed?",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
    },
    /// An ELF file that cannot be started directly.
    #[error(
        "kernel {}: this ELF file has no PVH entry; use a kernel built with CONFIG_PVH=y, or its bzImage",
        path.display()
    )]
    NoPvhEntry {
        /// The file.
        path: PathBuf,
    },
    /// A 32-bit bzImage.
    #[error("kernel {}: this bzImage has no 64-bit entry; use an x86-64 kernel", path.display())]
    No64BitEntry {
        /// The file.
        path: PathBuf,
    },
    /// The kernel's parts do not fit or are damaged.
    #[error(
        "kernel {}: cannot load it: {source}; is the file whole, and are {} MiB of memory below 3 GiB enough for it?",
        path.display(),
        available >> 20
    )]
    Load {
        /// The file.
        path: PathBuf,
        /// First address behind low memory.
        available: u64,
        /// What linux-loader said.
        source: linux_loader::loader::Error,
    },
    /// Too little memory.
    #[error(
        "{what} {} needs memory up to {needed:#x}, but the machine has {available:#x} below 3 GiB; give it more \
         memory", path.display()
    )]
    TooLittleMemory {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// First address behind what is needed.
        needed: u64,
        /// First address behind low memory.
        available: u64,
    },
    /// The command line is too long or has a zero in it.
    #[error("the kernel command line is {length} bytes long; at most {max} without a NUL are possible")]
    CommandLine {
        /// Its length in bytes.
        length: usize,
        /// How long it may be.
        max: usize,
    },
    /// There is no memory to check the kernel in.
    #[error(transparent)]
    Reserve(#[from] MemoryError),
    /// A table could not be written; the memory is too small for any kernel.
    #[error("cannot write boot tables to guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}
