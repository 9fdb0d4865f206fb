//! The segment as its writer has it.
use super::{
    BUCKETS, Header, LAYOUT_VERSION, MAGIC, QueueStats, SUB_BUCKETS, Snapshot, Table, WorkerStats, clock,
    snapshot::process_started,
};
use crate::memory::{ForeignMapping, sealed_file};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// How many records a segment has room for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Those of workers.
    pub workers: usize,
    /// Those of queues.
    pub queues: usize,
}

impl Capacity {
    const WORKERS: usize = size_of::<Header>();

    fn queues_offset(self) -> usize {
        Self::WORKERS + self.workers * size_of::<WorkerStats>()
    }

    fn bytes(self) -> usize {
        self.queues_offset() + self.queues * size_of::<QueueStats>()
    }
}

/// The mapping with all records. Clone it freely: clones share it.
#[derive(Clone, Debug)]
pub struct StatsSegment {
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    map: ForeignMapping,
    capacity: Capacity,
    used_workers: AtomicU64,
    used_queues: AtomicU64,
    /// Open as long as the segment is there, so that a reader finds it among the descriptors of the process.
    _file: File,
}

/// A record in a segment, which it keeps alive.
#[derive(Debug)]
pub struct StatsHandle<R> {
    record: *const R,
    _mapping: Arc<Mapping>,
}

/// The record of a queue.
pub type QueueStatsHandle = StatsHandle<QueueStats>;
/// The record of a worker.
pub type WorkerStatsHandle = StatsHandle<WorkerStats>;

// SAFETY: a record is made of atomics in a shared mapping that the handle keeps alive.
unsafe impl<R: Sync> Send for StatsHandle<R> {}
// SAFETY: as above.
unsafe impl<R: Sync> Sync for StatsHandle<R> {}

impl<R> Clone for StatsHandle<R> {
    fn clone(&self) -> Self {
        StatsHandle { record: self.record, _mapping: self._mapping.clone() }
    }
}

impl<R> std::ops::Deref for StatsHandle<R> {
    type Target = R;
    #[inline(always)]
    fn deref(&self) -> &R {
        // SAFETY: `StatsSegment::add` placed the record in the mapping, which the handle keeps alive.
        unsafe { &*self.record }
    }
}

impl StatsSegment {
    /// Makes a segment in `file`, which is empty. Whoever truncates it later takes the numbers away from its readers,
    /// and does no harm here.
    ///
    /// # Errors
    /// The file cannot be sized or mapped, or there is no room for it.
    pub fn create(file: File, capacity: Capacity) -> io::Result<Self> {
        let length = capacity.bytes();
        file.set_len(length as u64)?;
        // All of its blocks now, not when a worker counts something. A file system without such a call has no room
        // promised.
        match fallocate(&file, FallocateFlags::empty(), 0, length as u64) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        Self::map(file, capacity)
    }

    fn map(file: File, capacity: Capacity) -> io::Result<Self> {
        let length = capacity.bytes();
        // As if the file were somebody else's: others can open it, and cut it.
        let map = ForeignMapping::map(&file, 0, length as u64, true).map_err(io::Error::other)?;
        let used = AtomicU64::new(0);
        let mapping = Mapping { map, capacity, used_workers: used, used_queues: AtomicU64::new(0), _file: file };
        let header = mapping.header();
        header.length.set(length as u64);
        header.ticks_per_second.set(clock::ticks_per_second());
        header.process.set(std::process::id().into());
        header.process_started.set(process_started(std::process::id()).unwrap_or(0));
        header.workers.describe::<WorkerStats>(Capacity::WORKERS, capacity.workers);
        header.queues.describe::<QueueStats>(capacity.queues_offset(), capacity.queues);
        header.buckets.set(BUCKETS as u64);
        header.sub_buckets.set(SUB_BUCKETS as u64);
        header.version.set(LAYOUT_VERSION);
        header.magic.set(MAGIC);
        Ok(StatsSegment { mapping: Arc::new(mapping) })
    }

    /// Makes a segment in anonymous memory, with room for `queues` queues and as many workers.
    ///
    /// # Errors
    /// No memory.
    pub fn anonymous(queues: usize) -> io::Result<Self> {
        Self::anonymous_with(Capacity { workers: queues, queues })
    }

    /// Makes a segment in anonymous memory.
    ///
    /// # Errors
    /// No memory.
    pub fn anonymous_with(capacity: Capacity) -> io::Result<Self> {
        Self::map(sealed_file(c"pollux-stats", capacity.bytes() as u64)?, capacity)
    }

