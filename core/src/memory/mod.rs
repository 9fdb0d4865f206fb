//! Guest memory: memfd-backed and shared, and the one place where a guest's address becomes a host pointer.
//!
//! | module | holds |
//! |---|---|
//! | [`dirty_log`] | which pages the device has written, for live migration |
//! | [`foreign`] | memory of a guest that another process runs, mapped from a file which that process may shrink |
//! | [`guard`] | what keeps this process alive when it does; a separate crate, so that plugins can use it, too |
//! | [`quota`] | how much of it may be mapped |
pub mod dirty_log;
pub mod foreign;
pub mod quota;
mod segments;

use crate::error::WithCauses;
pub use dirty_log::DirtyLog;
pub use foreign::ForeignMapping;
use pollux_abi::block_v1::MemoryRegion;
pub use pollux_guard as guard;
pub use quota::Quota;
pub(crate) use segments::scatter;
use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    sync::Arc,
};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    mmap::{MmapRegionBuilder, MmapRegionError},
};

/// The mapping type that all of Pollux uses: no dirty bitmap.
pub type GuestMap = GuestMemoryMmap<()>;

/// Why guest memory could not be created.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memory file could not be created or sized.
    #[error("cannot reserve {bytes} bytes of guest memory: {}{}", WithCauses(.cause), hint(*.hugepages))]
    Reserve {
        /// Size asked for.
        bytes: u64,
        /// Page size asked for.
        hugepages: Option<u64>,
        /// The system's answer.
        cause: io::Error,
    },
    /// The file could not be mapped.
    #[error("cannot map {bytes} bytes of guest memory at guest address {address:#x}: {cause}")]
    Map {
        /// Guest-physical address.
        address: u64,
        /// Size of the region.
        bytes: u64,
        /// The mapping's error.
        cause: String,
    },
    /// Two regions overlap in guest addresses.
    #[error("guest memory regions overlap: {length:#x} bytes at {address:#x} reach into the one at {next:#x}")]
    Overlap {
        /// Guest-physical address of the lower one.
        address: u64,
        /// Its size in bytes.
        length: u64,
        /// Guest-physical address of the upper one.
        next: u64,
    },
}

fn hint(hugepages: Option<u64>) -> String {
    match hugepages {
        Some(size) => format!(
            "; reserve huge pages first, such as: echo N > /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
            size >> 10
        ),
        None => String::new(),
    }
}

/// All memory of one guest. Clones share it; it is unmapped when the last one goes.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    map: Arc<GuestMap>,
    /// Of regions that are not in `owned`.
    page_size: u64,
    /// The regions of another process's memory, in order; empty for memory of our own.
    owned: Arc<[Arc<ForeignMapping>]>,
}

/// A region of the memory of a guest that another process runs.
#[derive(Clone, Debug)]
pub struct ForeignRegion {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Where it is mapped, all of it and nothing else.
    pub mapping: Arc<ForeignMapping>,
    /// The mapped file, which plugins are told about.
    pub file: Arc<File>,
    /// Where in the file the mapping begins.
    pub file_offset: u64,
}

