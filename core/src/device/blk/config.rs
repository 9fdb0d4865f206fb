//! The configuration space of a block device (virtio 1.3, 5.2.4).
use super::request::{MediumLimits, SECTOR_SIZE};
use crate::device::ConfigFields;
use pollux_abi::block_v1::BlockInfo;

/// Length of the space up to and with the write-zeroes fields.
const LENGTH: usize = 60;
const BLOCK_SIZE: usize = 20;
const WRITEBACK: u64 = 32;
const MAX_DISCARD: usize = 36;
const MAX_WRITE_ZEROES: usize = 48;

/// The capacity follows the medium; the driver sets the cache mode.
pub(super) const FIELDS: ConfigFields = ConfigFields { device: 0..8, driver: 32..33 };

/// The remark about a guest whose cache mode is not known.
pub(super) const UNKNOWN_CACHE_MODE: &str = "its guest went on from another process, and nobody can say whether it has \
     set the disk's cache to write-through: each write is made durable until the guest sets its cache mode, or \
     restarts";

/// The bytes that the driver reads.
#[derive(Debug)]
pub(super) struct Config {
    bytes: [u8; LENGTH],
}

impl Config {
    pub(super) fn new(info: &BlockInfo, limits: &MediumLimits, features: u64, queues: usize) -> Self {
        let mut config = Config { bytes: [0; LENGTH] };
        let block = u64::from(info.logical_block_size);
        let blocks = |bytes: u32| u64::from(bytes) / block;
        let exponent = info.physical_block_size.trailing_zeros() - info.logical_block_size.trailing_zeros();
        let sectors = |bytes: u64| (bytes / SECTOR_SIZE).min(u32::MAX.into());
        config.put(0, limits.capacity_sectors, 8);
        config.put(8, limits.size_max.into(), 4);
        config.put(12, limits.seg_max.into(), 4);
        config.put(BLOCK_SIZE, block, 4);
        config.put(24, exponent.into(), 1);
        // min_io_size and opt_io_size are in logical blocks.
        config.put(26, blocks(info.minimum_io_size).clamp(1, u16::MAX.into()), 2);
        config.put(28, blocks(info.optimal_io_size), 4);
        config.put(34, queues as u64, 2);
        if features & 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_DISCARD != 0 {
            config.put(MAX_DISCARD, sectors(limits.max_discard), 4);
            config.put(40, 1, 4);
            config.put(44, sectors(info.discard_alignment.max(info.logical_block_size).into()), 4);
        }
        if features & 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES != 0 {
            config.put(MAX_WRITE_ZEROES, sectors(limits.max_write_zeroes), 4);
            config.put(52, 1, 4);
            config.put(56, 1, 1);
        }
        config
    }

    /// The medium has grown or shrunk.
    pub(super) fn set_capacity(&mut self, sectors: u64) {
        self.put(0, sectors, 8);
    }

    /// What a driver that was told `told` may ask for but the device does not support any more, each as a sentence.
    /// Reads and writes with as many and as long segments as before still work, in portions if necessary.
    pub(super) fn broken_promises(&self, told: &[u8], features: u64) -> Vec<String> {
        use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};
        let word = |space: &[u8], at: usize| {
            space.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let pair = |at: usize| (word(told, at), word(&self.bytes, at));
        let has = |feature: u32| features & 1 << feature != 0;
        let mut broken = Vec::new();
        let (old, new) = pair(BLOCK_SIZE);
        if old != 0 && new > old {
            broken.push(format!(
                "its guest was told of blocks of {old} bytes, and the medium has blocks of {new}: requests for parts \
                 of a block fail; give it back a medium with blocks of {old} bytes, or restart the guest"
            ));
        }
        let mut shrunk = |what: &str, unit: &str, (old, new): (u32, u32)| {
            if new < old {
                broken.push(format!(
                    "its guest was told that {what} may have {old} {unit}, and now {new} are possible: longer ones \
                     fail; restart the guest, or go back to the settings or the medium before"
                ));
            }
        };
        if has(VIRTIO_BLK_F_DISCARD) {
            shrunk("a discard", "sectors", pair(MAX_DISCARD));
        }
        if has(VIRTIO_BLK_F_WRITE_ZEROES) {
            shrunk("a write of zeroes", "sectors", pair(MAX_WRITE_ZEROES));
        }
        broken
    }

    fn put(&mut self, offset: usize, value: u64, length: usize) {
        self.bytes[offset..offset + length].copy_from_slice(&value.to_le_bytes()[..length]);
    }

    /// Reads; bytes beyond the end are not changed.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], writeback: bool) {
        for (index, byte) in data.iter_mut().enumerate() {
            let Some(at) = offset.checked_add(index as u64) else { return };
            if at == WRITEBACK {
                *byte = writeback.into();
            } else if let Some(value) = usize::try_from(at).ok().and_then(|at| self.bytes.get(at)) {
                *byte = *value;
            }
        }
    }
}

/// Whether the driver of this space has its cache in write-back.
pub(super) fn is_writeback(space: &[u8]) -> bool {
    space.get(WRITEBACK as usize).is_none_or(|value| value & 1 != 0)
}

/// The byte of a write at `offset` that falls on `writeback`.
pub(super) fn writeback_byte(offset: u64, data: &[u8]) -> Option<&u8> {
    data.get(usize::try_from(WRITEBACK.checked_sub(offset)?).ok()?)
}
