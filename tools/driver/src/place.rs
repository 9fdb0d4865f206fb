//! A place in a packed ring (virtio 1.3, 2.8.1).
use super::layout::{AVAILABLE, USED};

/// An index and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the descriptor.
    pub index: u16,
    /// Changes with each lap.
    pub wrap: bool,
}

impl Place {
    /// Where a new ring begins.
    pub const START: Self = Place { index: 0, wrap: true };

    /// So many descriptors further, no more than the ring has.
    #[inline(always)]
    #[must_use]
    pub fn advanced(self, count: u16, size: u16) -> Self {
        let index = self.index + count;
        if index < size { Place { index, ..self } } else { Place { index: index - size, wrap: !self.wrap } }
    }

    /// As an event offset has it.
    #[inline(always)]
    pub fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// AVAILABLE and USED of an available descriptor here.
    #[inline(always)]
    pub fn available(self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }

    /// AVAILABLE and USED of a used descriptor here.
    #[inline(always)]
    pub fn used(self) -> u16 {
        if self.wrap { AVAILABLE | USED } else { 0 }
    }
}
