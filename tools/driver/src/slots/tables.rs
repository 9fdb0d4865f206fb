//! Indirect tables, one for each slot.
use crate::memory::DriverMemory;

/// Bytes that an indirect table takes: three descriptors, and not two tables in one cache line.
const TABLE_BYTES: u64 = 64;
/// Descriptors that it has room for.
pub(super) const LENGTH: u16 = 4;

/// The tables of a ring, whose descriptors are `D`.
#[derive(Debug)]
pub(super) struct Tables<D> {
    start: *mut [D; LENGTH as usize],
    address: u64,
    count: u16,
}

// SAFETY: the pointer leads to a shared mapping, which the ring whose tables these are keeps alive.
unsafe impl<D> Send for Tables<D> {}

/// Bytes of guest memory, from a page border on, that the tables of so many slots take.
pub(super) fn bytes(slots: u16) -> u64 {
    (TABLE_BYTES * u64::from(slots)).next_multiple_of(4096)
}

impl<D: Copy> Tables<D> {
    /// Tables for so many slots at a guest-physical address, in memory that outlives them.
    pub(super) fn new(memory: &DriverMemory, address: u64, slots: u16) -> Self {
        const { assert!(size_of::<[D; LENGTH as usize]>() as u64 == TABLE_BYTES) };
        Tables { start: memory.at(address, bytes(slots)).cast(), address, count: slots }
    }

    /// The guest-physical address of the table of a slot.
    #[inline(always)]
    pub(super) fn address(&self, slot: u16) -> u64 {
        self.address + TABLE_BYTES * u64::from(slot)
    }

    /// Writes a descriptor of the table of a slot.
    #[inline(always)]
    pub(super) fn write(&mut self, slot: u16, index: u16, descriptor: D) {
        assert!(slot < self.count);
        let index = index & (LENGTH - 1);
        // SAFETY: the slot was checked, and the index is within a table.
        unsafe { self.start.add(slot.into()).cast::<D>().add(index.into()).write_volatile(descriptor) };
    }
}
