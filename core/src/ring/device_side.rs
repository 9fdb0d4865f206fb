//! What the device does with a ring, whatever its kind.
use super::{
    chain::{Chain, SegmentList},
    config::{QueueConfig, RingStart},
    error::RingError,
};
use crate::{
    event::Watch,
    memory::{DirtyLog, Translator},
};
use std::fmt::Debug;

/// A virtqueue, device side: owned by one worker, which polls it. Chains are named by 16 bits below
/// [`size`](Ring::size).
///
/// A turn takes a batch by [`pop`](Ring::pop), [walks](Ring::walk) all of its chains before it pops again, gives any
/// number of chains back by [`push_used`](Ring::push_used), shows them to the driver by [`publish`](Ring::publish), and
/// asks [`needs_signal`](Ring::needs_signal) once. Code that is generic over this pays nothing for it.
pub trait Ring: Debug + Send + Sized + 'static {
    /// Takes over a queue whose driver has set it up and not used it yet. Kicks are switched off: the owner polls.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    fn new(config: &QueueConfig, tables: Translator, event_idx: bool) -> Result<Self, RingError> {
        Self::start(config, tables, event_idx, RingStart::default())
    }

    /// Takes over a queue that its driver has set up, either new or where an earlier owner stopped or died. Kicks are
    /// switched off.
    ///
    /// # Errors
    /// The size is not allowed, or a part does not lie in guest memory or is not aligned; or the region for requests in
    /// flight is of another queue.
    fn start(config: &QueueConfig, tables: Translator, event_idx: bool, start: RingStart) -> Result<Self, RingError> {
        let is_resumed = start.resumed;
        let mut ring = Self::lay_out(config, tables, event_idx, start)?;
        if is_resumed {
            ring.resume()?;
        }
        ring.disable_kicks();
        Ok(ring)
    }

    /// The first step of [`start`](Self::start): the ring as if it had never been used.
    ///
    /// # Errors
    /// As `start`.
    fn lay_out(config: &QueueConfig, tables: Translator, event_idx: bool, start: RingStart) -> Result<Self, RingError>;

    /// The second step of [`start`](Self::start), if the rings were used before.
    ///
    /// # Errors
    /// As `start`.
    fn resume(&mut self) -> Result<(), RingError>;

    /// Checks whether a ring can be there.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    fn check(config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError>;

    /// Moves the ring to its place in another memory map, and leaves the translator of the old one behind, which must
    /// be kept as long as a request taken under it is in flight.
    ///
    /// # Errors
    /// It is not in that map: both are as they were, and the ring must not be popped from any more.
    fn adopt(&mut self, config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError>;

    /// Sets which log notes changes of the rings, and by which guest address. Returns what was there.
    fn set_log(&mut self, log: Option<(DirtyLog, u64)>) -> Option<(DirtyLog, u64)>;

    /// The ring's position, in the form of vhost-user's GET_VRING_BASE.
    fn base(&self) -> u32;

    /// Number of descriptors.
    fn size(&self) -> u16;

    /// Takes chains that the driver has made available, at most `heads.len()`, and returns how many. Each must be
    /// [walked](Self::walk) before the next call, and given back by [`push_used`](Self::push_used).
    ///
    /// # Errors
    /// The driver broke the ring.
    fn pop(&mut self, heads: &mut [u16]) -> Result<usize, RingError>;

    /// Takes chains that an earlier process had in flight, as [`pop`](Self::pop) takes new ones. 0: there are no more.
    fn pop_recovered(&mut self, heads: &mut [u16]) -> usize;

    /// Whether there are chains for [`pop_recovered`](Self::pop_recovered).
    fn has_recovered_chains(&self) -> bool;

    /// Whether the driver has made chains available that were not popped yet.
    fn has_available(&self) -> bool;

    /// What changes when the driver makes a chain available, for an owner that has popped all chains. `None`: the ring
    /// must be polled.
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
