//! The segment as its writer has it.
use super::{
    backend::BackendStats,
    blk::BlkStats,
    clock,
    header::{Header, LAYOUT_VERSION, MAGIC, TABLES},
    histogram::{BUCKETS, SUB_BUCKETS},
    places::{self, Capacity, Places},
    process::process_started,
    queue::{QueueIdentity, QueueKind, QueueStats},
    record::{Record, Words, clear},
    slots::Slots,
    snapshot::Snapshot,
    worker::WorkerStats,
};
use crate::memory::{ForeignMapping, sealed_file};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use std::{
    fs::File,
    io,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The mapping with all records. Clone it freely: clones share it.
#[derive(Clone, Debug)]
pub struct StatsSegment {
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    map: ForeignMapping,
    places: Places,
    slots: [Slots; TABLES],
    /// Lives that records have had.
    lives: AtomicU64,
    /// Records that are given back stay as they are.
    keeps_records: AtomicBool,
    /// Open as long as the segment exists, so that a reader finds it among the descriptors of the process.
    _file: File,
}

/// A part of a record in use. The record is given back with the last clone of the last handle to a part of it.
#[derive(Debug)]
pub struct StatsHandle<R> {
    part: *const R,
    lease: Arc<Lease>,
}

/// Keeps the segment, and a record of it in use.
#[derive(Debug)]
struct Lease {
    mapping: Arc<Mapping>,
    give_back: Option<fn(&Mapping, usize)>,
    index: usize,
}

/// What the queues of all devices count.
pub type QueueStatsHandle = StatsHandle<QueueStats>;
/// What the queues of block devices count in addition.
pub type BlkStatsHandle = StatsHandle<BlkStats>;
/// The record of a worker.
pub type WorkerStatsHandle = StatsHandle<WorkerStats>;

/// The record of a queue.
#[derive(Debug)]
pub struct QueueRecord<K> {
    /// What the queues of all devices count.
    pub common: QueueStatsHandle,
    /// What those of its kind count in addition.
    pub block: StatsHandle<K>,
}

/// The record of a backend. It is the only handle, since the record has one writer.
#[derive(Debug)]
pub struct BackendStatsHandle(StatsHandle<BackendStats>);

// SAFETY: a record is made of atomics in a shared mapping that the handle keeps alive.
unsafe impl<R: Sync> Send for StatsHandle<R> {}
// SAFETY: as above.
unsafe impl<R: Sync> Sync for StatsHandle<R> {}

impl<R> Clone for StatsHandle<R> {
    fn clone(&self) -> Self {
        StatsHandle { part: self.part, lease: self.lease.clone() }
    }
}

impl<R> Deref for StatsHandle<R> {
    type Target = R;
    #[inline(always)]
    fn deref(&self) -> &R {
        // SAFETY: `StatsHandle::of` found it in the mapping, which the handle keeps alive.
        unsafe { &*self.part }
    }
}

impl<K> Clone for QueueRecord<K> {
    fn clone(&self) -> Self {
        QueueRecord { common: self.common.clone(), block: self.block.clone() }
    }
}

impl<K> Deref for QueueRecord<K> {
    type Target = QueueStats;
    fn deref(&self) -> &QueueStats {
        &self.common
    }
}

impl BackendStatsHandle {
    /// Replaces all counters: names, of which 56 bytes are kept, and values. There is room for
    /// [`COUNTERS`](super::COUNTERS); further ones are only counted. `[control]`
    pub fn publish<'n>(&mut self, counters: impl IntoIterator<Item = (&'n str, u64)>) {
        self.0.publish(counters);
    }
}

impl<P: Words> StatsHandle<P> {
    /// The part of a record of kind `R` that lies at `offset` in it.
    fn of<R: Record>(lease: &Arc<Lease>, offset: usize) -> Self {
        let part = lease.mapping.places.of::<R>().record(&lease.mapping.map, lease.index, offset);
        StatsHandle { part, lease: lease.clone() }
    }
}

impl<K: QueueKind> QueueRecord<K> {
    fn of(lease: &Arc<Lease>) -> Self {
        QueueRecord {
            common: StatsHandle::of::<QueueStats>(lease, 0),
            block: StatsHandle::of::<QueueStats>(lease, size_of::<QueueStats>()),
        }
    }
}