    /// Adds the record of a queue. `None`: the segment is full.
    pub fn add(&self, name: &str) -> Option<QueueStatsHandle> {
        let mapping = &self.mapping;
        let table = &mapping.header().queues;
        let index = mapping.take(&mapping.used_queues, mapping.capacity.queues)?;
        let handle: QueueStatsHandle = self.record(table, index);
        handle.name.set(name);
        table.publish(index);
        Some(handle)
    }

    /// Adds the record of a worker. `None`: the segment is full.
    pub fn add_worker(&self, name: &str) -> Option<WorkerStatsHandle> {
        let mapping = &self.mapping;
        let table = &mapping.header().workers;
        let index = mapping.take(&mapping.used_workers, mapping.capacity.workers)?;
        let handle: WorkerStatsHandle = self.record(table, index);
        handle.name.set(name);
        table.publish(index);
        Some(handle)
    }

    /// The records of all queues.
    pub fn records(&self) -> impl Iterator<Item = QueueStatsHandle> {
        let table = &self.mapping.header().queues;
        (0..table.count()).map(|index| self.record(table, index))
    }

    /// The records of all workers.
    pub fn workers(&self) -> impl Iterator<Item = WorkerStatsHandle> {
        let table = &self.mapping.header().workers;
        (0..table.count()).map(|index| self.record(table, index))
    }

    /// All numbers as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let (workers, queues): (Vec<_>, Vec<_>) = (self.workers().collect(), self.records().collect());
        let workers = workers.iter().map(std::ops::Deref::deref);
        Snapshot::take(self.mapping.header(), workers, queues.iter().map(std::ops::Deref::deref))
    }

    fn record<R>(&self, table: &Table, index: usize) -> StatsHandle<R> {
        let offset = table.offset.get() as usize + index * size_of::<R>();
        let record = self.mapping.map.as_ptr().cast_const().wrapping_add(offset).cast();
        StatsHandle { record, _mapping: self.mapping.clone() }
    }
}

impl Mapping {
    fn header(&self) -> &Header {
        // SAFETY: the mapping starts with the header, page-aligned, all of it accessed atomically.
        unsafe { &*self.map.as_ptr().cast_const().cast() }
    }

    fn take(&self, used: &AtomicU64, capacity: usize) -> Option<usize> {
        let index = used.fetch_add(1, Ordering::AcqRel) as usize;
        (index < capacity).then_some(index)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.header().ended.set(1);
    }
}

impl Table {
    fn describe<R>(&self, offset: usize, capacity: usize) {
        self.offset.set(offset as u64);
        self.size.set(size_of::<R>() as u64);
        self.capacity.set(capacity as u64);
    }

    /// Shows a record whose name is set.
    fn publish(&self, index: usize) {
        // Partner: a reader's load of the number of records, before it reads their names.
        self.count.fetch_max(index as u64 + 1, Ordering::Release);
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Acquire).min(self.capacity.get()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_hands_out_records_until_it_is_full() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        let first = segment.add("blk0/0 io0").expect("room");
        first.reads.add(3);
        for nanoseconds in 1..=1000 {
            first.latency.record(0, nanoseconds);
        }
        assert!(segment.add("blk0/1 io1").is_some());
        assert!(segment.add("blk0/2 io0").is_none());
        let names: Vec<String> = segment.records().map(|record| record.name()).collect();
        assert_eq!(names, ["blk0/0 io0", "blk0/1 io1"]);
        let read = segment.records().next().expect("record");
        assert_eq!(read.requests(), 3);
        let median = read.latency.quantile(0.5).expect("values");
        assert!((500..=563).contains(&median), "{median}");
        assert_eq!(first.latency.quantile(1.0), Some(1023));
        assert!(segment.add_worker("io0").is_some() && segment.add_worker("io1").is_some());
        assert!(segment.add_worker("io2").is_none());
    }

    #[test]
    fn a_difference_has_what_was_counted_between_two_snapshots() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        let queue = segment.add("blk0/0 io0").expect("room");
        queue.reads.add(5);
        queue.in_flight.set(9);
        queue.latency.record(1, 100);
        queue.batches.record(3);
        let before = segment.snapshot();
        queue.reads.add(2);
        queue.in_flight.set(4);
        queue.latency.record(1, 300);
        segment.add("blk0/1 io0").expect("room").writes.add(7);
        let between = segment.snapshot().since(&before);
        let [first, second] = &between.queues[..] else { panic!("two queues") };
        assert_eq!((first.name().as_str(), first.reads.get(), first.in_flight.get()), ("blk0/0 io0", 2, 4));
        assert_eq!((first.latency.count(), first.batches.get()), (1, 0));
        assert_eq!((second.name().as_str(), second.writes.get()), ("blk0/1 io0", 7));
        assert!(between.writer.is_alive() && !between.writer.has_ended);
    }
}
