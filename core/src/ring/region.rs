//! The memory in which one queue notes its requests in flight, and which outlives the process (vhost-user document,
//! "Inflight I/O tracking"): a header, and an entry for each descriptor. What the two kinds of ring have in common of
//! it.
use crate::memory::ForeignMapping;
use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering},
};

/// Each queue's region starts at a multiple of this.
const ALIGNMENT: u64 = 64;
/// The layout that we know. 0 means that the region has not been used yet.
const VERSION: u16 = 1;
/// Offsets in the header. The features before them are not used.
const VERSION_OFFSET: usize = 8;
const SIZE_OFFSET: usize = 10;
/// Offset in an entry: the number by which the requests in flight are ordered.
const COUNTER_OFFSET: usize = 8;

/// Where the in-flight region of one queue is.
#[derive(Clone, Debug)]
pub struct InflightPlace {
    /// The regions of all queues.
    pub mapping: Arc<ForeignMapping>,
    /// Index of the queue.
    pub index: usize,
    /// Entries that each region has room for.
    pub queue_size: u16,
}

/// The region of one queue, with a header of `HEADER` bytes and entries of `ENTRY` bytes, each of which begins with
/// whether it is in flight. The front end may write to it at any time, so nothing that is read from it is trusted to be
/// more than a number.
#[derive(Debug)]
pub(super) struct Region<const HEADER: usize, const ENTRY: usize> {
    start: *mut u8,
    /// Entries that it has room for.
    room: u16,
    /// Entries of the queue.
    size: u16,
    _mapping: Arc<ForeignMapping>,
}

// SAFETY: the pointer leads into the mapping that the region holds; the region has one owner at a time.
unsafe impl<const HEADER: usize, const ENTRY: usize> Send for Region<HEADER, ENTRY> {}

impl<const HEADER: usize, const ENTRY: usize> Region<HEADER, ENTRY> {
    /// Bytes that a queue of `size` entries takes.
    pub(super) fn bytes(size: u16) -> u64 {
        (HEADER as u64 + ENTRY as u64 * u64::from(size)).next_multiple_of(ALIGNMENT)
    }

    /// The region of a queue of `size` entries. `None`: it does not lie in the mapping, or is not aligned.
    pub(super) fn new(place: InflightPlace, size: u16) -> Option<Self> {
        let InflightPlace { mapping, index, queue_size } = place;
        let bytes = Self::bytes(queue_size);
        let offset = bytes.checked_mul(index as u64)?;
        let fits = size <= queue_size && offset.checked_add(bytes)? <= mapping.len() as u64;
        let start = mapping.as_ptr().wrapping_add(usize::try_from(offset).ok()?);
        let aligned = start.addr().is_multiple_of(align_of::<AtomicU64>());
        (fits && aligned).then_some(Region { start, room: queue_size, size, _mapping: mapping })
    }

    /// Entries of the queue.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Whether it is of a queue like ours; if not, it is free to be made so.
    ///
    /// # Errors
    /// Something is in flight in a queue of another size, or the layout is one that we do not know: the number found.
    pub(super) fn is_ours(&self) -> Result<bool, u16> {
        let [version, size] = [VERSION_OFFSET, SIZE_OFFSET].map(|offset| self.header(offset).load(Ordering::Relaxed));
        let is_idle = || (0..self.room).all(|entry| self.flag(entry).load(Ordering::Relaxed) == 0);
        match version {
            0 => Ok(false),
            VERSION if size == self.size => Ok(true),
            // A driver that came after a reset may have chosen another size, with nothing in flight from before.
            VERSION if is_idle() => Ok(false),
            VERSION => Err(size),
            other => Err(other),
        }
    }

    /// Makes it ours, with what `fill` puts into it.
    pub(super) fn make_ours(&mut self, fill: impl FnOnce(&Self)) {
        self.header(SIZE_OFFSET).store(self.size, Ordering::Relaxed);
        fill(self);
        self.header(VERSION_OFFSET).store(VERSION, Ordering::Release);
    }

    /// The entries that say of themselves that they are in flight, in the order of their counters, and the next
    /// counter.
    pub(super) fn in_flight(&self) -> (Vec<u16>, u64) {
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter(|&entry| self.flag(entry).load(Ordering::Relaxed) != 0)
            .map(|entry| (self.counter(entry).load(Ordering::Relaxed), entry))
            .collect();
        found.sort_unstable();
        let next = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        (found.into_iter().map(|(_, entry)| entry).collect(), next)
    }

    /// Two bytes of the header.
    #[inline]
    pub(super) fn header(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: an aligned address in the region, which `new` checked to lie in the mapping; that lives as long as
        // we. Both processes access it by plain loads and stores.
        unsafe { AtomicU16::from_ptr(self.header_at(offset, 2).cast()) }
    }

    /// One byte of the header.
    #[inline]
    pub(super) fn header_byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as in `header`.
        unsafe { AtomicU8::from_ptr(self.header_at(offset, 1)) }
    }

    /// Whether an entry is in flight: not 0.
    #[inline]
    pub(super) fn flag(&self, entry: u16) -> &AtomicU8 {
        // SAFETY: as in `header`.
        unsafe { AtomicU8::from_ptr(self.entry_at(entry, 0, 1)) }
    }

    /// What orders an entry among those in flight.
    #[inline]
    pub(super) fn counter(&self, entry: u16) -> &AtomicU64 {
        self.word(entry, COUNTER_OFFSET)
    }

    /// Two bytes of an entry.
    #[inline]
    pub(super) fn half(&self, entry: u16, offset: usize) -> &AtomicU16 {
        // SAFETY: as in `header`.
        unsafe { AtomicU16::from_ptr(self.entry_at(entry, offset, 2).cast()) }
    }

    /// Eight bytes of an entry.
    #[inline]
    pub(super) fn word(&self, entry: u16, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `header`.
        unsafe { AtomicU64::from_ptr(self.entry_at(entry, offset, 8).cast()) }
    }

    /// Where `bytes` of the header are.
    #[inline(always)]
    fn header_at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(bytes) && offset + bytes <= HEADER);
        self.start.wrapping_add(offset)
    }

    /// Where `bytes` of an entry are. Of the checks, that of the entry alone is one at run time.
    #[inline(always)]
    fn entry_at(&self, entry: u16, offset: usize, bytes: usize) -> *mut u8 {
        assert!(entry < self.room && offset.is_multiple_of(bytes) && offset + bytes <= ENTRY);
        self.start.wrapping_add(HEADER + ENTRY * usize::from(entry) + offset)
    }
}
