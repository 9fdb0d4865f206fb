//! Direct boot: the kernel, its initrd and what it wants to be told, put into guest memory; no firmware runs.
//!
//! Two kinds of kernel files: a bzImage (`/boot/vmlinuz-…`), entered by its 64-bit entry, and an ELF file with a
//! PVH entry (`vmlinux`), which saves the guest the decompression.

mod bzimage;
pub(crate) mod cpuid;
mod memory_map;
mod pvh;
pub(crate) mod registers;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use pollux_core::memory::{GuestMemory, MemoryError};
use thiserror::Error;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::layout::{COMMAND_LINE, COMMAND_LINE_BYTES_MAX, RESET_PORT, RESET_VALUE, RESET_VECTOR, memory_regions};

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
    /// The file is no kernel that we know.
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

/// How the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// 64-bit mode with identity-mapped memory; rsi points to the zero page.
    LongMode { rip: u64, zero_page: u64 },
    /// 32-bit protected mode without paging; rbx points to the start info.
    Pvh { rip: u64, start_info: u64 },
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    address: u64,
    bytes: u64,
}

/// Checks that a machine with so much memory can start this kernel: it is loaded into memory of its own, which is
/// given back at once. For checking a configuration without a machine; takes some ten milliseconds.
///
/// # Errors
/// What would keep the machine from starting.
pub fn check(kernel: &KernelSpec, memory_bytes: u64) -> Result<(), Error> {
    let ranges: Vec<(u64, u64)> =
        memory_regions(memory_bytes).into_iter().map(|(address, bytes)| (address.raw_value(), bytes)).collect();
    let memory = GuestMemory::create(&ranges, None)?;
    // Nothing runs here that would look for ACPI tables.
    load(memory.map(), kernel, GuestAddress(0)).map(drop)
}

/// Loads the kernel and what belongs to it. `rsdp` is where the ACPI tables were put. Called before every start;
/// the files are read again.
pub(crate) fn load(memory: &GuestMemoryMmap<()>, kernel: &KernelSpec, rsdp: GuestAddress) -> Result<Entry, Error> {
    write_command_line(memory, &kernel.command_line)?;
    memory.write_slice(&reset_code(), RESET_VECTOR)?;
    let read_error = |source| Error::Read { what: "kernel", path: kernel.image.clone(), source };
    let mut image = File::open(&kernel.image).map_err(read_error)?;
    let mut magic = [0; 4];
    let is_elf = match image.read_exact(&mut magic) {
        Ok(()) => magic == *b"\x7fELF",
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(read_error(error)),
    };
    if is_elf { pvh::load(memory, kernel, &mut image, rsdp) } else { bzimage::load(memory, kernel, &mut image, rsdp) }
}

/// Code for the reset vector: resets the machine by its reset register.
///
/// Linux takes the "hardware-reduced" flag of ACPI as a reason not to write the FADT's reset register. It tries EFI and
/// then, there being none, goes back to real mode and jumps to the reset vector (arch/x86/kernel/reboot.c).
fn reset_code() -> [u8; 9] {
    let [port_low, port_high] = RESET_PORT.to_le_bytes();
    [
        0xba,
        port_low,
        port_high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

fn write_command_line(memory: &GuestMemoryMmap<()>, text: &str) -> Result<(), Error> {
    if text.len() > COMMAND_LINE_BYTES_MAX || text.contains('\0') {
        return Err(Error::CommandLine { length: text.len(), max: COMMAND_LINE_BYTES_MAX });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(memory.write_slice(&bytes, COMMAND_LINE)?)
}

/// Puts the initrd, if there is one, at the end of low memory but below `end_max`. `kernel_end` is the first
/// address that the kernel does not need for itself.
fn load_initrd(
    memory: &GuestMemoryMmap<()>,
    kernel: &KernelSpec,
    kernel_end: u64,
    end_max: u64,
) -> Result<Option<Initrd>, Error> {
    let Some(path) = &kernel.initrd else {
        return Ok(None);
    };
    let (mut file, bytes) =
        open_initrd(path).map_err(|source| Error::Read { what: "initrd", path: path.clone(), source })?;
    let available = low_memory_end(memory).min(end_max);
    let address = available.saturating_sub(bytes) & !0xfff;
    if address < kernel_end {
        return Err(Error::TooLittleMemory {
            what: "initrd",
            path: path.clone(),
            needed: kernel_end.saturating_add(bytes),
            available,
        });
    }
    let result = memory.read_exact_volatile_from(GuestAddress(address), &mut file, bytes as usize);
    result.map_err(|error| Error::Read { what: "initrd", path: path.clone(), source: io::Error::other(error) })?;
    Ok(Some(Initrd { address, bytes }))
}

fn open_initrd(path: &Path) -> io::Result<(File, u64)> {
    let mut file = File::open(path)?;
    let bytes = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok((file, bytes))
}

/// The first address behind the memory that starts at 0.
fn low_memory_end(memory: &GuestMemoryMmap<()>) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap()
    }

    fn spec(image: &Path) -> KernelSpec {
        KernelSpec { image: image.to_owned(), initrd: None, command_line: String::new() }
    }

    fn message(kernel: &KernelSpec) -> String {
        load(&memory(), kernel, GuestAddress(0xe0000)).unwrap_err().to_string()
    }

    #[test]
    fn bad_kernels_are_named_with_a_way_out() {
        assert_eq!(
            message(&spec(Path::new("/nowhere/vmlinuz"))),
            "cannot read kernel /nowhere/vmlinuz: No such file or directory (os error 2)"
        );
        let mut file = tempfile::NamedTempFile::new().unwrap();
        assert!(message(&spec(file.path())).contains("neither a bzImage"));
        file.write_all(&[0; 4096]).unwrap();
        assert!(message(&spec(file.path())).contains("neither a bzImage"));
    }

    #[test]
    fn an_elf_file_without_pvh_entry_is_refused() {
        // This test's own executable is an ELF file that nobody can boot.
        let own = std::env::current_exe().unwrap();
        let text = message(&spec(&own));
        assert!(text.contains("no PVH entry") || text.contains("cannot load"), "{text}");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let mut kernel = spec(Path::new("/nowhere"));
        kernel.command_line = "x".repeat(2048);
        assert!(message(&kernel).contains("2048 bytes long; at most 2047"));
    }

    #[test]
    fn the_initrd_ends_below_the_end_of_memory() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0x5a; 5000]).unwrap();
        let mut kernel = spec(Path::new("/nowhere"));
        kernel.initrd = Some(file.path().to_owned());
        let memory = memory();
        let initrd = load_initrd(&memory, &kernel, 1 << 20, u64::MAX).unwrap().unwrap();
        assert_eq!((initrd.address % 4096, initrd.bytes), (0, 5000));
        assert!(initrd.address + initrd.bytes <= 16 << 20);
        let last: u8 = memory.read_obj(GuestAddress(initrd.address + 4999)).unwrap();
        assert_eq!(last, 0x5a);
        let error = load_initrd(&memory, &kernel, (16 << 20) - 4096, u64::MAX).unwrap_err();
        assert!(error.to_string().contains("give it more memory"), "{error}");
    }
}
