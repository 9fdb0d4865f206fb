//! bzImage kernels by the 64-bit boot protocol (Linux: Documentation/arch/x86/boot.rst).
use super::{
    initrd::{Initrd, load_initrd, low_memory_end},
    kernel::{Error, KernelSpec},
    memory_map::memory_map,
    registers::Entry,
};
use crate::layout::{BOOT_PAGE_TABLES, COMMAND_LINE, HIGH_LOAD_ADDRESS, ZERO_PAGE};
use linux_loader::{
    configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator},
    loader::{
        BzImage, Error as LoaderError, KernelLoader,
        bootparam::{boot_e820_entry, boot_params, setup_header},
    },
};
use std::fs::File;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// xloadflags: the kernel has a 64-bit entry, 0x200 behind its start.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64_OFFSET: u64 = 0x200;
/// The loader has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn load(
    memory: &GuestMemoryMmap<()>,
    kernel: &KernelSpec,
    image: &mut File,
    rsdp: GuestAddress,
) -> Result<Entry, Error> {
    let path = || kernel.image.clone();
    let load_address = GuestAddress(HIGH_LOAD_ADDRESS);
    let loaded = BzImage::load(memory, Some(load_address), image, None).map_err(|source| {
        use linux_loader::loader::bzimage::Error as BzError;
        match source {
            LoaderError::Bzimage(BzError::InvalidBzImage | BzError::ReadBzImageHeader | BzError::Underflow) => {
                Error::NotAKernel { path: path() }
            }
            source => Error::Load { path: path(), available: low_memory_end(memory), source },
        }
    })?;
    let Some(header) = loaded.setup_header else {
        return Err(Error::NotAKernel { path: path() });
    };
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Error::No64BitEntry { path: path() });
    }
    // The kernel unpacks itself to its preferred address and needs init_size bytes there before it looks at the
    // memory map.
    let unpacked_end = header.pref_address.saturating_add(header.init_size.into());
    let kernel_end = loaded.kernel_end.max(unpacked_end);
    let available = low_memory_end(memory);
    if kernel_end > available {
        return Err(Error::TooLittleMemory { what: "kernel", path: path(), needed: kernel_end, available });
    }
    let initrd_end_max = u64::from(header.initrd_addr_max).saturating_add(1);
    let initrd = load_initrd(memory, kernel, kernel_end, initrd_end_max)?;
    write_zero_page(memory, header, initrd, rsdp)?;
    write_page_tables(memory)?;
    Ok(Entry::LongMode { rip: load_address.raw_value() + ENTRY_64_OFFSET, zero_page: ZERO_PAGE.raw_value() })
}

fn write_zero_page(
    memory: &GuestMemoryMmap<()>,
    header: setup_header,
    initrd: Option<Initrd>,
    rsdp: GuestAddress,
) -> Result<(), Error> {
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: rsdp.raw_value(), ..Default::default() };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = COMMAND_LINE.raw_value() as u32;
    if let Some(initrd) = initrd {
        // Below initrd_addr_max, which has 32 bits.
        page.hdr.ramdisk_image = initrd.address as u32;
        page.hdr.ramdisk_size = initrd.bytes as u32;
    }
    let map = memory_map(memory);
    page.e820_entries = map.len() as u8;
    for (index, range) in map.into_iter().enumerate() {
        page.e820_table[index] = boot_e820_entry { addr: range.start, size: range.bytes, r#type: range.kind as u32 };
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&page, ZERO_PAGE), memory)
        .map_err(|_| GuestMemoryError::InvalidGuestAddress(ZERO_PAGE))?;
    Ok(())
}

/// Maps the first 4 GiB to themselves with 2 MiB pages, as the 64-bit entry wants to find at least the kernel,
/// the zero page and the command line mapped.
fn write_page_tables(memory: &GuestMemoryMmap<()>) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let level4 = BOOT_PAGE_TABLES;
    let level3 = level4.unchecked_add(0x1000);
    let level2 = level3.unchecked_add(0x1000);
    memory.write_obj(level3.raw_value() | PRESENT_WRITABLE, level4)?;
    for gib in 0..4u64 {
        let table = level2.raw_value() + gib * 0x1000;
        memory.write_obj(table | PRESENT_WRITABLE, level3.unchecked_add(gib * 8))?;
    }
    for page in 0..4 * 512u64 {
        let entry = page << 21 | PRESENT_WRITABLE | LARGE;
        memory.write_obj(entry, level2.unchecked_add(page * 8))?;
    }
    Ok(())
}
