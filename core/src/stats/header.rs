//! The header of a segment.
use super::counter::Counter;
use std::sync::atomic::AtomicU64;

/// First eight bytes of the file: `POLLUXST`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"POLLUXST");
/// Version of the layout. A reader refuses others.
pub const LAYOUT_VERSION: u64 = 3;

/// The header, every word of which is accessed atomically.
#[repr(C, align(256))]
#[derive(Debug)]
pub(super) struct Header {
    pub(super) magic: Counter,
    pub(super) version: Counter,
    pub(super) length: Counter,
    pub(super) ticks_per_second: Counter,
    pub(super) process: Counter,
    pub(super) process_started: Counter,
    pub(super) ended: Counter,
    reserved: Counter,
    /// In the order of [`TableOf`].
    pub(super) tables: [Table; TABLES],
    pub(super) buckets: Counter,
    pub(super) sub_buckets: Counter,
}

/// The tables of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) enum TableOf {
    Workers,
    Queues,
    Backends,
}

/// Number of tables.
pub(super) const TABLES: usize = TableOf::Backends as usize + 1;

/// Where records of one kind are.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Table {
    pub(super) offset: Counter,
    pub(super) distance: Counter,
    pub(super) capacity: Counter,
    pub(super) count: AtomicU64,
}
