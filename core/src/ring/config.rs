//! Where a ring is, and where it begins.
use super::region::InflightPlace;
use crate::memory::DirtyLog;

/// Most descriptors in one table or queue (virtio 1.3, 2.7: the queue size is at most 32768).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Size and guest-physical addresses of one queue, as the driver set them.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// Number of descriptors: for a split ring a power of two.
    pub size: u16,
    /// Descriptor table (split) or descriptor ring (packed).
    pub descriptors: u64,
    /// Available ring (split) or driver event suppression structure (packed).
    pub driver_area: u64,
    /// Used ring (split) or device event suppression structure (packed).
    pub device_area: u64,
}

/// Where a ring begins.
#[derive(Clone, Debug, Default)]
pub struct RingStart {
    /// Where the device continues, in the form of [`Ring::base`](super::Ring::base). `None`: at the beginning.
    pub base: Option<u32>,
    /// Whether the rings may have been used before: then the used index of a split ring continues from the value in
    /// memory, and the driver is told once that something may wait for it.
    pub resumed: bool,
    /// The record of requests in flight. It overrides `base`.
    pub inflight: Option<InflightPlace>,
    /// The log for pages that the device writes, if there is one.
    pub log: Option<DirtyLog>,
    /// The guest address under which the used ring is logged, if it is.
    pub log_used: Option<u64>,
}
