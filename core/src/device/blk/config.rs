//! The configuration space of a block device (virtio 1.3, 5.2.4).
use super::request::{Limits, SECTOR_SIZE};
use pollux_abi::block_v1::BlockInfo;

/// Length of the space up to and with the write-zeroes fields.
const LENGTH: usize = 60;
const WRITEBACK: u64 = 32;

/// The bytes that the driver reads.
#[derive(Debug)]
pub(super) struct Config {
    bytes: [u8; LENGTH],
}

impl Config {
    pub(super) fn new(info: &BlockInfo, limits: &Limits, features: u64, queues: usize) -> Self {
        let mut config = Config { bytes: [0; LENGTH] };
        let block = u64::from(info.logical_block_size);
        let blocks = |bytes: u32| u64::from(bytes) / block;
        let exponent = info.physical_block_size.trailing_zeros() - info.logical_block_size.trailing_zeros();
        let sectors = |bytes: u64| (bytes / SECTOR_SIZE).min(u32::MAX.into());
        config.put(0, limits.capacity_sectors, 8);
        config.put(8, limits.size_max.into(), 4);
        config.put(12, limits.seg_max.into(), 4);
        config.put(20, block, 4);
        config.put(24, exponent.into(), 1);
        // min_io_size and opt_io_size are in logical blocks.
        config.put(26, blocks(info.minimum_io_size).clamp(1, u16::MAX.into()), 2);
        config.put(28, blocks(info.optimal_io_size), 4);
        config.put(34, queues as u64, 2);
        if features & 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_DISCARD != 0 {
            config.put(36, sectors(limits.max_discard), 4);
            config.put(40, 1, 4);
            config.put(44, sectors(info.discard_alignment.max(info.logical_block_size).into()), 4);
        }
        if features & 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES != 0 {
            config.put(48, sectors(limits.max_write_zeroes), 4);
            config.put(52, 1, 4);
            config.put(56, 1, 1);
        }
        config
    }

    /// The medium has grown or shrunk.
    pub(super) fn set_capacity(&mut self, sectors: u64) {
        self.put(0, sectors, 8);
    }

    fn put(&mut self, offset: usize, value: u64, length: usize) {
        self.bytes[offset..offset + length].copy_from_slice(&value.to_le_bytes()[..length]);
    }

    /// Reads; bytes beyond the end are left alone.
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

/// The byte of a write at `offset` that falls on `writeback`.
pub(super) fn writeback_byte(offset: u64, data: &[u8]) -> Option<&u8> {
    data.get(usize::try_from(WRITEBACK.checked_sub(offset)?).ok()?)
}
