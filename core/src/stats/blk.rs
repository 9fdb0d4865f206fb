//! What the queues of block devices have in addition.
use super::{
    counter::Counter,
    histogram::OperationLatency,
    queue::{QueueKind, QueueStats},
    record::Words,
};
use std::sync::atomic::AtomicU64;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// Number of errnos that are counted separately in the record of a queue.
const ERROR_NUMBERS: usize = 3;

/// What is counted for one queue of a block device. Written only by its worker.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct BlkStats {
    /// Requests completed: reads.
    pub reads: Counter,
    /// Requests completed: writes.
    pub writes: Counter,
    /// Requests completed: flushes.
    pub flushes: Counter,
    reserved_request: Counter,
    /// Bytes read.
    pub bytes_read: Counter,
    /// Bytes written.
    pub bytes_written: Counter,
    reserved: [Counter; 2],
    /// The errnos of `errors_by_number`, 16 bits each, the first one lowest; 0: none yet.
    error_numbers: Counter,
    /// Requests that failed with each of these errnos.
    errors_by_number: [Counter; ERROR_NUMBERS],
    reserved_counters: [Counter; 4],
    /// Latencies of sampled requests, from being taken from the ring to being put into the used ring.
    pub latency: OperationLatency,
}

impl BlkStats {
    /// Requests completed that are neither reads nor writes nor flushes, among those that the record of the same queue
    /// has counted.
    pub fn others(&self, queue: &QueueStats) -> u64 {
        // The numbers of another process may be anything, and may change at this moment.
        let known = [&self.reads, &self.writes, &self.flushes];
        known.into_iter().fold(queue.requests.get(), |rest, count| rest.saturating_sub(count.get()))
    }

    /// In place of an errno: the device has refused the request, which did not reach the medium.
    pub const REFUSED: u16 = u16::MAX;

    /// Counts a failed request by its errno, in addition to [`errors`](super::QueueStats::errors). Only the owner of
    /// the record may call this.
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

    /// How many requests failed with which errno or [`REFUSED`](Self::REFUSED), as far as they are counted separately:
    /// the others are in [`errors`](super::QueueStats::errors) alone.
    pub fn errors_by_number(&self) -> impl Iterator<Item = (u16, u64)> {
        let numbers = self.error_numbers.get();
        let counts = self.errors_by_number.iter().enumerate();
        let counts = counts.map(move |(index, counter)| ((numbers >> (16 * index)) as u16, counter.get()));
        counts.filter(|(number, count)| *number != 0 && *count > 0)
    }
}

// SAFETY: atomic words and nothing else; `the_layout_is_as_documented` finds padding.
unsafe impl Words for BlkStats {
    fn gauges(&self) -> impl Iterator<Item = &AtomicU64> {
        [&self.error_numbers.0].into_iter()
    }
}

impl QueueKind for BlkStats {
    const KIND: u32 = VIRTIO_ID_BLOCK;
}
