//! The numbers of a segment at one moment, in private memory: to be shown, or compared with later ones.
use super::{
    backend::{BackendSnapshot, BackendStats},
    blk::BlkStats,
    places::{self, Places},
    process::{Schedule, Thread, Writer},
    queue::{QueueKind, QueueStats},
    record::{Record, Words},
    worker::WorkerStats,
};
use crate::memory::ForeignMapping;
use std::{
    collections::HashMap,
    ops::Deref,
    sync::atomic::{AtomicU64, Ordering},
};

/// All numbers at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The process that writes them.
    pub writer: Writer,
    /// Ticks of the time stamp counter per second.
    pub ticks_per_second: u64,
    /// What was counted for each worker.
    pub workers: Vec<Box<WorkerStats>>,
    /// What was counted for each queue.
    pub queues: Vec<QueueSnapshot>,
    /// What plugins counted for each backend.
    pub backends: Vec<BackendSnapshot>,
    /// What the scheduler did with each worker. `None`: it cannot be known.
    pub schedules: Vec<Option<Schedule>>,
}

/// What was counted for a queue.
#[derive(Debug)]
pub struct QueueSnapshot {
    common: Box<QueueStats>,
    /// What the queues of its kind count in addition.
    pub kind: KindSnapshot,
}

/// What the queues of one kind of device count in addition.
#[derive(Debug)]
pub enum KindSnapshot {
    /// Of a block device.
    Blk(Box<BlkStats>),
    /// Of a kind that this program does not know: its virtio device ID.
    Unknown(u64),
}

impl KindSnapshot {
    /// Of a record whose block has these words.
    fn read(kind: u64, words: &[AtomicU64]) -> Self {
        match u32::try_from(kind) {
            Ok(BlkStats::KIND) => KindSnapshot::Blk(BlkStats::copy_of(words)),
            _ => KindSnapshot::Unknown(kind),
        }
    }

    fn since(&self, earlier: Option<&Self>) -> Self {
        match (self, earlier) {
            (KindSnapshot::Blk(now), Some(KindSnapshot::Blk(then))) => KindSnapshot::Blk(now.since(then)),
            (KindSnapshot::Blk(now), _) => KindSnapshot::Blk(now.copy()),
            (KindSnapshot::Unknown(kind), _) => KindSnapshot::Unknown(*kind),
        }
    }
}

impl QueueSnapshot {
    /// What it has counted as a queue of a block device. `None`: it is of another kind.
    pub fn blk(&self) -> Option<&BlkStats> {
        match &self.kind {
            KindSnapshot::Blk(blk) => Some(blk),
            KindSnapshot::Unknown(_) => None,
        }
    }

    /// What was counted since `earlier`, which is of the same life.
    fn since(&self, earlier: Option<&Self>) -> Self {
        let common = earlier.map_or_else(|| self.common.copy(), |earlier| self.common.since(&earlier.common));
        QueueSnapshot { common, kind: self.kind.since(earlier.map(|earlier| &earlier.kind)) }
    }
}

impl Deref for QueueSnapshot {
    type Target = QueueStats;
    fn deref(&self) -> &QueueStats {
        &self.common
    }
}

impl Snapshot {
    pub(super) fn take(map: &ForeignMapping, places: &Places) -> Self {
        let header = places::header(map);
        let writer = Writer::of(header);
        let workers = read(map, places, |worker: &WorkerStats, _| worker.copy());
        let queues = read(map, places, |queue: &QueueStats, words| {
            let common = queue.copy();
            let block = &words[QueueStats::WORDS..];
            let length = usize::try_from(common.block_bytes() / 8).unwrap_or(usize::MAX).min(block.len());
            QueueSnapshot { kind: KindSnapshot::read(common.kind(), &block[..length]), common }
        });
        Snapshot {
            writer,
            ticks_per_second: header.ticks_per_second.get().max(1),
            schedules: workers.iter().map(|worker| schedule(writer, worker)).collect(),
            workers,
            queues,
            backends: read(map, places, |backend: &BackendStats, _| backend.snapshot()),
        }
    }

    /// What was counted since `earlier`, a snapshot of the same segment. Values that are not counters are as they are
    /// now, and so is everything that has come since.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let workers: HashMap<u64, usize> = lives(earlier.workers.iter().map(|worker| &**worker));
        let queues: HashMap<u64, usize> = lives(earlier.queues.iter().map(|queue| &*queue.common));
        let worker_then = |worker: &WorkerStats| workers.get(&life(worker)).copied();
        Snapshot {
            writer: self.writer,
            ticks_per_second: self.ticks_per_second,
            workers: self
                .workers
                .iter()
                .map(|now| worker_then(now).map_or_else(|| now.copy(), |then| now.since(&earlier.workers[then])))
                .collect(),
            queues: self
                .queues
                .iter()
                .map(|now| now.since(queues.get(&life(&*now.common)).map(|&then| &earlier.queues[then])))
                .collect(),
            backends: self.backends.clone(),
            schedules: self
                .workers
                .iter()
                .zip(&self.schedules)
                .map(|(worker, now)| {
                    let then = worker_then(worker).map(|then| earlier.schedules.get(then).copied().flatten());
                    // All that the scheduler has given to a worker that has come since belongs to this period.
                    Some((*now)?.since(then.unwrap_or_else(|| Some(Schedule::default()))?))
                })
                .collect(),
        }
    }

    /// Converts ticks to nanoseconds.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second)) as u64
    }
}

/// Reads all records of kind `R` that are in use; `read_one` is given all words of the record as well.
fn read<R: Record, T>(map: &ForeignMapping, places: &Places, read_one: impl Fn(&R, &[AtomicU64]) -> T) -> Vec<T> {
    let place = places.of::<R>();
    let indices = 0..places::header(map).table::<R>().count(place);
    let read_alive = |index: usize| {
        let record: &R = place.record(map, index, 0);
        record.read_alive(|| read_one(record, place.words(map, index)))
    };
    indices.filter_map(read_alive).collect()
}

fn life<R: Record>(record: &R) -> u64 {
    record.life().load(Ordering::Relaxed)
}

/// Where the record with each life is.
fn lives<'r, R: Record + 'r>(records: impl Iterator<Item = &'r R>) -> HashMap<u64, usize> {
    records.enumerate().map(|(index, record)| (life(record), index)).collect()
}

fn schedule(writer: Writer, worker: &WorkerStats) -> Option<Schedule> {
    if worker.ended.get() != 0 {
        return Some(Schedule {
            run_ns: worker.run_ns.get(),
            stolen_ns: worker.stolen_ns.get(),
            switches_voluntary: worker.switches_voluntary.get(),
            switches_involuntary: worker.switches_involuntary.get(),
        });
    }
    writer.is_alive().then(|| Thread::new(writer.process, worker.thread.get() as u32).schedule())?
}
