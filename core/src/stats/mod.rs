//! Statistics: counters and histograms of every worker and queue in one shared file, which another process maps and
//! reads without involving the workers.
//!
//! | module | holds |
//! |---|---|
//! | [`clock`] | the clock of the hot path |
//! | `counter`, `header` | one word; the header of a segment |
//! | `record` | what all records have in common: a name, a life, copies, differences |
//! | `worker`, `queue`, `blk`, `backend` | the records of a worker, of any device's queue, of a block device's queue, of a backend |
//! | `histogram` | distributions of latencies and of the sizes of batches |
//! | `segment`, `slots` | the segment as its writer has it; which records of it are in use |
//! | `reader`, `places` | the segment as another process reads it; where records lie |
//! | `snapshot`, `process` | the numbers at one moment; what the kernel says of the process and its threads |
//!
//! # Layout, version 3
//!
//! Everything consists of 64-bit words in the machine's byte order, which is little-endian on all supported machines.
//! Offsets and sizes are in bytes. A reader checks magic and version first, refuses others, and takes all locations
//! from the header.
//!
//! The header has 256 bytes; those that are not listed are 0:
//!
//! | offset | holds |
//! |---|---|
//! | 0 | [`MAGIC`], the letters `POLLUXST` |
//! | 8 | [`LAYOUT_VERSION`] |
//! | 16 | length of the whole file |
//! | 24 | ticks of the time stamp counter per second |
//! | 32 | number of the writing process, as it sees it itself |
//! | 40 | when that process was started: field 22 of `/proc/PID/stat`; tells it from a later one of the same number |
//! | 48 | 1 once the writer has ended properly |
//! | 64, 72, 80, 88 | workers: offset of the first record, distance from one record to the next, number of records that fit, number of records that have been used at least once |
//! | 96, 104, 112, 120 | the same of queues |
//! | 128, 136, 144, 152 | the same of backends |
//! | 160, 168 | latency histograms: number of buckets, and linear buckets in each power of two |
//!
//! Names are padded with zeroes to 64 bytes, unless another length is given. Counters never go down; a reader computes
//! rates from differences. Words that are not listed are 0. They may be given a meaning without a new version; segments
//! of older programs have 0 there. Records may lie farther apart than their length given here: a newer program may have
//! kinds with longer records.
//!
//! # Lives of records
//!
//! Records come and go with what they describe. The word *life* of a record is 0 while it is free, and otherwise a
//! number that no other record of the segment has had or will have. A record is cleared and described before it gets
//! its life, and loses it before anything else of it changes. So a reader
//!
//! 1. loads the life, with acquire ordering, and skips a record that has none,
//! 2. copies the record,
//! 3. loads the life again, after an acquire fence, and discards the copy if it has changed,
//! 4. computes differences only between copies of one life.
//!
//! While a record lives, its counters are written by one thread only, each word by a plain store. A reader sees every
//! word whole, but the words of one record may be a few requests apart. When the process ends, records in use keep
//! their lives: they hold its last numbers.
//!
//! # Records
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
//! | 96, 104 | number of tasks; how many of them are at rest (polled only once in several turns) |
//! | 112 | life |
//! | 120 | wake-ups by a deadline of a task |
//! | 128, 136 | turns; turns without work |
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
//! A queue, at a multiple of 128 bytes: 384 bytes that the queues of all devices have, and a block of the device's
//! kind. A reader skips a block of a kind that it does not know, and reads a block that is shorter than it knows as if
//! zeroes followed.
//!
//! | offset | holds |
//! |---|---|
//! | 0 | life |
//! | 8, 16 | kind of the device, by its virtio device ID (virtio 1.3, section 5; 2: block); size of the block of that kind |
//! | 24 | index of the queue in its device |
//! | 64 | name of the device |
//! | 128 | name of the worker that serves the queue; empty if none does |
//! | 192, 200 | requests completed; requests that failed |
//! | 208 | requests in flight (goes down, too) |
//! | 216 | kicks received |
//! | 224, 232 | interrupts sent; times that the driver wanted none |
//! | 240 | times that completed requests were left to an interrupt already held back for earlier ones |
//! | 256 to 319 | batches of new requests by their size: 1, 2, to 4, to 8, to 16, to 32, to 64, more |
//! | 384 | the block of the device's kind |
//!
//! Each time that requests are given back to a driver, exactly one of the words at 224, 232 and 240 counts it; the one
//! at 224 does so when the interrupt is sent.
//!
//! The block of a block device's queue, 128 bytes and histograms, at these offsets in the block:
//!
//! | offset | holds |
//! |---|---|
//! | 0, 8, 16 | requests completed: reads, writes, flushes. The rest of the queue's word at 192 are others |
//! | 32, 40 | bytes read, bytes written, of requests that did not fail |
//! | 64 | the first three errnos with which requests failed, 16 bits each, the first one lowest; 0: none yet; 65535: refused by the device |
//! | 72, 80, 88 | requests that failed with each of these; the remaining failed requests failed otherwise |
//! | 128 | latencies of sampled requests, in nanoseconds, from the ring to the used ring: a histogram each of reads, writes, flushes, others |
//!
//! A histogram consists of as many buckets as the header says, a word each. With `s` linear buckets in each power of
//! two (8), a bucket `i` below `s` holds the value `i` alone; any other one holds the values from `(s + i % s) << (i /
//! s - 1)` up to where the next one begins. The last bucket takes all greater values.
//!
//! A backend, at a multiple of 128 bytes, has what its plugin counts itself, under the plugin's own names. It is
//! written by a control thread now and then. Only the plugin knows whether a number counts up:
//!
//! | offset | holds |
//! |---|---|
//! | 0 | life |
//! | 8 | sequence: odd while the counters are being written, and different after each update. A copy is consistent if the same even number was read before and after it |
//! | 16, 24 | number of counters; number of further ones that did not fit |
//! | 32 | when they were written: milliseconds since 1970 (UTC); 0: never |
//! | 64 | name of the backend |
//! | 128 | name of its plugin |
//! | 256 | counters, 60 of 64 bytes: a name of 56 bytes, UTF-8, and its value |
mod backend;
mod blk;
pub mod clock;
mod counter;
mod header;
mod histogram;
mod places;
mod process;
mod queue;
mod reader;
mod record;
mod segment;
mod slots;
mod snapshot;
mod worker;

pub use backend::{BackendSnapshot, BackendStats, COUNTERS, PluginCounter};
pub use blk::BlkStats;
pub use counter::Counter;
pub use header::{LAYOUT_VERSION, MAGIC};
pub use histogram::{BUCKETS, BatchSizes, Histogram, OperationLatency, SUB_BUCKETS};
pub use places::Capacity;
pub use process::{Schedule, Thread, Writer};
pub use queue::{PlainStats, QueueIdentity, QueueKind, QueueStats};
pub use reader::{ReadError, SegmentReader};
pub use segment::{
    BackendStatsHandle, BlkStatsHandle, QueueRecord, QueueStatsHandle, StatsHandle, StatsSegment, WorkerStatsHandle,
};
pub use snapshot::{KindSnapshot, QueueSnapshot, Snapshot};
pub use worker::WorkerStats;
