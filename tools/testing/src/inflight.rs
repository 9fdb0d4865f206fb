//! The record of requests in flight, which outlives the device's process.
use pollux_core::{
    memory::ForeignMapping,
    ring::{InflightPlace, RingKind, RingStart},
};
use std::{fs::File, sync::Arc};

/// The record of one queue, in a file that every process of the device maps.
#[derive(Debug)]
pub struct InflightFile {
    /// The file.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    queue_size: u16,
}

impl InflightFile {
    /// A new record for a queue of `queue_size`.
    pub fn new(kind: RingKind, queue_size: u16) -> Self {
        let (file, bytes) = (tempfile::tempfile().expect("a file"), kind.inflight_bytes(queue_size));
        file.set_len(bytes).expect("a length");
        InflightFile { file, bytes, queue_size }
    }

    /// How the next process starts the queue.
    pub fn start(&self, base: Option<u32>) -> RingStart {
        let mapping = ForeignMapping::map(&self.file, 0, self.bytes, true).expect("a mapping");
        let inflight = Some(InflightPlace { mapping: Arc::new(mapping), index: 0, queue_size: self.queue_size });
        RingStart { base, resumed: true, inflight, ..RingStart::default() }
    }
}
