//! The driver of a ring of either kind.
use super::{in_order::InOrder, layout::Buffer, packed::PackedDriver, split::SplitDriver};
use pollux_core::{
    memory::GuestMemory,
    ring::{QueueConfig, RingKind},
};

/// Bytes that a ring takes, from a page border on.
pub fn ring_bytes(kind: RingKind, size: u16) -> u64 {
    match kind {
        RingKind::Split => SplitDriver::bytes(size),
        RingKind::Packed => PackedDriver::bytes(size),
    }
}

/// The driver of one ring of either kind.
#[derive(Debug)]
pub enum RingDriver {
    /// Of a split ring.
    Split(SplitDriver),
    /// Of a packed ring.
    Packed(PackedDriver),
}

/// Calls a method of whichever driver it is.
macro_rules! either {
    ($driver:expr, $ring:ident => $call:expr) => {
        match $driver {
            RingDriver::Split($ring) => $call,
            RingDriver::Packed($ring) => $call,
        }
    };
}

impl RingDriver {
    /// Lays out a ring of `size` at guest-physical `base`, a page border.
    pub fn new(kind: RingKind, memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        match kind {
            RingKind::Split => RingDriver::Split(SplitDriver::new(memory, base, size, event_idx)),
            RingKind::Packed => RingDriver::Packed(PackedDriver::new(memory, base, size, event_idx)),
        }
    }

    /// Where the ring is, for the device.
    pub fn config(&self) -> QueueConfig {
        either!(self, ring => ring.config())
    }

    /// From now on, which is before the first chain, the device gives chains back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        either!(self, ring => ring.set_in_order());
    }

    /// The order that the device keeps, if it does.
    pub fn order(&self) -> Option<&InOrder> {
        either!(self, ring => ring.order())
    }

    /// Describes `buffers` as one chain, without showing it to the device yet. Returns the head or the buffer ID.
    /// `None`: not enough free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        either!(self, ring => ring.add(buffers))
    }

    /// As [`add`](Self::add), by an indirect table at guest-physical `table`.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        either!(self, ring => ring.add_indirect(buffers, table))
    }

    /// Shows the device all chains that were added. Returns whether it wants a kick.
    pub fn publish(&mut self) -> bool {
        either!(self, ring => ring.publish())
    }

    /// The next chain that the device has given back, and the number of bytes written. Its descriptors are free again.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        either!(self, ring => ring.pop_used())
    }

    /// Number of chains given back and not yet popped.
    pub fn used_count(&self) -> u16 {
        either!(self, ring => ring.used_count())
    }

    /// Asks for interrupts or not. `true`: with the next used chain.
    pub fn want_interrupts(&mut self, wanted: bool) {
        either!(self, ring => ring.want_interrupts(wanted));
    }

    /// Writes any value to guest memory.
    pub fn write<T: Copy>(&mut self, address: u64, value: T) {
        either!(self, ring => ring.write(address, value));
    }

    /// Makes a chain available that does not exist: the device must ask for a reset.
    pub fn break_rules(&mut self) {
        match self {
            RingDriver::Split(ring) => ring.push_head(0x7fff),
            RingDriver::Packed(ring) => ring.add_with_id(0x7fff),
        }
        self.publish();
    }

    /// The base of the ring as a device has it that has given back all that it has taken, namely all that was published
    /// or (`taken_all` is false) all that it has given back.
    pub fn base(&self, taken_all: bool) -> u32 {
        either!(self, ring => ring.base(taken_all))
    }

    /// The split ring that this is.
    pub fn split(&mut self) -> &mut SplitDriver {
        match self {
            RingDriver::Split(ring) => ring,
            RingDriver::Packed(_) => panic!("a packed ring"),
        }
    }

    /// The packed ring that this is.
    pub fn packed(&mut self) -> &mut PackedDriver {
        match self {
            RingDriver::Packed(ring) => ring,
            RingDriver::Split(_) => panic!("a split ring"),
        }
    }
}
