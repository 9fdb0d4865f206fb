//! What came of a load.
use crate::{latency::Latencies, queue::Counters, series::Series};
use std::collections::BTreeMap;

/// What one queue did in the measurement.
#[derive(Clone, Debug, Default)]
pub struct QueueResult {
    /// Requests completed.
    pub requests: u64,
    /// Of these: reads.
    pub reads: u64,
    /// Of these: writes.
    pub writes: u64,
    /// Of these: flushes.
    pub flushes: u64,
    /// Of these: failed.
    pub errors: u64,
    /// How many of those that failed ended with which status, by the status byte.
    pub errors_by_status: BTreeMap<u8, u64>,
    /// Bytes read and written, by requests that did not fail.
    pub bytes: u64,
    /// Length of the measurement.
    pub elapsed_ns: u64,
    /// Latency of each request, from the ring to the ring.
    pub latencies: Latencies,
    /// Completions over time.
    pub series: Series,
    /// Notifications.
    pub counters: Counters,
}

impl QueueResult {
    /// Adds up all queues; the time is the longest.
    pub fn sum<'a>(results: impl IntoIterator<Item = &'a QueueResult>) -> QueueResult {
        let mut sum = QueueResult::default();
        for result in results {
            sum.requests += result.requests;
            sum.reads += result.reads;
            sum.writes += result.writes;
            sum.flushes += result.flushes;
            sum.errors += result.errors;
            for (&status, count) in &result.errors_by_status {
                *sum.errors_by_status.entry(status).or_default() += count;
            }
            sum.bytes += result.bytes;
            sum.elapsed_ns = sum.elapsed_ns.max(result.elapsed_ns);
            sum.latencies.merge(&result.latencies);
            sum.series.merge(&result.series);
            sum.counters.kicks += result.counters.kicks;
            sum.counters.interrupts += result.counters.interrupts;
            sum.counters.sleeps += result.counters.sleeps;
        }
        sum
    }

    /// A request has failed, with this status.
    #[cold]
    pub(super) fn add_error(&mut self, status: u8) {
        self.errors += 1;
        *self.errors_by_status.entry(status).or_default() += 1;
    }

    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.seconds()
    }

    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds()
    }

    /// Time per request in nanoseconds; `None` without requests.
    pub fn ns_per_request(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.elapsed_ns as f64 / self.requests as f64)
    }

    fn seconds(&self) -> f64 {
        (self.elapsed_ns as f64 / 1e9).max(1e-9)
    }
}
