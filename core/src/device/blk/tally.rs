//! What a batch adds to the statistics.
use super::request::Status;
use crate::stats::{BlkStats, QueueStats};
use pollux_abi::block_v1::{POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_READ, POLLUX_BLOCK_WRITE};

/// Counts of one batch, kept in registers until its end.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Reads, writes, flushes, others: by the number of the operation.
    requests: [u64; 4],
    bytes: [u64; 4],
    errors: u64,
}

impl Tally {
    #[inline(always)]
    pub(super) fn count(&mut self, operation: u32, bytes: u64, status: Status) {
        let kind = operation.min(3) as usize;
        self.requests[kind] += 1;
        self.bytes[kind] += bytes;
        self.errors += u64::from(status != Status::Ok);
    }

    #[inline(always)]
    pub(super) fn add_to(&self, common: &QueueStats, stats: &BlkStats) {
        stats.reads.add(self.requests[0]);
        stats.writes.add(self.requests[1]);
        stats.flushes.add(self.requests[2]);
        stats.bytes_read.add(self.bytes[0]);
        stats.bytes_written.add(self.bytes[1]);
        common.requests.add(self.requests.iter().sum());
        common.errors.add(self.errors);
    }
}

/// `Tally` counts by the number of the operation.
const _: () = assert!(POLLUX_BLOCK_READ == 0 && POLLUX_BLOCK_WRITE == 1 && POLLUX_BLOCK_FLUSH == 2);
