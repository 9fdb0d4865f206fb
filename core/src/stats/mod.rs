//! Statistics: counters and histograms of every worker and queue in one shared file, which another process maps and
//! reads without a word to the workers.
//!
//! # Layout, version 2
//!
//! Everything is made of 64-bit words in the byte order of the machine, little-endian on those that there are. Offsets
//! and sizes are in bytes. A reader takes what it needs to know of places from the header, checks magic and version
//! first, and refuses others.
//!
//! The header, 256 bytes, of which what is not named is 0:
//!
//! | offset | holds |
//! |---|---|
//! | 0 | [`MAGIC`], the letters `POLLUXST` |
//! | 8 | [`LAYOUT_VERSION`] |
//! | 16 | length of the whole file |
//! | 24 | ticks of the time stamp counter per second |
//! | 32 | process that writes, as it sees its own number |
//! | 40 | when that process was started: field 22 of `/proc/PID/stat`; tells it from a later one of the same number |
//! | 48 | 1 once the writer has ended in order |
//! | 64, 72, 80, 88 | workers: offset of the first record, size of a record, room for so many, number of records |
//! | 96, 104, 112, 120 | the same of queues |
//! | 128, 136 | latency histograms: number of buckets, and linear buckets in each power of two |
//!
//! A record is written by one thread alone, each word by a plain store. A reader sees every word whole, but the words
//! of one record may be a few requests apart. Records come and do not go; their number is written after the record.
//! Names are padded with zeroes to 64 bytes. What counts up never goes down; a reader takes differences for rates.
//!
//! A worker, at a multiple of 128 bytes. Its thread updates the numbers of turns about once in 250 turns, and before it
//! sleeps:
//!
//! | offset | holds |
//! |---|---|
//! | 0 | name |
//! | 64 | number of its thread; 0 before it has started |
//! | 72 | CPU that it is pinned to, plus 1; 0: none |
//! | 80 | idle policy: 0 spin, 1 adaptive, 2 interrupt |
//! | 88 | 1 once its thread has ended |
//! | 96, 104 | number of tasks; of those, at rest (looked at in one turn of several) |
//! | 128, 136 | turns; those of them without work |
//! | 144, 152 | ticks spent in sampled turns with work; without. Their ratio is that of busy time to idle time awake |
//! | 160, 168 | sleeps; ticks slept |
//! | 176 | times that it wanted to sleep and found work, or a task that cannot be waited for |
//! | 184, 192, 200 | wake-ups by a kick of a driver; by a backend; by a command |
//! | 208 | commands taken from the mailbox |
//! | 216 | ticks that it would poll without work before it sleeps (adaptive) |
//! | 224, 232, 240, 248 | at its end: nanoseconds on a CPU, nanoseconds ready and not on one, voluntary and involuntary context switches |
//!
//! While the thread runs, the last four are in `/proc/PID/task/TID/schedstat` (the first two numbers) and `status`: the
//! worker does not have to look. Time ready and not on a CPU is time stolen from a polling worker.
//!
//! A queue, at a multiple of 128 bytes:
//!
//! | offset | holds |
//! |---|---|
//! | 0 | name: device, index of the queue and worker, such as `blk0/1 io0` |
//! | 64, 72, 80, 88 | requests completed: reads, writes, flushes, others |
//! | 96, 104 | bytes read, bytes written, of requests that did not fail |
//! | 112, 120 | requests that failed; requests in flight (goes down, too) |
//! | 128, 136, 144 | kicks received; interrupts sent; times that the driver wanted none |
//! | 152 | times that completed requests were left to an interrupt that was being held for earlier ones |
//! | 160 | the first three errnos with which requests failed, 16 bits each, the first one lowest; 0: none yet; 65535: refused by the device |
//! | 168, 176, 184 | requests that failed with each of these; what is left of the word at 112 failed otherwise |
//! | 192 to 255 | batches of new requests by their size: 1, 2, to 4, to 8, to 16, to 32, to 64, more |
//! | 256 | latencies of sampled requests, in nanoseconds, from the ring to the used ring: a histogram each of reads, writes, flushes, others |
//!
//! Each time that requests are given back to a driver is counted by exactly one of the words at 136, 144 and 152, at
//! 136 when the interrupt is sent. Words that are not named are 0. They may get a name without a new version, and are 0
//! where an older program writes.
//!
//! A histogram is as many buckets as the header says, a word each. With `s` linear buckets in each power of two (8),
//! bucket `i` below `s` holds the values of exactly `i`; another the values from `(s + i % s) << (i / s - 1)` up to
//! where the next one begins. The last takes all greater ones.
pub mod clock;
mod histogram;
mod reader;
mod record;
mod segment;
mod snapshot;

pub use histogram::{BUCKETS, BatchSizes, Histogram, OperationLatency, SUB_BUCKETS};
pub use reader::{ReadError, SegmentReader};
pub use record::{QueueStats, WorkerStats};
pub use segment::{Capacity, QueueStatsHandle, StatsSegment, WorkerStatsHandle};
pub use snapshot::{Schedule, Snapshot, Thread, Writer};

use std::sync::atomic::{AtomicU64, Ordering};

/// First eight bytes of the file: `POLLUXST`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"POLLUXST");
/// Version of the layout. A reader refuses others.
pub const LAYOUT_VERSION: u64 = 2;

/// A counter with one writer: a plain load and store, no locked instruction.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only the owner of the record may.
    #[inline(always)]
    pub fn add(&self, amount: u64) {
        // Relaxed: the reader wants each number whole, no order between them.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// The value.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the value. Only the owner of the record may.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// The header, of which every word is accessed atomically.
#[repr(C, align(256))]
#[derive(Debug)]
struct Header {
    magic: Counter,
    version: Counter,
    length: Counter,
    ticks_per_second: Counter,
    process: Counter,
    process_started: Counter,
    ended: Counter,
    reserved: Counter,
    workers: Table,
    queues: Table,
    buckets: Counter,
    sub_buckets: Counter,
}

/// Where records of one kind are.
#[repr(C)]
#[derive(Debug)]
struct Table {
    offset: Counter,
    size: Counter,
    capacity: Counter,
    count: AtomicU64,
}
