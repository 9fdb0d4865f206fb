//! What a block device and its queues share.
use super::failures::FailureLog;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What the transport's thread writes and workers read, once per batch; and the shared record of failures.
#[derive(Debug)]
pub(super) struct Shared {
    /// Whether completed writes may stay in a volatile cache.
    pub(super) writeback: AtomicBool,
    pub(super) capacity_sectors: AtomicU64,
    pub(super) failures: FailureLog,
}
