//! Virtqueues as a polling device reads them: our own code over cached host pointers.
//!
//! Everything in a ring is written by the guest, at any time. A value is read once, checked once and never read
//! again; a ring that breaks the rules yields a [`RingError`], after which it is not touched any more.
mod chain;
mod in_order;
mod inflight;
mod packed;
mod region;
mod split;
mod table;

pub use chain::{Chain, SegmentList};
pub use in_order::{InOrder, UsedRuns};
use inflight::InflightQueue;
pub use packed::PackedRing;
pub use region::InflightPlace;
pub use split::SplitRing;

use crate::{
    memory::{DirtyLog, Translator},
    worker::Watch,
};
use std::{collections::TryReserveError, fmt::Debug};
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

/// Most descriptors in one table or queue (virtio 1.3, 2.7: the queue size is at most 32768).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// The two kinds of ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingKind {
    /// Virtio 1.3, 2.7.
    Split,
    /// Virtio 1.3, 2.8.
    Packed,
}

impl RingKind {
    /// Both of them.
    pub const BOTH: [RingKind; 2] = [RingKind::Split, RingKind::Packed];

    /// The kind that a driver speaks which has accepted these features.
    pub fn of_features(features: u64) -> Self {
        if features & 1 << VIRTIO_F_RING_PACKED == 0 { RingKind::Split } else { RingKind::Packed }
    }

    /// The feature by which a driver says it.
    pub fn feature(self) -> u64 {
        match self {
            RingKind::Split => 0,
            RingKind::Packed => 1 << VIRTIO_F_RING_PACKED,
        }
    }

    /// The [base](Ring::base) of a ring that was not used yet. Both wrap counters of a packed ring are 1 (virtio 1.3,
    /// 2.8.1).
    pub fn beginning(self) -> u32 {
        match self {
            RingKind::Split => 0,
            RingKind::Packed => 0x8000_8000,
        }
    }

    /// Bytes of a region for requests in flight of a queue of `size` entries.
    pub fn inflight_bytes(self, size: u16) -> u64 {
        match self {
            RingKind::Split => inflight::inflight_bytes(size),
            RingKind::Packed => packed::inflight_bytes(size),
        }
    }

    /// Whether a ring of this kind can be where a driver has set it up.
    ///
    /// # Errors
    /// As [`Ring::start`].
    pub fn check(self, config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        match self {
            RingKind::Split => SplitRing::check(config, tables),
            RingKind::Packed => PackedRing::check(config, tables),
        }
    }
}

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
    /// Where the device goes on, as [`Ring::base`] says it. `None`: at the beginning.
    pub base: Option<u32>,
    /// Whether the rings may have been used before: then the used index of a split ring goes on from what is in memory,
    /// and the driver is told once that something may wait for it.
    pub resumed: bool,
    /// What notes the requests in flight. What it remembers overrides `base`.
    pub inflight: Option<InflightPlace>,
    /// The log for pages that the device writes, if there is one.
    pub log: Option<DirtyLog>,
    /// The guest address by which the used ring is logged, if it is.
    pub log_used: Option<u64>,
}

