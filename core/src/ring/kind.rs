//! The two kinds of ring.
use super::{
    config::QueueConfig,
    device_side::Ring,
    error::RingError,
    packed::{self, PackedRing},
    split::{self, SplitRing},
};
use crate::memory::Translator;
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

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

    /// The kind used by a driver that has accepted these features.
    pub fn of_features(features: u64) -> Self {
        if features & 1 << VIRTIO_F_RING_PACKED == 0 { RingKind::Split } else { RingKind::Packed }
    }

    /// The feature that selects it.
    pub fn feature(self) -> u64 {
        match self {
            RingKind::Split => 0,
            RingKind::Packed => 1 << VIRTIO_F_RING_PACKED,
        }
    }

    /// The [base](Ring::base) of an unused ring. Both wrap counters of a packed ring are 1 (virtio 1.3, 2.8.1).
    pub fn beginning(self) -> u32 {
        match self {
            RingKind::Split => 0,
            RingKind::Packed => packed::BEGINNING,
        }
    }

    /// Bytes of a region for requests in flight of a queue of `size` entries.
    pub fn inflight_bytes(self, size: u16) -> u64 {
        match self {
            RingKind::Split => split::inflight_bytes(size),
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
