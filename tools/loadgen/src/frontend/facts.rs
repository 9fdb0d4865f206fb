//! What a device says of itself (virtio 1.3, 5.2.4).
use pollux_core::ring::RingKind;
use serde::Serialize;
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    },
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// Bit of the feature without which there are no protocol features.
pub(super) const PROTOCOL_FEATURES: u32 = 30;

/// Feature bits that this driver takes if they are offered.
pub(super) const TAKEN: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << PROTOCOL_FEATURES
    | 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_RO
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_BLK_F_MQ;

/// Bytes of the configuration space that are read: up to the number of queues.
pub(super) const CONFIG_BYTES: usize = 36;

/// What was agreed with a device, and what it says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Its length in bytes.
    pub capacity: u64,
    /// Its logical block in bytes.
    pub block_bytes: u32,
    /// Number of queues that it has.
    pub queues: u64,
    /// Longest buffer it takes, in bytes.
    pub size_max: Option<u32>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether it takes flushes.
    pub flush: bool,
    /// Whether it gives requests back in the order in which they were made.
    pub in_order: bool,
    /// Whether requests go through indirect tables.
    pub indirect: bool,
    /// Whether notifications follow event indices.
    pub event_idx: bool,
    /// Whether the rings are packed ones.
    pub packed: bool,
    /// Whether it keeps a record of requests in flight that outlives it.
    pub inflight: bool,
}

impl Facts {
    pub(super) fn new(config: &[u8], features: u64, queues: u64, inflight: bool) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let word = |at: usize| config[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        Facts {
            capacity: config[..8].try_into().map_or(0, u64::from_le_bytes).saturating_mul(512),
            block_bytes: if has(VIRTIO_BLK_F_BLK_SIZE) { word(20).max(512) } else { 512 },
            queues,
            // qemu-storage-daemon offers the feature and says 0, by which it means none.
            size_max: has(VIRTIO_BLK_F_SIZE_MAX).then(|| word(8)).filter(|&bytes| bytes > 0),
            read_only: has(VIRTIO_BLK_F_RO),
            flush: has(VIRTIO_BLK_F_FLUSH),
            in_order: has(VIRTIO_F_IN_ORDER),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
            packed: RingKind::of_features(features) == RingKind::Packed,
            inflight,
        }
    }

    /// The kind of its rings.
    pub fn ring(&self) -> RingKind {
        if self.packed { RingKind::Packed } else { RingKind::Split }
    }
}

/// The number of queues in the configuration space.
pub(super) fn config_queues(config: &[u8], features: u64) -> u64 {
    match features & 1 << VIRTIO_BLK_F_MQ {
        0 => 1,
        _ => config[34..36].try_into().map_or(1, u16::from_le_bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_counts_only_with_its_feature() {
        let mut config = [0; CONFIG_BYTES];
        config[..8].copy_from_slice(&2048u64.to_le_bytes());
        config[8..12].copy_from_slice(&65536u32.to_le_bytes());
        config[20..24].copy_from_slice(&4096u32.to_le_bytes());
        config[34..36].copy_from_slice(&4u16.to_le_bytes());
        let bare = Facts::new(&config, 0, 1, false);
        assert_eq!((bare.capacity, bare.block_bytes, bare.size_max, bare.read_only), (1 << 20, 512, None, false));
        let full = Facts::new(&config, TAKEN, 4, true);
        assert_eq!((full.block_bytes, full.size_max, full.read_only, full.flush), (4096, Some(65536), true, true));
        assert_eq!((config_queues(&config, 0), config_queues(&config, TAKEN)), (1, 4));
    }
}
