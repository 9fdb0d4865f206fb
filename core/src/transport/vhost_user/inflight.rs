//! The region in which a front end keeps requests in flight for us (vhost-user document, "Inflight I/O tracking").
use crate::{
    memory::ForeignMapping,
    ring::{InflightPlace, MAX_QUEUE_SIZE, RingKind},
};
use std::sync::Arc;

/// Most queues that one region covers.
const QUEUES_MAX: u16 = 1024;

/// One such region.
#[derive(Debug)]
pub(super) struct InflightRegion {
    pub(super) mapping: Arc<ForeignMapping>,
    pub(super) queue_size: u16,
    pub(super) queues: u16,
}

impl InflightRegion {
    /// Bytes of the part that is for the queues, if it is not too large.
    pub(super) fn bytes(kind: RingKind, queues: u16, queue_size: u16) -> Result<u64, String> {
        if queues > QUEUES_MAX || queue_size > MAX_QUEUE_SIZE {
            return Err(format!("there is no device with {queues} queues of {queue_size} entries"));
        }
        Ok(kind.inflight_bytes(queue_size) * u64::from(queues))
    }

    /// The part that belongs to one queue.
    pub(super) fn place(&self, index: usize) -> Result<InflightPlace, String> {
        if index >= usize::from(self.queues) {
            return Err(format!("its in-flight region is for {} queues", self.queues));
        }
        Ok(InflightPlace { mapping: self.mapping.clone(), index, queue_size: self.queue_size })
    }
}