/// A virtqueue, device side: owned by one worker, which polls it. Chains are named by 16 bits below
/// [`size`](Ring::size).
///
/// A turn takes a batch by [`pop`](Ring::pop), [walks](Ring::walk) all of its chains before it pops again, gives any
/// number of chains back by [`push_used`](Ring::push_used), shows them to the driver by [`publish`](Ring::publish), and
/// asks [`needs_signal`](Ring::needs_signal) once. Whoever is generic over this pays nothing for it.
pub trait Ring: Debug + Send + Sized + 'static {
    /// Takes over a queue whose driver has set it up and not used it yet. Kicks are switched off: the owner polls.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    fn new(config: &QueueConfig, tables: Translator, event_idx: bool) -> Result<Self, RingError> {
        Self::start(config, tables, event_idx, RingStart::default())
    }

    /// Takes over a queue that its driver has set up, new or where somebody else has stopped or died. Kicks are
    /// switched off.
    ///
    /// # Errors
    /// The size is not allowed, or a part does not lie in guest memory or is not aligned; or the region for requests in
    /// flight is of another queue.
    fn start(config: &QueueConfig, tables: Translator, event_idx: bool, start: RingStart) -> Result<Self, RingError>;

    /// Whether a ring can be there.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    fn check(config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError>;

    /// Moves the ring to where it is in another memory map, and leaves the translator for the old one, which must be
    /// kept as long as a request is in flight that was taken under it.
    ///
    /// # Errors
    /// It is not in that map: both are as they were, and the ring must not be popped from any more.
    fn adopt(&mut self, config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError>;

    /// Sets which log notes changes of the rings, and by which guest address. Returns what was there.
    fn set_log(&mut self, log: Option<(DirtyLog, u64)>) -> Option<(DirtyLog, u64)>;

    /// Where the ring stands, as GET_VRING_BASE of vhost-user has it.
    fn base(&self) -> u32;

    /// Number of descriptors.
    fn size(&self) -> u16;

    /// Takes chains that the driver has made available, at most `heads.len()`, and returns how many. Each must be
    /// [walked](Self::walk) before the next call, and given back by [`push_used`](Self::push_used).
    ///
    /// # Errors
    /// The driver broke the ring.
    fn pop(&mut self, heads: &mut [u16]) -> Result<usize, RingError>;

    /// Takes chains that the process before had in flight, as [`pop`](Self::pop) takes new ones. 0: there are no more.
    fn pop_left_over(&mut self, heads: &mut [u16]) -> usize;

    /// Whether there are chains for [`pop_left_over`](Self::pop_left_over).
    fn has_left_over(&self) -> bool;

    /// Whether the driver has made chains available that were not popped yet.
    fn has_available(&self) -> bool;

    /// What changes when the driver makes a chain available, for an owner that has popped all there are. `None`: it is
    /// to be polled.
    fn watch(&self) -> Option<Watch>;

    /// Follows the chain `head` and puts its buffers into `segments`, those to read first. Empty buffers are left out.
    ///
    /// # Errors
    /// The driver broke the ring.
    fn walk(&mut self, head: u16, data: &mut Translator, segments: &mut SegmentList<'_>) -> Result<Chain, RingError>;

    /// Gives the chain back, of which the device has written `written` bytes from the start of the writable part. The
    /// driver sees it after [`publish`](Self::publish).
    fn push_used(&mut self, head: u16, written: u32);

    /// Shows the driver everything that was pushed. Returns whether there was anything.
    fn publish(&mut self) -> bool;

    /// Number of chains given back so far, modulo 2^16. There are no more between two publications than the ring has
    /// descriptors, so a difference is exact.
    fn used_count(&self) -> u16;

    /// Whether the driver wants to be told of what was published since the last call. Call it once per batch.
    fn needs_signal(&mut self) -> bool;

    /// Asks the driver for no kicks: the owner polls.
    fn disable_kicks(&mut self);

    /// Asks the driver for a kick with its next chain. Returns whether there is one already, in which case the owner
    /// must not sleep.
    fn enable_kicks(&mut self) -> bool;
}

/// How a driver broke its ring. The device needs a reset then (virtio 1.3, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is zero, no power of two or too great.
    #[error("a queue size of {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// The size of a packed ring is zero or too great.
    #[error("a queue size of {0} is not from 1 to 32768")]
    PackedSize(u16),
    /// Where a packed ring is to go on is outside of it.
    #[error("a base of {0:#x} is not in a ring of {1}")]
    Base(u32, u16),
    /// A part of the ring is not in guest memory, or not aligned.
    #[error("the {0} of the queue is not in guest memory or not aligned")]
    Placement(&'static str),
    /// The region for requests in flight is of another layout, or of a queue of another size.
    #[error("the in-flight region is of a layout or a queue size that is not this queue's: {0}")]
    Inflight(u16),
    /// The region for requests in flight does not say what it must.
    #[error("the in-flight region is damaged")]
    InflightDamaged,
    /// The region for requests in flight ends before the queue's part of it, or was made for a smaller queue.
    #[error("the in-flight region has no room for a queue of {0} entries")]
    InflightRoom(u16),
    /// The available index ran ahead by more than the size of the ring.
    #[error("the available index jumped by {0} entries in a queue of {1}")]
    AvailableIndex(u16, u16),
    /// More descriptors were made available than the ring has.
    #[error("more descriptors are available than the ring of {0} has")]
    Overrun(u16),
    /// The buffer ID is none of those that a ring of this size needs.
    #[error("buffer ID {0} is not below the size of the ring, {1}")]
    BufferId(u16, u16),
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
    /// There is no memory for what a queue of this size needs: no fault of the driver's.
    #[error("there is no memory for a queue of this size: choose a smaller one")]
    Memory,
}

impl From<TryReserveError> for RingError {
    fn from(_: TryReserveError) -> Self {
        RingError::Memory
    }
}
