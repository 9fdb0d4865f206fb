//! Virtqueues as a polling device reads them: our own code over cached host pointers.
//!
//! Everything in a ring is written by the guest, at any time. A value is read once, checked once and never read
//! again; a ring that breaks the rules yields a [`RingError`], after which it is not touched any more.
mod chain;
mod inflight;
mod split;

pub use chain::{Chain, SegmentList};
pub use inflight::{InflightQueue, inflight_bytes};
pub use split::SplitRing;

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
#[derive(Debug, Default)]
pub struct RingStart {
    /// Index of the next available entry that the device takes.
    pub available: u16,
    /// Whether the rings may have been used before: then the used index goes on from what is in memory, and the driver is told
    /// once that something may wait for it.
    pub resumed: bool,
    /// What notes the requests in flight. What it remembers overrides `available`.
    pub inflight: Option<InflightQueue>,
    /// The log for pages that the device writes, if there is one.
    pub log: Option<DirtyLog>,
    /// The guest address by which the used ring is logged, if it is.
    pub log_used: Option<u64>,
}

/// How a driver broke its ring. The device needs a reset then (virtio 1.3, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is zero, no power of two or too great.
    #[error("a queue size of {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// A part of the ring is not in guest memory, or not aligned.
    #[error("the {0} of the queue is not in guest memory or not aligned")]
    Placement(&'static str),
    /// The region for requests in flight is of another layout, or of a queue of another size.
    #[error("the in-flight region is of a layout or a queue size that is not this queue's: {0}")]
    Inflight(u16),
    /// The available index ran ahead by more than the size of the ring.
    #[error("the available index jumped by {0} entries in a queue of {1}")]
    AvailableIndex(u16, u16),
    /// The head, or a next field, names no descriptor.
    #[error("descriptor {0} does not exist in a table of {1}")]
    DescriptorIndex(u16, u16),
    /// A head is made available while it is in use.
    #[error("descriptor chain {0} was made available twice")]
    InUse(u16),
    /// The chain is longer than its table: it has a loop.
    #[error("the descriptor chain that starts at {0} has a loop")]
    Loop(u16),
    /// A buffer is not in guest memory.
    #[error("a descriptor points to guest address {0:#x}, length {1}, which is not in guest memory")]
    Address(u64, u32),
    /// An indirect table of a bad length, or one inside another, or with a next flag.
    #[error("the indirect descriptor table of chain {0} is malformed")]
    Indirect(u16),
    /// A buffer to read comes after one to write (virtio 1.3, 2.7.4.2).
    #[error("the descriptor chain that starts at {0} has a readable buffer after a writable one")]
    Order(u16),
    /// The chain has more buffers than the device said it takes.
    #[error("the descriptor chain that starts at {0} has more segments than the device takes")]
    TooLong(u16),
    /// The chain lacks what the device type requires.
    #[error("the descriptor chain that starts at {0} has no room for {1}")]
    Short(u16, &'static str),
}