impl StatsSegment {
    /// Makes a segment in `file`, which is empty. Truncating it later takes the numbers away from its readers, but does
    /// no harm here.
    ///
    /// # Errors
    /// The file cannot be sized or mapped, or there is no space for it.
    pub fn create(file: File, capacity: Capacity) -> io::Result<Self> {
        let length = Places::with(capacity).bytes();
        file.set_len(length as u64)?;
        // All of its blocks now, not when a worker counts something. A file system without such a call cannot promise
        // space.
        match fallocate(&file, FallocateFlags::empty(), 0, length as u64) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        Self::map(file, capacity)
    }

    fn map(file: File, capacity: Capacity) -> io::Result<Self> {
        let places = Places::with(capacity);
        let length = places.bytes();
        // Mapped as if another process owned the file: others can open and truncate it.
        let map = ForeignMapping::map(&file, 0, length as u64, true).map_err(io::Error::other)?;
        let mapping = Mapping {
            map,
            places,
            slots: places.all().map(|place| Slots::new(place.capacity)),
            lives: AtomicU64::new(0),
            keeps_records: AtomicBool::new(false),
            _file: file,
        };
        let header = mapping.header();
        header.length.set(length as u64);
        header.ticks_per_second.set(clock::ticks_per_second());
        header.process.set(std::process::id().into());
        header.process_started.set(process_started(std::process::id()).unwrap_or(0));
        places.describe(header);
        header.buckets.set(BUCKETS as u64);
        header.sub_buckets.set(SUB_BUCKETS as u64);
        header.version.set(LAYOUT_VERSION);
        header.magic.set(MAGIC);
        Ok(StatsSegment { mapping: Arc::new(mapping) })
    }

    /// Makes a segment in anonymous memory, with room for `queues` queues, and as many workers and backends.
    ///
    /// # Errors
    /// No memory.
    pub fn anonymous(queues: usize) -> io::Result<Self> {
        Self::anonymous_with(Capacity { workers: queues, queues, backends: queues })
    }

    /// Makes a segment in anonymous memory.
    ///
    /// # Errors
    /// No memory.
    pub fn anonymous_with(capacity: Capacity) -> io::Result<Self> {
        Self::map(sealed_file(c"pollux-stats", Places::with(capacity).bytes() as u64)?, capacity)
    }

    /// Takes a record for a queue. `None`: all are in use. `[control]`
    pub fn add_queue<K: QueueKind>(&self, identity: QueueIdentity<'_>) -> Option<QueueRecord<K>> {
        let lease = self.take(|queue: &QueueStats| queue.describe::<K>(identity))?;
        Some(QueueRecord::of(&lease))
    }

    /// Takes a record for a worker. `None`: all are in use. `[control]`
    pub fn add_worker(&self, name: &str) -> Option<WorkerStatsHandle> {
        let lease = self.take(|worker: &WorkerStats| worker.describe(name))?;
        Some(StatsHandle::of::<WorkerStats>(&lease, 0))
    }

    /// Takes a record for what `plugin` counts for `backend`. `None`: all are in use. `[control]`
    pub fn add_backend(&self, backend: &str, plugin: &str) -> Option<BackendStatsHandle> {
        let lease = self.take(|record: &BackendStats| record.describe(backend, plugin))?;
        Some(BackendStatsHandle(StatsHandle::of::<BackendStats>(&lease, 0)))
    }

    /// The process is about to end: records that are given back from now on keep their lives, and with them its last
    /// numbers.
    pub fn keep_records(&self) {
        self.mapping.keeps_records.store(true, Ordering::Relaxed);
    }

    /// The records of the queues of block devices. For reading only: holding one does not keep it in use.
    pub fn blk_queues(&self) -> impl Iterator<Item = QueueRecord<BlkStats>> {
        let queues = self.in_use::<QueueStats>().map(|lease| QueueRecord::of(&lease));
        queues.filter(|queue| queue.kind() == u64::from(BlkStats::KIND))
    }

    /// The records of all workers, for reading only.
    pub fn workers(&self) -> impl Iterator<Item = WorkerStatsHandle> {
        self.in_use::<WorkerStats>().map(|lease| StatsHandle::of::<WorkerStats>(&lease, 0))
    }