impl GuestMemory {
    /// Creates memory at `ranges` of guest-physical addresses, each with its length in bytes, in one memfd. With
    /// `hugepages`, it consists of pages of that size, all allocated now: a guest must not die of a page fault later.
    ///
    /// # Errors
    /// Not enough memory or huge pages, or ranges that overlap.
    pub fn create(ranges: &[(u64, u64)], hugepages: Option<u64>) -> Result<Self, MemoryError> {
        let bytes: u64 = ranges.iter().map(|range| range.1).sum();
        let reserve = |cause| MemoryError::Reserve { bytes, hugepages, cause };
        let file = memfd(hugepages).map_err(reserve)?;
        file.set_len(bytes).map_err(reserve)?;
        seal_size(&file).map_err(reserve)?;
        if hugepages.is_some() {
            allocate(&file, bytes).map_err(reserve)?;
        }
        let mut regions = Vec::new();
        let mut offset = 0;
        for &(address, length) in ranges {
            let failed = |cause: String| MemoryError::Map { address, bytes: length, cause };
            let part = file.try_clone().map_err(|error| failed(error.to_string()))?;
            let mapping = MmapRegion::from_file(FileOffset::new(part, offset), length as usize)
                .map_err(|error| failed(error.to_string()))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(address))
                .ok_or_else(|| failed("the range wraps around".into()))?;
            regions.push(region);
            offset += length;
        }
        let map = GuestMap::from_regions(regions).map_err(|error| MemoryError::Map {
            address: ranges.first().map_or(0, |range| range.0),
            bytes,
            cause: error.to_string(),
        })?;
        Ok(GuestMemory { map: Arc::new(map), page_size: hugepages.unwrap_or(4096), owned: Arc::default() })
    }

    /// Memory of a guest that another process runs. The regions may come in any order, and there may be none.
    /// `[control]`
    ///
    /// # Errors
    /// Regions that overlap or wrap around, that are mapped read-only, or that begin inside a page of the file: pages
    /// of the host and of the guest would not be aligned.
    pub fn from_foreign(mut regions: Vec<ForeignRegion>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.guest_address);
        for pair in regions.windows(2) {
            let (address, length) = (pair[0].guest_address, pair[0].mapping.len() as u64);
            let next = pair[1].guest_address;
            if next - address < length {
                return Err(MemoryError::Overlap { address, length, next });
            }
        }
        let (mut parts, mut owned) = (Vec::new(), Vec::new());
        for region in regions {
            parts.push(foreign_part(&region)?);
            owned.push(region.mapping);
        }
        let map = match parts.first() {
            None => GuestMap::new(),
            Some(first) => {
                let address = first.start_addr().0;
                let bytes = parts.iter().map(|part| part.len()).sum();
                GuestMap::from_regions(parts).map_err(|error| MemoryError::Map {
                    address,
                    bytes,
                    cause: error.to_string(),
                })?
            }
        };
        Ok(GuestMemory { map: Arc::new(map), page_size: 4096, owned: owned.into() })
    }

    /// Whether it is the memory of a guest that another process runs, which may take pages back and replace them at any
    /// time, as a balloon or free page reporting does.
    pub fn is_foreign(&self) -> bool {
        !self.owned.is_empty()
    }

    /// Whether another process has taken away memory that was then accessed: see [`ForeignMapping::is_damaged`]. Always
    /// `false` for memory of our own.
    pub fn is_damaged(&self) -> bool {
        self.owned.iter().any(|mapping| mapping.is_damaged())
    }

    /// Memory that the caller has mapped.
    pub fn from_map(map: Arc<GuestMap>) -> Self {
        GuestMemory { map, page_size: 4096, owned: Arc::default() }
    }

    /// The mapping, for set-up work. A clone of it does not keep the memory of another process mapped: keep a clone of
    /// this [`GuestMemory`] instead.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Whether both are the same mapping.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.map, &other.map)
    }

    /// A translator for one queue.
    pub fn translator(&self) -> Translator {
        Translator::new(self.clone())
    }

    /// The regions as they are announced to plugins.
    pub fn regions(&self) -> Vec<MemoryRegion> {
        self.map
            .iter()
            .enumerate()
            .map(|(index, region)| {
                let file = region.file_offset();
                MemoryRegion {
                    guest_address: region.start_addr().0,
                    base: region.as_ptr(),
                    length: region.len() as usize,
                    file: file.map_or(-1, |file| file.file().as_raw_fd()),
                    flags: 0,
                    file_offset: file.map_or(0, |file| file.start()),
                    page_size: self.owned.get(index).map_or(self.page_size, |mapping| mapping.page_size() as u64),
                    reserved: [0; 2],
                }
            })
            .collect()
    }
}

/// A region as the `vm-memory` crate has it, which does not own the memory.
fn foreign_part(region: &ForeignRegion) -> Result<GuestRegionMmap, MemoryError> {
    let (address, length) = (region.guest_address, region.mapping.len());
    let failed = |cause: String| MemoryError::Map { address, bytes: length as u64, cause };
    let offset = region.file_offset;
    if !region.mapping.is_writable() {
        return Err(failed("it is mapped read-only".into()));
    }
    let builder = MmapRegionBuilder::new(length)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_hugetlbfs(region.mapping.page_size() > 4096)
        .with_file_offset(FileOffset::from_arc(region.file.clone(), offset));
    // SAFETY: the mapping has `length` bytes from there on, and the memory that is made of this region keeps it.
    let part =
        unsafe { builder.with_raw_mmap_pointer(region.mapping.as_ptr()) }.build().map_err(|error| match error {
            MmapRegionError::InvalidPointer => failed(format!("offset {offset} of its file is inside a page")),
            error => failed(error.to_string()),
        })?;
    GuestRegionMmap::new(part, GuestAddress(address)).ok_or_else(|| failed("the range wraps around".into()))
}

fn memfd(hugepages: Option<u64>) -> io::Result<File> {
    match hugepages {
        // The page size goes into the flags as its logarithm (memfd_create(2)).
        Some(size) => {
            let huge = libc::MFD_HUGETLB | (size.trailing_zeros() << libc::MFD_HUGE_SHIFT);
            memfd_with(c"pollux-guest", libc::MFD_ALLOW_SEALING | huge)
        }
        None => memfd_with(c"pollux-guest", libc::MFD_ALLOW_SEALING),
    }
}

/// A file in memory that can be shared with another process by its descriptor.
#[cfg(test)]
pub(crate) fn anonymous_file(name: &CStr) -> io::Result<File> {
    memfd_with(name, 0)
}

/// A file in memory of `bytes` bytes, whose size nobody can change.
pub(crate) fn sealed_file(name: &CStr, bytes: u64) -> io::Result<File> {
    let file = memfd_with(name, libc::MFD_ALLOW_SEALING)?;
    file.set_len(bytes)?;
    seal_size(&file)?;
    Ok(file)
}

/// Nobody can change the file's size from now on: otherwise, another process could truncate it through /proc/PID/fd and
/// take away memory that is in use.
fn seal_size(file: &File) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    Ok(fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?)
}

