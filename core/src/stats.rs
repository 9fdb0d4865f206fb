//! Statistics: counters and latency histograms in one shared mapping, which another process can map and read without a
//! word to the worker.
//!
//! Layout, little-endian: a header of 128 bytes ([`MAGIC`], [`LAYOUT_VERSION`], size of a record, number of records,
//! ticks of the time stamp counter per second), then one record a queue. A record begins with its name and is written
//! by one worker alone, each number by a plain store. A reader sees every number whole, but numbers of one record may
//! be a few requests apart.
use memmap2::{MmapOptions, MmapRaw};
use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// First eight bytes of the mapping: `POLLUXST`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"POLLUXST");
/// Version of the layout. A reader refuses others.
pub const LAYOUT_VERSION: u64 = 1;

/// Histogram precision: 8 buckets for each power of two, which is within 12.5 %.
const SUB_BITS: u32 = 3;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Values up to 2^40 ns (18 minutes) have buckets of their own; longer ones go to the last.
const MAX_EXPONENT: u32 = 40;
/// Number of buckets of a histogram.
pub const BUCKETS: usize = SUB_BUCKETS * (MAX_EXPONENT - SUB_BITS + 2) as usize;

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
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the value. Only the owner of the record may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// A latency histogram with logarithmic buckets, each power of two divided linearly. Values are nanoseconds.
#[repr(C)]
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
}

impl Histogram {
    fn index(value: u64) -> usize {
        let value = value.min((1 << (MAX_EXPONENT + 1)) - 1);
        let exponent = 63 - (value | ((1 << SUB_BITS) - 1)).leading_zeros();
        if exponent < SUB_BITS {
            return value as usize;
        }
        let sub = (value >> (exponent - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
        (exponent - SUB_BITS + 1) as usize * SUB_BUCKETS + sub
    }

    /// The greatest value that falls into bucket `index`.
    fn upper_bound(index: usize) -> u64 {
        if index < SUB_BUCKETS {
            return index as u64;
        }
        let exponent = (index / SUB_BUCKETS) as u32 + SUB_BITS - 1;
        let sub = (index % SUB_BUCKETS) as u64;
        (1 << exponent) + ((sub + 1) << (exponent - SUB_BITS)) - 1
    }

    /// Counts one latency in nanoseconds.
    #[inline]
    pub fn record(&self, nanoseconds: u64) {
        self.buckets[Self::index(nanoseconds)].add(1);
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// The greatest value of each bucket in nanoseconds, ascending, and how many values it has. For adding up
    /// histograms.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(index, bucket)| (Self::upper_bound(index), bucket.get()))
    }

    /// The value in nanoseconds below which `share` (0 to 1) of all lie, to the precision of a bucket; `None` without
    /// values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let count = self.count();
        let rank = ((count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.get();
            if seen >= rank {
                return Some(Self::upper_bound(index));
            }
        }
        None
    }
}

/// What is counted of one queue. Written by its worker alone.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct QueueStats {
    /// Names: device, queue and worker, such as `blk0/0 io0`, padded with zeroes.
    name: [AtomicU64; 8],
    /// Requests completed: reads.
    pub reads: Counter,
    /// Requests completed: writes.
    pub writes: Counter,
    /// Requests completed: flushes.
    pub flushes: Counter,
    /// Requests completed: all others.
    pub others: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// Bytes read.
    pub bytes_read: Counter,
    /// Bytes written.
    pub bytes_written: Counter,
    /// Times that the queue had new requests.
    pub batches: Counter,
    /// Kicks received from the driver.
    pub kicks: Counter,
    /// Interrupts sent to the driver.
    pub interrupts: Counter,
    /// Times that the driver wanted no interrupt for completed requests.
    pub interrupts_suppressed: Counter,
    /// Requests in flight.
    pub in_flight: Counter,
    /// Latency of sampled requests, from being taken from the ring to the used ring.
    pub latency: Histogram,
}

impl QueueStats {
    /// Requests completed.
    pub fn requests(&self) -> u64 {
        self.reads.get() + self.writes.get() + self.flushes.get() + self.others.get()
    }

    /// Batches for which the driver would have kicked, had it not been asked to be silent.
    pub fn kicks_avoided(&self) -> u64 {
        self.batches.get().saturating_sub(self.kicks.get())
    }

