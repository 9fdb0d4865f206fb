//! A ring of either kind, chosen when a device has said what it offers.
use super::{
    packed::PackedRing,
    ring::{Chain, Ring, RingError},
    split::SplitRing,
};
use pollux_core::{
    memory::GuestMemory,
    ring::{QueueConfig, RingKind},
};

/// One of the two. The choice costs a branch that is always predicted.
#[derive(Debug)]
pub enum EitherRing {
    /// Virtio 1.3, 2.7.
    Split(SplitRing),
    /// Virtio 1.3, 2.8.
    Packed(PackedRing),
}

impl EitherRing {
    /// Bytes of guest memory, from a page border on, for a ring of `size` and `slots` requests.
    pub fn bytes(kind: RingKind, size: u16, slots: u16) -> u64 {
        match kind {
            RingKind::Split => SplitRing::bytes(size, slots),
            RingKind::Packed => PackedRing::bytes(size, slots),
        }
    }

    /// Lays out a ring at guest-physical `base`, a page border.
    ///
    /// # Panics
    /// The slots do not fit into the ring, or it is not in guest memory.
    pub fn new(
        kind: RingKind,
        memory: &GuestMemory,
        base: u64,
        (size, slots): (u16, u16),
        indirect: bool,
        event_idx: bool,
    ) -> Self {
        match kind {
            RingKind::Split => SplitRing::new(memory, base, size, slots, indirect, event_idx).into(),
            RingKind::Packed => PackedRing::new(memory, base, size, slots, indirect, event_idx).into(),
        }
    }
}

impl EitherRing {
    /// From now on, which is before the first request, the device gives requests back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        match self {
            EitherRing::Split(ring) => ring.set_in_order(),
            EitherRing::Packed(ring) => ring.set_in_order(),
        }
    }
}

impl From<SplitRing> for EitherRing {
    fn from(ring: SplitRing) -> Self {
        EitherRing::Split(ring)
    }
}

impl From<PackedRing> for EitherRing {
    fn from(ring: PackedRing) -> Self {
        EitherRing::Packed(ring)
    }
}

/// The same call on whichever it is.
macro_rules! either {
    ($ring:expr, $name:ident => $call:expr) => {
        match $ring {
            EitherRing::Split($name) => $call,
            EitherRing::Packed($name) => $call,
        }
    };
}

impl Ring for EitherRing {
    #[inline]
    fn add(&mut self, slot: u16, chain: &Chain) {
        either!(self, ring => ring.add(slot, chain));
    }

    #[inline]
    fn show(&mut self) {
        either!(self, ring => ring.show());
    }

    #[inline]
    fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    #[inline]
    fn pop(&mut self) -> Result<Option<u16>, RingError> {
        either!(self, ring => ring.pop())
    }

    #[inline]
    fn silence(&mut self) {
        either!(self, ring => ring.silence());
    }

    fn arm(&mut self) -> bool {
        either!(self, ring => ring.arm())
    }

    fn config(&self) -> QueueConfig {
        either!(self, ring => ring.config())
    }

    fn base(&self) -> Option<u16> {
        either!(self, ring => ring.base())
    }

    fn replay(&mut self) -> bool {
        either!(self, ring => ring.replay())
    }

    #[inline]
    fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }
}
