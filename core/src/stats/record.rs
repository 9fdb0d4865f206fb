//! The records of the segment. Their layout is in the [module's](super) documentation, and tested here.
use super::{BatchSizes, Counter, OperationLatency};
use std::sync::atomic::{AtomicU64, Ordering};

/// A name, padded with zeroes.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Name([AtomicU64; 8]);

impl Name {
    pub(super) fn set(&self, name: &str) {
        let mut bytes = [0; 64];
        let length = name.len().min(bytes.len());
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        for (word, chunk) in self.0.iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_le_bytes(chunk.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
    }

    fn get(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }
}

/// What is counted of one worker. Written by its thread alone.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct WorkerStats {
    pub(super) name: Name,
    /// Number of its thread; 0 before it has started.
    pub thread: Counter,
    /// CPU that it is pinned to, plus 1; 0: none.
    pub cpu: Counter,
    /// Idle policy: 0 spin, 1 adaptive, 2 interrupt.
    pub policy: Counter,
    /// 1 once its thread has ended.
    pub ended: Counter,
    /// Tasks that it has.
    pub tasks: Counter,
    /// Tasks at rest: looked at in one turn of several.
    pub resting: Counter,
    reserved: [Counter; 2],
    /// Turns.
    pub turns: Counter,
    /// Turns without work.
    pub empty_turns: Counter,
    /// Ticks spent in sampled turns that had work.
    pub busy_ticks: Counter,
    /// Ticks spent in sampled turns that had none.
    pub idle_ticks: Counter,
    /// Times that it slept.
    pub sleeps: Counter,
    /// Ticks slept.
    pub slept_ticks: Counter,
    /// Times that it wanted to sleep and found work, or a task that cannot be waited for.
    pub sleeps_refused: Counter,
    /// Wake-ups by kicks of drivers.
    pub wakes_by_kick: Counter,
    /// Wake-ups by backends.
    pub wakes_by_backend: Counter,
    /// Wake-ups by commands.
    pub wakes_by_command: Counter,
    /// Commands taken.
    pub commands: Counter,
    /// Ticks that it would poll without work before it sleeps, if it is adaptive.
    pub spin_ticks: Counter,
    /// At its end: nanoseconds on a CPU.
    pub run_ns: Counter,
    /// At its end: nanoseconds ready, and not on a CPU.
    pub stolen_ns: Counter,
    /// At its end: voluntary context switches.
    pub switches_voluntary: Counter,
    /// At its end: involuntary context switches.
    pub switches_involuntary: Counter,
}

impl WorkerStats {
    /// The worker's name.
    pub fn name(&self) -> String {
        self.name.get()
    }

    /// The share of its time awake that it had work, from sampled turns; `None` before there is a sample.
    pub fn busy_share(&self) -> Option<f64> {
        let (busy, idle) = (self.busy_ticks.get() as f64, self.idle_ticks.get() as f64);
        (busy + idle > 0.0).then(|| busy / (busy + idle))
    }
}

/// Errnos that are told apart in the record of a queue.
const ERROR_NUMBERS: usize = 3;

/// What is counted of one queue. Written by its worker alone.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct QueueStats {
    pub(super) name: Name,
    /// Requests completed: reads.
    pub reads: Counter,
    /// Requests completed: writes.
    pub writes: Counter,
    /// Requests completed: flushes.
    pub flushes: Counter,
    /// Requests completed: all others.
    pub others: Counter,
    /// Bytes read.
    pub bytes_read: Counter,
    /// Bytes written.
    pub bytes_written: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// Requests in flight.
    pub in_flight: Counter,
    /// Kicks received from the driver.
    pub kicks: Counter,
    /// Interrupts sent to the driver.
    pub interrupts: Counter,
    /// Times that the driver wanted no interrupt for completed requests.
    pub interrupts_suppressed: Counter,
    /// Times that completed requests were left to an interrupt that was being held for earlier ones.
    pub interrupts_merged: Counter,
    /// The errnos of `errors_by_number`, 16 bits each, the first one lowest; 0: none yet.
    error_numbers: Counter,
    /// Requests that failed with the first errnos that there were.
    errors_by_number: [Counter; ERROR_NUMBERS],
    /// Times that the queue had new requests, by how many.
    pub batches: BatchSizes,
    /// Latencies of sampled requests, from being taken from the ring to the used ring.
    pub latency: OperationLatency,
}

impl QueueStats {
    /// In place of an errno: the device has refused the request, which did not get to the medium.
    pub const REFUSED: u16 = u16::MAX;

    /// Counts a failed request by its errno, besides `errors`. Only the owner of the record may.
    #[cold]
    pub fn count_error(&self, number: u16) {
        let numbers = self.error_numbers.get();
        for (index, counter) in self.errors_by_number.iter().enumerate().filter(|_| number != 0) {
            let known = (numbers >> (16 * index)) as u16;
            if known == 0 {
                self.error_numbers.set(numbers | u64::from(number) << (16 * index));
            }
            if known == 0 || known == number {
                return counter.add(1);
            }
        }
    }

    /// How many requests failed with which errno or [`REFUSED`](Self::REFUSED), as far as they are told apart: the
    /// others are in `errors` alone.
    pub fn errors_by_number(&self) -> impl Iterator<Item = (u16, u64)> {
        let numbers = self.error_numbers.get();
        let counts = self.errors_by_number.iter().enumerate();
        let counts = counts.map(move |(index, counter)| ((numbers >> (16 * index)) as u16, counter.get()));
        counts.filter(|(number, count)| *number != 0 && *count > 0)
    }

