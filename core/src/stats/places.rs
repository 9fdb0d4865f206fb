//! Where the records of a segment lie.
use super::{
    backend::BackendStats,
    blk::BlkStats,
    header::{Header, TABLES, Table},
    histogram::{BUCKETS, SUB_BUCKETS},
    queue::QueueStats,
    record::{Record, Words},
    worker::WorkerStats,
};
use crate::memory::ForeignMapping;
use std::sync::atomic::{AtomicU64, Ordering};

/// The longest block of a kind of device: every record of a queue has room for it.
const BLOCK_BYTES_MAX: usize = size_of::<BlkStats>();

/// How many records a segment has room for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Those of workers.
    pub workers: usize,
    /// Those of queues.
    pub queues: usize,
    /// Those of backends.
    pub backends: usize,
}

/// Where records of one kind lie, checked once: later changes to the file do not matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    offset: usize,
    /// From one record to the next.
    distance: usize,
    pub(super) capacity: usize,
}

/// Where all records lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places([Place; TABLES]);

impl Place {
    fn after(offset: usize, distance: usize, capacity: usize) -> Self {
        Place { offset, distance, capacity }
    }

    fn end(self) -> usize {
        self.offset + self.distance * self.capacity
    }

    /// Writes it into a header.
    fn describe(self, table: &Table) {
        table.offset.set(self.offset as u64);
        table.distance.set(self.distance as u64);
        table.capacity.set(self.capacity as u64);
    }

    /// Reads it from the header of a file of `length` bytes, for records of at least `bytes` bytes.
    fn read(table: &Table, bytes: usize, length: u64) -> Result<Self, String> {
        let (offset, distance, capacity) = (table.offset.get(), table.distance.get(), table.capacity.get());
        if distance < bytes as u64 || !distance.is_multiple_of(128) {
            return Err(format!("lie {distance} bytes apart, and have {bytes} each"));
        }
        let end = capacity.checked_mul(distance).and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > length) || !offset.is_multiple_of(128) {
            return Err("do not lie in it".into());
        }
        Ok(Place { offset: offset as usize, distance: distance as usize, capacity: capacity as usize })
    }

    /// A part of a record: the `T` at `offset` in it.
    ///
    /// # Panics
    /// There are not as many records, or the part does not lie within one.
    pub(super) fn record<T: Words>(self, map: &ForeignMapping, index: usize, offset: usize) -> &T {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.distance);
        // SAFETY: it lies within the mapping, aligned, and is made of words that are accessed atomically.
        unsafe { &*self.start(map, index).wrapping_add(offset).cast() }
    }

    /// The words of a record.
    ///
    /// # Panics
    /// There are not as many records.
    pub(super) fn words(self, map: &ForeignMapping, index: usize) -> &[AtomicU64] {
        // SAFETY: they lie within the mapping, aligned, and are accessed atomically.
        unsafe { std::slice::from_raw_parts(self.start(map, index).cast(), self.distance / 8) }
    }

    fn start(self, map: &ForeignMapping, index: usize) -> *const u8 {
        assert!(index < self.capacity && self.end() <= map.len());
        map.as_ptr().cast_const().wrapping_add(self.offset + index * self.distance)
    }
}

impl Places {
    /// Those of a segment to be created.
    pub(super) fn with(capacity: Capacity) -> Self {
        let workers = Place::after(size_of::<Header>(), size_of::<WorkerStats>(), capacity.workers);
        let queues = Place::after(workers.end(), size_of::<QueueStats>() + BLOCK_BYTES_MAX, capacity.queues);
        let backends = Place::after(queues.end(), size_of::<BackendStats>(), capacity.backends);
        Places([workers, queues, backends])
    }

    /// Those that the header of a file of `length` bytes describes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn read(header: &Header, length: u64) -> Result<Self, String> {
        let (buckets, linear) = (header.buckets.get(), header.sub_buckets.get());
        if (buckets, linear) != (BUCKETS as u64, SUB_BUCKETS as u64) {
            return Err(format!("its histograms have {buckets} buckets, {linear} in each power of two"));
        }
        Ok(Places([
            Place::read(header.table::<WorkerStats>(), size_of::<WorkerStats>(), length)
                .map_err(|reason| format!("the records of workers {reason}"))?,
            Place::read(header.table::<QueueStats>(), size_of::<QueueStats>(), length)
                .map_err(|reason| format!("the records of queues {reason}"))?,
            Place::read(header.table::<BackendStats>(), size_of::<BackendStats>(), length)
                .map_err(|reason| format!("the records of backends {reason}"))?,
        ]))
    }

    /// Writes them into a header.
    pub(super) fn describe(&self, header: &Header) {
        self.0.iter().zip(&header.tables).for_each(|(place, table)| place.describe(table));
    }

    /// Where the records of kind `R` lie.
    pub(super) fn of<R: Record>(&self) -> Place {
        self.0[R::TABLE as usize]
    }

    /// Those of each table.
    pub(super) fn all(&self) -> [Place; TABLES] {
        self.0
    }

    /// Size of a segment that ends with them.
    pub(super) fn bytes(&self) -> usize {
        self.0[TABLES - 1].end()
    }
}

impl Header {
    /// What the header says about the records of kind `R`.
    pub(super) fn table<R: Record>(&self) -> &Table {
        &self.tables[R::TABLE as usize]
    }
}

impl Table {
    /// Marks a record, which has been described, as in use.
    pub(super) fn publish(&self, index: usize) {
        // Partner: `count`.
        self.count.fetch_max(index as u64 + 1, Ordering::Release);
    }

    /// Number of records that have been used, which is at most the number that fit.
    pub(super) fn count(&self, place: Place) -> usize {
        usize::try_from(self.count.load(Ordering::Acquire)).unwrap_or(usize::MAX).min(place.capacity)
    }
}

/// The header of a segment.
///
/// # Panics
/// The mapping is shorter.
pub(super) fn header(map: &ForeignMapping) -> &Header {
    assert!(map.len() >= size_of::<Header>());
    // SAFETY: the mapping is long enough and page-aligned; all of it is accessed atomically.
    unsafe { &*map.as_ptr().cast_const().cast() }
}
