//! What the queues of an instance count.
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// Events off the fast path.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bounced: AtomicU64,
    pub(crate) resubmitted: AtomicU64,
    pub(crate) zeroes_written: AtomicU64,
    /// Reads that the page cache turned out not to have.
    pub(crate) not_cached: AtomicU64,
    /// Calls that the fallback thread has made.
    pub(crate) deferred: AtomicU64,
}

/// As the JSON object of `statistics`.
impl fmt::Display for Counters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            r#"{{"bounced":{},"resubmitted":{},"zeroes_written":{},"not_cached":{},"deferred":{}}}"#,
            self.bounced.load(Ordering::Relaxed),
            self.resubmitted.load(Ordering::Relaxed),
            self.zeroes_written.load(Ordering::Relaxed),
            self.not_cached.load(Ordering::Relaxed),
            self.deferred.load(Ordering::Relaxed),
        )
    }
}
