//! ELF kernels by the PVH boot protocol (Xen: docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h).
use super::{
    initrd::{Initrd, load_initrd, low_memory_end},
    kernel::{Error, KernelSpec},
    memory_map::memory_map,
    registers::Entry,
};
use crate::layout::{COMMAND_LINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO};
use linux_loader::{
    configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator},
    loader::{
        Elf, KernelLoader, PvhBootCapability,
        elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
    },
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// "xEn3" with the highest bit set.
const START_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_VERSION: u32 = 1;

pub(super) fn load(
    memory: &GuestMemoryMmap<()>,
    kernel: &KernelSpec,
    image: &mut File,
    rsdp: GuestAddress,
) -> Result<Entry, Error> {
    let path = || kernel.image.clone();
    let loaded = Elf::load(memory, None, image, None).map_err(|source| Error::Load {
        path: path(),
        available: low_memory_end(memory),
        source,
    })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(Error::NoPvhEntry { path: path() });
    };
    let available = low_memory_end(memory);
    if loaded.kernel_end > available {
        return Err(Error::TooLittleMemory { what: "kernel", path: path(), needed: loaded.kernel_end, available });
    }
    clear_tails(memory, image).map_err(|source| Error::Read { what: "kernel", path: path(), source })?;
    let initrd = load_initrd(memory, kernel, loaded.kernel_end, u64::MAX)?;
    write_start_info(memory, initrd, rsdp)?;
    Ok(Entry::Pvh { rip: entry.raw_value(), start_info: PVH_START_INFO.raw_value() })
}

/// Zeroes the part of the file's segments beyond their contents, which the loader does not touch: after a reset of the
/// machine, old data is still there.
fn clear_tails(memory: &GuestMemoryMmap<()>, image: &mut File) -> io::Result<()> {
    const HEADER_BYTES: usize = 64;
    const SEGMENT_BYTES: usize = 56;
    const LOADED: u64 = 1;
    let mut header = [0; HEADER_BYTES];
    image.rewind()?;
    image.read_exact(&mut header)?;
    let (table, count) = (field(&header, 32, 8), field(&header, 56, 2));
    image.seek(SeekFrom::Start(table))?;
    for _ in 0..count {
        let mut segment = [0; SEGMENT_BYTES];
        image.read_exact(&mut segment)?;
        let (kind, address) = (field(&segment, 0, 4), field(&segment, 24, 8));
        let (in_file, in_memory) = (field(&segment, 32, 8), field(&segment, 40, 8));
        if kind == LOADED && in_memory > in_file {
            clear(memory, address.saturating_add(in_file), in_memory - in_file).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Zeroes a range, up to the end of memory.
fn clear(memory: &GuestMemoryMmap<()>, start: u64, bytes: u64) -> Result<(), GuestMemoryError> {
    static ZEROES: [u8; 0x1_0000] = [0; 0x1_0000];
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(ZEROES.len() as u64);
        memory.write_slice(&ZEROES[..part as usize], GuestAddress(start.saturating_add(done)))?;
        done += part;
    }
    Ok(())
}

/// A little-endian field of `length` bytes.
fn field(bytes: &[u8], offset: usize, length: usize) -> u64 {
    bytes[offset..offset + length].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn write_start_info(memory: &GuestMemoryMmap<()>, initrd: Option<Initrd>, rsdp: GuestAddress) -> Result<(), Error> {
    let map: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start,
            size: range.bytes,
            type_: range.kind as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .into_iter()
        .map(|initrd| hvm_modlist_entry { paddr: initrd.address, size: initrd.bytes, ..Default::default() })
        .collect();
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        nr_modules: modules.len() as u32,
        modlist_paddr: PVH_MODULES.raw_value(),
        cmdline_paddr: COMMAND_LINE.raw_value(),
        rsdp_paddr: rsdp.raw_value(),
        memmap_paddr: PVH_MEMORY_MAP.raw_value(),
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, PVH_START_INFO);
    params.set_sections(&map, PVH_MEMORY_MAP);
    if !modules.is_empty() {
        params.set_modules(&modules, PVH_MODULES);
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|_| GuestMemoryError::InvalidGuestAddress(PVH_START_INFO))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_a_segment_has_beyond_the_file_is_zeroed() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        memory.write_slice(&[0xff; 0x4_0000], GuestAddress(0x1_0000)).expect("written");
        let mut header = [0u8; 64];
        header[32] = 64; // the table follows the header
        header[56] = 1;
        let mut segment = [0u8; 56];
        segment[0] = 1;
        segment[26] = 0x01; // at 0x10000
        segment[32] = 0x10; // 0x10 bytes in the file
        segment[42] = 0x02; // 0x20000 in memory
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&header).expect("written");
        file.write_all(&segment).expect("written");
        clear_tails(&memory, &mut file).expect("no error");
        let at = |address| memory.read_obj::<u8>(GuestAddress(address)).expect("in memory");
        assert_eq!([at(0x1_000f), at(0x1_0010), at(0x2_ffff), at(0x3_0000)], [0xff, 0, 0, 0xff]);
    }
}