    /// All numbers as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.mapping.map, &self.mapping.places)
    }

    fn take<R: Record>(&self, describe: impl FnOnce(&R)) -> Option<Arc<Lease>> {
        let mapping = &self.mapping;
        let index = mapping.slots[R::TABLE as usize].take()?;
        let (place, table) = (mapping.places.of::<R>(), mapping.header().table::<R>());
        let life = mapping.lives.fetch_add(1, Ordering::Relaxed) + 1;
        let is_fresh = index >= table.count(place);
        place.record::<R>(&mapping.map, index, 0).begin_life(life, |record| {
            // A fresh one is all zeroes, in pages that the kernel may not have had to make yet.
            if !is_fresh {
                clear(place.words(&mapping.map, index));
            }
            describe(record);
        });
        table.publish(index);
        Some(Arc::new(Lease { mapping: mapping.clone(), index, give_back: Some(Mapping::give_back::<R>) }))
    }

    fn in_use<R: Record>(&self) -> impl Iterator<Item = Arc<Lease>> {
        let mapping = &self.mapping;
        let place = mapping.places.of::<R>();
        let indices = 0..mapping.header().table::<R>().count(place);
        let alive = indices.filter(move |&index| place.record::<R>(&mapping.map, index, 0).is_alive());
        alive.map(|index| Arc::new(Lease { mapping: mapping.clone(), index, give_back: None }))
    }
}

impl Mapping {
    fn header(&self) -> &Header {
        places::header(&self.map)
    }

