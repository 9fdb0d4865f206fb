//! What a plugin is told of guest memory. Frozen.
use abi_stable::StableAbi;

/// A region of guest memory in the host's address space. Segments lie in such regions, mostly: the host may also pass
/// memory of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct MemoryRegion {
    /// Guest-physical address of the first byte.
    pub guest_address: u64,
    /// Host address of the first byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub length: usize,
    /// File that backs the region, or -1. The host keeps it open until the region is removed.
    pub file: i32,
    /// Zero: the region may be read and written.
    pub flags: u32,
    /// Where in the file the region begins, in bytes.
    pub file_offset: u64,
    /// Page size of the mapping in bytes: 4096, or that of the huge pages.
    pub page_size: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<MemoryRegion>() == 64);