    /// The record's name.
    pub fn name(&self) -> String {
        let bytes: Vec<u8> = self.name.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    fn set_name(&self, name: &str) {
        let mut bytes = [0; 64];
        let length = name.len().min(bytes.len());
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        for (word, chunk) in self.name.iter().zip(bytes.chunks_exact(8)) {
            word.store(u64::from_le_bytes(chunk.try_into().unwrap_or_default()), Ordering::Relaxed);
        }
    }
}

const HEADER_BYTES: usize = 128;

/// The mapping with all records. Clone it freely: clones share it.
#[derive(Clone, Debug)]
pub struct StatsSegment {
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
    used: AtomicU64,
    capacity: usize,
    _file: File,
}

/// A record in a segment, which it keeps alive.
#[derive(Clone, Debug)]
pub struct QueueStatsHandle {
    stats: *const QueueStats,
    _mapping: Arc<Mapping>,
}

// SAFETY: a record is made of atomics in a shared mapping that the handle keeps alive.
unsafe impl Send for QueueStatsHandle {}
// SAFETY: as above.
unsafe impl Sync for QueueStatsHandle {}

impl std::ops::Deref for QueueStatsHandle {
    type Target = QueueStats;
    #[inline(always)]
    fn deref(&self) -> &QueueStats {
        // SAFETY: `StatsSegment::add` placed the record in the mapping, which the handle keeps alive.
        unsafe { &*self.stats }
    }
}

impl StatsSegment {
    /// Makes a segment in `file` with room for `capacity` records.
    ///
    /// # Errors
    /// The file cannot be sized or mapped.
    pub fn create(file: File, capacity: usize) -> io::Result<Self> {
        let length = HEADER_BYTES + capacity * size_of::<QueueStats>();
        file.set_len(length as u64)?;
        let map = MmapOptions::new().len(length).map_raw(&file)?;
        let mapping = Mapping { map, used: AtomicU64::new(0), capacity, _file: file };
        for (index, word) in [MAGIC, LAYOUT_VERSION, size_of::<QueueStats>() as u64, 0, clock::ticks_per_second()]
            .into_iter()
            .enumerate()
        {
            mapping.header(index).store(word, Ordering::Release);
        }
        Ok(StatsSegment { mapping: Arc::new(mapping) })
    }

    /// Makes a segment in anonymous memory.
    ///
    /// # Errors
    /// No memory.
    pub fn anonymous(capacity: usize) -> io::Result<Self> {
        Self::create(crate::memory::anonymous_file(c"pollux-stats")?, capacity)
    }

    /// Adds a record. `None`: the segment is full.
    pub fn add(&self, name: &str) -> Option<QueueStatsHandle> {
        let mapping = &self.mapping;
        let index = mapping.used.fetch_add(1, Ordering::AcqRel) as usize;
        if index >= mapping.capacity {
            return None;
        }
        let handle = self.record(index);
        handle.set_name(name);
        // Partner: a reader's load of the number of records, before it reads their names.
        mapping.header(3).store(index as u64 + 1, Ordering::Release);
        Some(handle)
    }

    /// All records there are.
    pub fn records(&self) -> impl Iterator<Item = QueueStatsHandle> {
        let count = self.mapping.header(3).load(Ordering::Acquire) as usize;
        (0..count.min(self.mapping.capacity)).map(|index| self.record(index))
    }

    fn record(&self, index: usize) -> QueueStatsHandle {
        let offset = HEADER_BYTES + index * size_of::<QueueStats>();
        let stats = self.mapping.map.as_ptr().wrapping_add(offset).cast();
        QueueStatsHandle { stats, _mapping: self.mapping.clone() }
    }
}

impl Mapping {
    fn header(&self, word: usize) -> &AtomicU64 {
        // SAFETY: the header has 16 words at the page-aligned start of the mapping, all accessed atomically.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(word) }
    }
}

/// The clock of the hot path: the time stamp counter, calibrated once.
pub mod clock {
    use std::{
        sync::OnceLock,
        time::{Duration, Instant},
    };

    /// The time stamp counter. About 11 ns in a virtual machine.
    #[inline(always)]
    pub fn ticks() -> u64 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction.
        return unsafe { std::arch::x86_64::_rdtsc() };
        #[cfg(not(target_arch = "x86_64"))]
        return start().elapsed().as_nanos() as u64;
    }

    /// Ticks per second, measured over the first 10 ms of use.
    pub fn ticks_per_second() -> u64 {
        static RATE: OnceLock<u64> = OnceLock::new();
        *RATE.get_or_init(|| {
            let (start, first) = (Instant::now(), ticks());
            while start.elapsed() < Duration::from_millis(10) {
                std::hint::spin_loop();
            }
            let (elapsed, ticks) = (start.elapsed(), ticks() - first);
            (u128::from(ticks) * 1_000_000_000 / elapsed.as_nanos()) as u64
        })
    }

    /// Turns ticks into nanoseconds.
    #[derive(Clone, Copy, Debug)]
    pub struct Scale {
        factor: u64,
    }

    impl Scale {
        /// The scale of this machine.
        pub fn new() -> Self {
            Scale { factor: ((1_000_000_000u128 << 32) / u128::from(ticks_per_second().max(1))) as u64 }
        }

        /// Nanoseconds of `ticks`.
        #[inline(always)]
        pub fn nanoseconds(self, ticks: u64) -> u64 {
            ((u128::from(ticks) * u128::from(self.factor)) >> 32) as u64
        }
    }

    impl Default for Scale {
        fn default() -> Self {
            Self::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_its_bucket_to_one_eighth() {
        for value in
            (0..2000).chain((4..41).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << (bit - 2))]))
        {
            let index = Histogram::index(value);
            let upper = Histogram::upper_bound(index);
            assert!(upper >= value, "{value} in bucket {index} up to {upper}");
            assert!(upper - value <= value / 8, "{value} in bucket {index} up to {upper}");
            assert!(index == 0 || Histogram::upper_bound(index - 1) < value, "{value} in bucket {index}");
        }
        assert_eq!(Histogram::index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_segment_hands_out_records_until_it_is_full() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        let first = segment.add("blk0/0 io0").expect("room");
        first.reads.add(3);
        for nanoseconds in 1..=1000 {
            first.latency.record(nanoseconds);
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
    }
}