    /// The record's name: device, queue and worker, such as `blk0/0 io0`.
    pub fn name(&self) -> String {
        self.name.get()
    }

    /// Requests completed.
    pub fn requests(&self) -> u64 {
        // Wrapping, as each of them does: a queue asks this on its way, and those of another process may be anything.
        let counts = [&self.writes, &self.flushes, &self.others];
        counts.into_iter().fold(self.reads.get(), |sum, count| sum.wrapping_add(count.get()))
    }

    /// Batches for which the driver would have kicked, had it not been asked to be silent.
    pub fn kicks_avoided(&self) -> u64 {
        self.batches.get().saturating_sub(self.kicks.get())
    }
}

/// A record: words and nothing else, so that it can be copied word by word.
///
/// # Safety
/// The type is made of `AtomicU64` alone, without padding, and all zeroes are a value of it.
pub(super) unsafe trait Record: Sized {
    const WORDS: usize = size_of::<Self>() / 8;

    fn name(&self) -> &Name;
    /// What does not only count up.
    fn gauges(&self) -> impl Iterator<Item = &Counter>;

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the trait's own promise.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), Self::WORDS) }
    }

    /// A copy in memory of one's own.
    fn copy(&self) -> Box<Self> {
        // SAFETY: the trait's own promise.
        let copy = unsafe { Box::<Self>::new_zeroed().assume_init() };
        for (to, from) in copy.words().iter().zip(self.words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        copy
    }

    /// What was counted since `earlier`; gauges as they are now.
    fn since(&self, earlier: &Self) -> Box<Self> {
        let difference = self.copy();
        for (word, earlier) in difference.words().iter().zip(earlier.words()) {
            let now = word.load(Ordering::Relaxed);
            word.store(now.wrapping_sub(earlier.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        for (to, from) in difference.name().0.iter().zip(&self.name().0) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        difference.gauges().zip(self.gauges()).for_each(|(to, from)| to.set(from.get()));
        difference
    }
}

// SAFETY: see the definition; `the_layout_is_as_documented` finds padding.
unsafe impl Record for WorkerStats {
    fn name(&self) -> &Name {
        &self.name
    }

    fn gauges(&self) -> impl Iterator<Item = &Counter> {
        [&self.thread, &self.cpu, &self.policy, &self.ended, &self.tasks, &self.resting, &self.spin_ticks].into_iter()
    }
}

// SAFETY: as above.
unsafe impl Record for QueueStats {
    fn name(&self) -> &Name {
        &self.name
    }

    fn gauges(&self) -> impl Iterator<Item = &Counter> {
        [&self.in_flight, &self.error_numbers].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{BUCKETS, Header};
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_as_documented() {
        assert_eq!(size_of::<Header>(), 256);
        assert_eq!((offset_of!(Header, ended), offset_of!(Header, workers), offset_of!(Header, queues)), (48, 64, 96));
        assert_eq!((offset_of!(Header, buckets), offset_of!(Header, sub_buckets)), (128, 136));
        assert_eq!(size_of::<WorkerStats>(), 256);
        assert_eq!((offset_of!(WorkerStats, thread), offset_of!(WorkerStats, resting)), (64, 104));
        assert_eq!((offset_of!(WorkerStats, turns), offset_of!(WorkerStats, sleeps)), (128, 160));
        assert_eq!((offset_of!(WorkerStats, wakes_by_kick), offset_of!(WorkerStats, commands)), (184, 208));
        assert_eq!((offset_of!(WorkerStats, run_ns), offset_of!(WorkerStats, switches_involuntary)), (224, 248));
        assert_eq!((offset_of!(QueueStats, reads), offset_of!(QueueStats, in_flight)), (64, 120));
        assert_eq!((offset_of!(QueueStats, kicks), offset_of!(QueueStats, interrupts_suppressed)), (128, 144));
        assert_eq!(offset_of!(QueueStats, interrupts_merged), 152);
        assert_eq!((offset_of!(QueueStats, error_numbers), offset_of!(QueueStats, errors_by_number)), (160, 168));
        assert_eq!((offset_of!(QueueStats, batches), offset_of!(QueueStats, latency)), (192, 256));
        assert_eq!(size_of::<QueueStats>(), (256 + 4 * 8 * BUCKETS).next_multiple_of(128));
        assert_eq!(size_of::<QueueStats>(), 256 + 4 * 8 * BUCKETS, "no padding");
    }
    #[test]
    fn errors_are_told_apart_by_their_first_errnos_also_of_a_period() {
        let segment = crate::stats::StatsSegment::anonymous(1).expect("segment");
        let queue = segment.add("blk0/0 io0").expect("room");
        let count = |numbers: &[u16]| {
            queue.errors.add(numbers.len() as u64);
            numbers.iter().for_each(|&number| queue.count_error(number));
        };
        count(&[5, 28, 5, QueueStats::REFUSED]);
        let before = segment.snapshot();
        let all = |queue: &QueueStats| queue.errors_by_number().collect::<Vec<_>>();
        assert_eq!(all(&before.queues[0]), [(5, 2), (28, 1), (QueueStats::REFUSED, 1)]);
        // A fourth one, and one that says nothing, are among the others.
        count(&[28, 61, 0, QueueStats::REFUSED]);
        let between = segment.snapshot().since(&before);
        assert_eq!(all(&between.queues[0]), [(28, 1), (QueueStats::REFUSED, 1)]);
        assert_eq!(between.queues[0].errors.get(), 4);
    }
}