    fn give_back<R: Record>(&self, index: usize) {
        if !self.keeps_records.load(Ordering::Relaxed) {
            self.places.of::<R>().record::<R>(&self.map, index, 0).end_life();
            self.slots[R::TABLE as usize].give_back(index);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.header().ended.set(1);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back {
            give_back(&self.mapping, self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::PluginCounter;
    use std::{
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    fn named(device: &str, index: usize) -> QueueIdentity<'_> {
        QueueIdentity { device, index, worker: "io0" }
    }

    #[test]
    fn a_segment_hands_out_records_until_it_is_full() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        let first = segment.add_queue::<BlkStats>(named("blk0", 0)).expect("room");
        first.block.reads.add(3);
        for nanoseconds in 1..=1000 {
            first.block.latency.record(0, nanoseconds);
        }
        let second = QueueIdentity { device: "blk0", index: 1, worker: "io1" };
        let second = segment.add_queue::<BlkStats>(second).expect("room");
        assert!(segment.add_queue::<BlkStats>(named("blk0", 2)).is_none());
        let names: Vec<_> = segment.blk_queues().map(|queue| (queue.device(), queue.index(), queue.worker())).collect();
        assert_eq!(names, [("blk0".into(), 0, "io0".into()), ("blk0".into(), 1, "io1".into())]);
        let read = segment.blk_queues().next().expect("record");
        assert_eq!(read.block.reads.get(), 3);
        let median = read.block.latency.quantile(0.5).expect("values");
        assert!((500..=563).contains(&median), "{median}");
        assert_eq!(first.block.latency.quantile(1.0), Some(1023));
        let workers = (segment.add_worker("io0"), segment.add_worker("io1"));
        assert!(workers.0.is_some() && workers.1.is_some());
        assert!(segment.add_worker("io2").is_none());
        drop((second, workers));
    }

    #[test]
    fn a_difference_has_what_was_counted_between_two_snapshots() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        let queue = segment.add_queue::<BlkStats>(named("blk0", 0)).expect("room");
        queue.block.reads.add(5);
        queue.in_flight.set(9);
        queue.block.latency.record(1, 100);
        queue.batches.record(3);
        let before = segment.snapshot();
        queue.block.reads.add(2);
        queue.in_flight.set(4);
        queue.block.latency.record(1, 300);
        let other = segment.add_queue::<BlkStats>(named("blk0", 1)).expect("room");
        other.block.writes.add(7);
        let between = segment.snapshot().since(&before);
        let [first, second] = &between.queues[..] else { panic!("two queues") };
        let blk = first.blk().expect("a block device");
        assert_eq!((first.device().as_str(), blk.reads.get(), first.in_flight.get()), ("blk0", 2, 4));
        assert_eq!((blk.latency.count(), first.batches.get()), (1, 0));
        assert_eq!((second.index(), second.blk().map(|blk| blk.writes.get())), (1, Some(7)));
        assert!(between.writer.is_alive() && !between.writer.has_ended);
    }

    #[test]
    fn a_record_that_was_given_back_begins_again_at_nothing_and_is_never_compared_with_the_one_before() {
        let segment = StatsSegment::anonymous(1).expect("segment");
        let queue = segment.add_queue::<BlkStats>(named("blk0", 0)).expect("room");
        queue.block.reads.add(1000);
        queue.block.count_error(5);
        let before = segment.snapshot();
        let (common, block) = (queue.common.clone(), queue.block.clone());
        drop((queue, common));
        assert!(segment.add_queue::<BlkStats>(named("blk1", 0)).is_none(), "a part of the record is still held");
        drop(block);
        assert!(segment.snapshot().queues.is_empty(), "it is not in use");
        // Of the same name: it is another device all the same.
        let queue = segment.add_queue::<BlkStats>(named("blk0", 0)).expect("room");
        queue.block.reads.add(2);
        let between = segment.snapshot().since(&before);
        let blk = between.queues[0].blk().expect("a block device");
        assert_eq!((blk.reads.get(), blk.errors_by_number().count()), (2, 0));
    }

    #[test]
    fn records_come_and_go_without_an_end() {
        let segment = StatsSegment::anonymous(3).expect("segment");
        let kept = segment.add_queue::<BlkStats>(named("kept", 0)).expect("room");
        for round in 0..10_000 {
            let queue = segment.add_queue::<BlkStats>(named("passing", round)).expect("room");
            assert_eq!(queue.block.reads.get(), 0);
            queue.block.reads.add(1);
            kept.block.reads.add(1);
            let mut backend = segment.add_backend("passing", "mem").expect("room");
            backend.publish([("rounds", round as u64)]);
            segment.add_worker("passing").expect("room").turns.add(1);
        }
        let last = segment.snapshot();
        assert_eq!((last.queues.len(), last.backends.len(), last.workers.len()), (1, 0, 0));
        assert_eq!(last.queues[0].blk().map(|blk| blk.reads.get()), Some(10_000));
    }

    #[test]
    fn records_that_are_given_back_at_the_end_keep_the_last_numbers() {
        let segment = StatsSegment::anonymous(1).expect("segment");
        let queue = segment.add_queue::<BlkStats>(named("blk0", 0)).expect("room");
        segment.keep_records();
        queue.block.reads.add(7);
        drop(queue);
        assert_eq!(segment.snapshot().queues[0].blk().map(|blk| blk.reads.get()), Some(7));
    }

    #[test]
    fn a_copy_never_has_numbers_of_two_devices() {
        let segment = StatsSegment::anonymous(1).expect("segment");
        let (done, end) = mpsc::channel::<()>();
        let theirs = segment.clone();
        let writer = thread::spawn(move || {
            for index in 0.. {
                let queue = theirs.add_queue::<BlkStats>(named("blk", index)).expect("room");
                // The same number at both ends of the record.
                queue.requests.set(index as u64);
                queue.block.bytes_written.set(index as u64);
                if let Err(mpsc::TryRecvError::Disconnected) = end.try_recv() {
                    return;
                }
            }
        });
        let (start, mut seen) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(20) && seen < 10_000 {
            for queue in segment.snapshot().queues {
                let written = queue.blk().expect("a block device").bytes_written.get();
                let numbers = [queue.requests.get(), written];
                assert!(numbers.iter().all(|&number| number == 0 || number == queue.index()), "{numbers:?}");
                seen += 1;
            }
        }
        drop(done);
        writer.join().expect("the writer");
        assert!(seen > 0);
    }

    #[test]
    fn a_plugins_counters_are_those_of_one_time() {
        let segment = StatsSegment::anonymous(1).expect("segment");
        let mut backend = segment.add_backend("disk", "uring").expect("room");
        let names: Vec<String> = (0..70).map(|index| format!("counter {index}")).collect();
        backend.publish(names.iter().map(|name| (name.as_str(), 3)));
        let snapshot = segment.snapshot();
        let read = &snapshot.backends[0];
        assert_eq!((read.backend.as_str(), read.plugin.as_str()), ("disk", "uring"));
        assert_eq!((read.counters.len(), read.omitted), (60, 10));
        assert_eq!((read.counters[59].name.as_str(), read.counters[59].value), ("counter 59", 3));
        assert!(read.written.is_some());
        backend.publish([("one", 1)]);
        let snapshot = segment.snapshot().since(&snapshot);
        let one = [PluginCounter { name: "one".into(), value: 1 }];
        assert_eq!((&snapshot.backends[0].counters[..], snapshot.backends[0].omitted), (&one[..], 0));
    }
}
