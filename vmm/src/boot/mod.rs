//! Direct boot: the kernel, its initrd and the data that it expects, put into guest memory; no firmware runs.
//!
//! Two kinds of kernel files: a bzImage (`/boot/vmlinuz-…`), entered by its 64-bit entry, and an ELF file with a
//! PVH entry (`vmlinux`), which saves the guest the decompression.

mod bzimage;
pub(crate) mod cpuid;
mod initrd;
mod kernel;
mod memory_map;
mod pvh;
pub(crate) mod registers;

use crate::layout::{COMMAND_LINE, COMMAND_LINE_BYTES_MAX, RESET_PORT, RESET_VALUE, RESET_VECTOR, memory_regions};
pub use kernel::{Error, KernelSpec};
use pollux_core::memory::GuestMemory;
pub(crate) use registers::Entry;
use std::{
    fs::File,
    io::{self, Read},
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

/// Checks that a machine with this much memory can start this kernel: it is loaded into temporary memory. For checking
/// a configuration without a machine; takes some ten milliseconds.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, path::Path};

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("memory")
    }

    fn spec(image: &Path) -> KernelSpec {
        KernelSpec { image: image.to_owned(), initrd: None, command_line: String::new() }
    }

    fn message(kernel: &KernelSpec) -> String {
        load(&memory(), kernel, GuestAddress(0xe0000)).expect_err("it fails").to_string()
    }

    #[test]
    fn bad_kernels_are_named_with_a_way_out() {
        assert_eq!(
            message(&spec(Path::new("/nowhere/vmlinuz"))),
            "cannot read kernel /nowhere/vmlinuz: No such file or directory (os error 2)"
        );
        let mut file = tempfile::NamedTempFile::new().expect("made");
        assert!(message(&spec(file.path())).contains("neither a bzImage"));
        file.write_all(&[0; 4096]).expect("written");
        assert!(message(&spec(file.path())).contains("neither a bzImage"));
    }

    #[test]
    fn an_elf_file_without_pvh_entry_is_refused() {
        // This test's own executable is an ELF file that nobody can boot.
        let own = std::env::current_exe().expect("this program");
        let text = message(&spec(&own));
        assert!(text.contains("no PVH entry") || text.contains("cannot load"), "{text}");
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let mut kernel = spec(Path::new("/nowhere"));
        kernel.command_line = "x".repeat(2048);
        assert!(message(&kernel).contains("2048 bytes long; at most 2047"));
    }
}