fn memfd_with(name: &CStr, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string; the call touches no other memory.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One region as the hot path sees it.
#[derive(Clone, Copy, Debug)]
struct Region {
    guest: u64,
    length: u64,
    host: *mut u8,
}

impl Region {
    /// The host address of `length` bytes at `address`, if all of them lie in this region. This cannot overflow: the
    /// offset is known to be below the region's length before anything is subtracted from that.
    #[inline(always)]
    fn find(&self, address: u64, length: u64) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.guest);
        if offset < self.length && length <= self.length - offset {
            return Some(self.host.wrapping_add(offset as usize));
        }
        None
    }
}

/// Turns guest-physical ranges into host pointers, for one queue: the choke point through which every guest address
/// goes. It keeps the region of the last hit by value, which answers most calls in a nanosecond.
///
/// The pointers stay valid as long as the translator lives, which keeps the mapping alive. The guest may change what
/// they point to at any time: read a byte once, and never make a slice of it.
#[derive(Debug)]
pub struct Translator {
    last: Region,
    regions: Box<[Region]>,
    memory: GuestMemory,
}

// SAFETY: the region pointers lead to a shared mapping that `memory` keeps alive; a translator moves between threads
// with its queue.
unsafe impl Send for Translator {}

impl Translator {
    fn new(memory: GuestMemory) -> Self {
        let mut regions: Vec<Region> = memory
            .map
            .iter()
            .map(|region| Region { guest: region.start_addr().0, length: region.len(), host: region.as_ptr() })
            .collect();
        regions.sort_by_key(|region| region.guest);
        let last = regions.first().copied().unwrap_or(Region { guest: 0, length: 0, host: std::ptr::null_mut() });
        Translator { last, regions: regions.into(), memory }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The host address of `length` bytes at guest-physical `address`, or `None` if they are not all in one region.
    #[inline(always)]
    pub fn translate(&mut self, address: u64, length: u64) -> Option<*mut u8> {
        match self.last.find(address, length) {
            Some(host) => Some(host),
            None => self.translate_elsewhere(address, length),
        }
    }

    #[cold]
    #[inline(never)]
    fn translate_elsewhere(&mut self, address: u64, length: u64) -> Option<*mut u8> {
        let index = self.regions.partition_point(|region| region.guest <= address).checked_sub(1)?;
        let region = self.regions[index];
        let host = region.find(address, length)?;
        self.last = region;
        Some(host)
    }

    /// The guest address of a host address in this translator's memory. Not for the hot path.
    #[cold]
    pub fn guest_address(&self, host: *const u8) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = (host.addr() as u64).wrapping_sub(region.host.addr() as u64);
            (offset < region.length).then(|| region.guest + offset)
        })
    }

    /// The part of the range that lies in the region of its first byte: host address and length in bytes. For ranges
    /// that reach over several regions.
    #[cold]
    pub fn translate_part(&mut self, address: u64, length: u64) -> Option<(*mut u8, u64)> {
        let host = self.translate(address, 1)?;
        // `translate` left the region in `last`.
        let room = self.last.length - (address - self.last.guest);
        Some((host, room.min(length)))
    }
}

/// Prefetches the cache line of an address that is read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    // SAFETY: a prefetch of any address is harmless.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_regions() -> GuestMemory {
        GuestMemory::create(&[(0, 0x10000), (0x10000, 0x10000), (1 << 32, 0x1000)], None).expect("memory")
    }

    #[test]
    fn translates_within_a_region_and_refuses_everything_else() {
        let mut translator = two_regions().translator();
        let base = translator.translate(0, 1).expect("first byte");
        assert_eq!(translator.translate(0xffff, 1), Some(base.wrapping_add(0xffff)));
        assert_eq!(translator.translate(0xffff, 2), None, "crosses into the next region");
        assert!(translator.translate(0x10000, 0x10000).is_some());
        assert_eq!(translator.translate(0x20000, 1), None, "hole");
        assert_eq!(translator.translate(u64::MAX, 2), None, "wraps");
        assert_eq!(translator.translate(0x1000, u64::MAX), None, "huge length");
        assert!(translator.translate((1 << 32) + 0xfff, 1).is_some());
        assert_eq!(translator.translate((1 << 32) + 0xfff, 2), None);
    }

    #[test]
    fn splits_a_range_at_the_region_border() {
        let mut translator = two_regions().translator();
        let (_, length) = translator.translate_part(0xfff0, 0x20).expect("first part");
        assert_eq!(length, 0x10);
        let (_, length) = translator.translate_part(0x10000, 0x10).expect("second part");
        assert_eq!(length, 0x10);
        assert!(translator.translate_part(0x20000, 1).is_none());
    }

    #[test]
    fn names_what_to_do_when_huge_pages_are_missing() {
        // 64 TiB of huge pages exist nowhere.
        let error = GuestMemory::create(&[(0, 1 << 46)], Some(2 << 20)).expect_err("no such memory");
        let message = error.to_string();
        assert!(message.contains("hugepages-2048kB/nr_hugepages"), "{message}");
    }
}
