//! The contents of a block request (virtio 1.3, 5.2.6), and whether the device can carry it out.
use super::failures::OTHER;
use pollux_abi::block_v1::{
    BlockInfo, BlockRequest, POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_FUA, POLLUX_BLOCK_READ,
    POLLUX_BLOCK_UNMAP, POLLUX_BLOCK_WRITE, POLLUX_BLOCK_WRITE_ZEROES, Segment,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

/// The unit of addresses in requests, whatever the block size (virtio 1.3, 5.2.6).
pub(super) const SECTOR_SIZE: u64 = 512;
/// Length of the header: type, reserved, sector.
pub(super) const HEADER_BYTES: usize = 16;
/// Length of the range of a discard or write-zeroes.
pub(super) const RANGE_BYTES: usize = 16;
/// Most data segments of a request.
pub(super) const MAX_DATA_SEGMENTS: usize = 254;

const RANGE_REFUSAL: &str =
    "its range is malformed, too long, beyond the capacity or not a whole number of blocks, or the device is read-only";

/// Most bytes of a read or write that the backend is given at once, even if it would take more. A request keeps its
/// worker busy while it is copied, and others wait for the same worker.
const MAX_TRANSFER: u32 = 4 << 20;
/// Least limit of a segment that a driver is told. FreeBSD accepts no disk with less.
const LEAST_SIZE_MAX: u32 = 1 << 20;

/// Length limits, as told to the driver and as checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct MediumLimits {
    pub(super) capacity_sectors: u64,
    /// Log2 of the logical block in sectors.
    block_shift: u32,
    /// What the driver is told: most segments of a request, and the length of each.
    pub(super) seg_max: u32,
    pub(super) size_max: u32,
    /// What the backend is given at once. A driver's segment that crosses memory regions is several of these.
    pub(super) max_segments: usize,
    pub(super) max_transfer: u64,
    pub(super) max_discard: u64,
    pub(super) max_write_zeroes: u64,
    operations: u32,
    pub(super) writable: bool,
}

impl MediumLimits {
    pub(super) fn new(info: &BlockInfo, queue_size: u16) -> Self {
        let or_none = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        let block = u64::from(info.logical_block_size);
        let max_transfer = or_none(info.maximum_transfer).min(MAX_TRANSFER);
        // A chain is not longer than its queue (virtio 1.3, 2.7.5.3.1), header and status included.
        let seg_max = u32::from(queue_size).saturating_sub(2).clamp(1, MAX_DATA_SEGMENTS as u32);
        // As many segments as make a request no longer than the backend takes if each is a page, as most are. Longer
        // requests are carried out in portions.
        let least = info.logical_block_size.max(4096);
        let seg_max = seg_max.min(or_none(info.maximum_segments)).min((max_transfer / least).max(1));
        let size_max = max_transfer.max(LEAST_SIZE_MAX);
        // In whole blocks, and as many as the driver's 32-bit number of sectors can say.
        let most = u64::from(u32::MAX) * SECTOR_SIZE;
        let range = |limit: u64| if limit == 0 { most } else { limit.min(most) } / block * block;
        MediumLimits {
            capacity_sectors: info.capacity / block * block / SECTOR_SIZE,
            block_shift: (block / SECTOR_SIZE).trailing_zeros(),
            seg_max,
            size_max,
            max_segments: or_none(info.maximum_segments) as usize,
            max_transfer: max_transfer.into(),
            max_discard: range(info.maximum_discard),
            max_write_zeroes: range(info.maximum_write_zeroes),
            operations: info.operations,
            writable: !info.is_read_only() && info.offers(POLLUX_BLOCK_WRITE),
        }
    }

    /// Size of a logical block.
    pub(super) fn block_bytes(&self) -> u64 {
        SECTOR_SIZE << self.block_shift
    }

    /// As many of these sectors as are whole logical blocks.
    pub(super) fn in_whole_blocks(&self, sectors: u64) -> u64 {
        sectors >> self.block_shift << self.block_shift
    }

    /// How much of this many bytes the backend is given at once.
    pub(super) fn portion(&self, bytes: u64) -> u64 {
        bytes.min(self.max_transfer) / self.block_bytes() * self.block_bytes()
    }

    /// Whether `sectors` at `sector` are whole logical blocks within the medium.
    #[inline(always)]
    fn contains(&self, sector: u64, sectors: u64) -> bool {
        let misaligned = (sector | sectors) & ((1 << self.block_shift) - 1) != 0;
        !misaligned && sector <= self.capacity_sectors && sectors <= self.capacity_sectors - sector
    }

    #[inline(always)]
    fn offers(&self, operation: u32) -> bool {
        self.operations & 1 << operation != 0
    }
}

/// The result of a request, as its status byte (virtio 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

impl Status {
    #[inline(always)]
    pub(super) fn from_result(result: i32) -> Self {
        match result {
            0 => Status::Ok,
            _ if result == -libc::ENOTSUP => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// The buffers of a request without header and status.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data<'a> {
    pub(super) segments: &'a [Segment],
    /// Bytes that the device reads.
    pub(super) readable: u64,
    /// Bytes that the device writes.
    pub(super) writable: u64,
}

/// A request for the backend, without its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) operation: u32,
    flags: u32,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Transfer {
    /// A part of it.
    pub(super) fn part(&self, start: u64, length: u64) -> Self {
        Transfer { offset: self.offset + start, length, ..*self }
    }

    /// The record that goes to the backend, from `slot` and with the data in `segments`.
    #[inline(always)]
    pub(super) fn request(&self, slot: u16, segments: &[Segment]) -> BlockRequest {
        BlockRequest {
            operation: self.operation,
            flags: self.flags,
            token: slot.into(),
            offset: self.offset,
            length: self.length,
            segments: segments.as_ptr(),
            segment_count: segments.len() as u32,
            reserved0: 0,
            reserved: [0; 2],
        }
    }
}

/// A flush.
pub(super) const FLUSH: Transfer = Transfer { operation: POLLUX_BLOCK_FLUSH, flags: 0, offset: 0, length: 0 };

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Action {
    /// The backend carries it out.
    Submit(Transfer),
    /// A discard or write-zeroes, whose range is in the data.
    Range(u32),
    /// The device's name goes to the data.
    GetId,
    /// It ends here.
    Complete(Status),
}

/// The header as read from guest memory, once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    pub(super) fn new(first: u64, second: u64) -> Self {
        Header { kind: u64::from_le(first) as u32, sector: u64::from_le(second) }
    }

    /// What this request asks for. `durable`: writes must be durable when they complete.
    #[inline(always)]
    pub(super) fn action(&self, data: &Data<'_>, limits: &MediumLimits, durable: bool) -> Action {
        match self.kind {
            VIRTIO_BLK_T_IN => self.transfer(POLLUX_BLOCK_READ, 0, data.writable, data.readable, data, limits),
            VIRTIO_BLK_T_OUT => {
                let flags = if durable { POLLUX_BLOCK_FUA } else { 0 };
                self.transfer(POLLUX_BLOCK_WRITE, flags, data.readable, data.writable, data, limits)
            }
            VIRTIO_BLK_T_FLUSH if !limits.offers(POLLUX_BLOCK_FLUSH) => Action::Complete(Status::Unsupported),
            // The sector of a flush must be 0 (virtio 1.3, 5.2.6.1); it is ignored as all devices do.
            VIRTIO_BLK_T_FLUSH => Action::Submit(FLUSH),
            VIRTIO_BLK_T_DISCARD if limits.offers(POLLUX_BLOCK_DISCARD) => Action::Range(POLLUX_BLOCK_DISCARD),
            VIRTIO_BLK_T_WRITE_ZEROES if limits.offers(POLLUX_BLOCK_WRITE_ZEROES) => {
                Action::Range(POLLUX_BLOCK_WRITE_ZEROES)
            }
            VIRTIO_BLK_T_GET_ID => Action::GetId,
            _ => Action::Complete(Status::Unsupported),
        }
    }

    /// A read or write of `length` bytes. `wrong` are bytes of the other direction, which must not be there.
    #[inline(always)]
    fn transfer(
        &self,
        operation: u32,
        flags: u32,
        length: u64,
        wrong: u64,
        data: &Data<'_>,
        limits: &MediumLimits,
    ) -> Action {
        let segments = data.segments.len();
        let legal = length.is_multiple_of(SECTOR_SIZE)
            && wrong == 0
            && length <= limits.max_transfer
            && limits.contains(self.sector, length / SECTOR_SIZE)
            && segments <= limits.max_segments
            // Writes to a read-only device fail (virtio 1.3, 5.2.6.2).
            && (limits.writable || operation == POLLUX_BLOCK_READ)
            && limits.offers(operation);
        match legal {
            true if length == 0 => Action::Complete(Status::Ok),
            true => Action::Submit(Transfer { operation, flags, offset: self.sector * SECTOR_SIZE, length }),
            false => Action::Complete(Status::IoError),
        }
    }
}

impl Header {
    /// A request for the backend to carry out in portions: a read or write that is only wrong in being too large for it
    /// at once.
    #[cold]
    pub(super) fn portions(&self, data: &Data<'_>, limits: &MediumLimits, durable: bool) -> Option<Transfer> {
        // Nothing exceeds these limits.
        let whole = MediumLimits { max_segments: usize::MAX, max_transfer: u64::MAX, ..*limits };
        match self.kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => match self.action(data, &whole, durable) {
                Action::Submit(transfer) => Some(transfer),
                _ => None,
            },
            _ => None,
        }
    }

    /// Why this request was not done, for the log: its operation by number, where on the medium it is, and the reason
    /// that [`action`](Self::action) has found.
    #[cold]
    pub(super) fn refusal(&self, data: &Data<'_>, limits: &MediumLimits) -> (usize, u64, &'static str) {
        let offset = self.sector.wrapping_mul(SECTOR_SIZE);
        match self.kind {
            VIRTIO_BLK_T_IN => {
                (POLLUX_BLOCK_READ as usize, offset, self.transfer_refusal(data.writable, data.readable, limits))
            }
            VIRTIO_BLK_T_OUT if !limits.writable => (POLLUX_BLOCK_WRITE as usize, offset, "the device is read-only"),
            VIRTIO_BLK_T_OUT => {
                (POLLUX_BLOCK_WRITE as usize, offset, self.transfer_refusal(data.readable, data.writable, limits))
            }
            VIRTIO_BLK_T_FLUSH => (POLLUX_BLOCK_FLUSH as usize, 0, "the medium has no flush"),
            VIRTIO_BLK_T_DISCARD if limits.offers(POLLUX_BLOCK_DISCARD) => {
                (POLLUX_BLOCK_DISCARD as usize, 0, RANGE_REFUSAL)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if limits.offers(POLLUX_BLOCK_WRITE_ZEROES) => {
                (POLLUX_BLOCK_WRITE_ZEROES as usize, 0, RANGE_REFUSAL)
            }
            VIRTIO_BLK_T_GET_ID => (OTHER, 0, "it has no room for the device's serial number, or data besides"),
            _ => (OTHER, 0, "its type is one that the device does not offer"),
        }
    }

    fn transfer_refusal(&self, length: u64, wrong: u64, limits: &MediumLimits) -> &'static str {
        let block = 1 << limits.block_shift;
        let (sector, sectors) = (self.sector, length / SECTOR_SIZE);
        if wrong != 0 {
            "it has data of the other direction"
        } else if !length.is_multiple_of(SECTOR_SIZE) || !sector.is_multiple_of(block) || !sectors.is_multiple_of(block)
        {
            "it is not a whole number of blocks"
        } else if sector.checked_add(sectors).is_none_or(|end| end > limits.capacity_sectors) {
            "it ends beyond the capacity"
        } else {
            "the medium does not offer it"
        }
    }
}

/// The range of a discard or write-zeroes, as read from guest memory: sector, number of sectors, flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    sector: u64,
    sectors: u64,
    flags: u32,
}

impl Range {
    pub(super) fn new(bytes: [u8; RANGE_BYTES]) -> Self {
        let words = u128::from_le_bytes(bytes);
        Range { sector: words as u64, sectors: (words >> 64) as u32 as u64, flags: (words >> 96) as u32 }
    }

    /// The request for the backend, or the status that ends it (virtio 1.3, 5.2.6.2).
    pub(super) fn action(&self, operation: u32, limits: &MediumLimits, durable: bool) -> Action {
        const UNMAP: u32 = 1;
        let (maximum, known_flags) = match operation {
            POLLUX_BLOCK_DISCARD => (limits.max_discard, 0),
            _ => (limits.max_write_zeroes, UNMAP),
        };
        if self.flags & !known_flags != 0 {
            // Reserved flags, or unmap on a discard.
            return Action::Complete(Status::Unsupported);
        }
        let (offset, length) = (self.sector.wrapping_mul(SECTOR_SIZE), self.sectors * SECTOR_SIZE);
        if !limits.writable || length > maximum || !limits.contains(self.sector, self.sectors) {
            return Action::Complete(Status::IoError);
        }
        if length == 0 {
            return Action::Complete(Status::Ok);
        }
        let mut flags = 0;
        if operation == POLLUX_BLOCK_WRITE_ZEROES && durable {
            flags |= POLLUX_BLOCK_FUA;
        }
        if self.flags & UNMAP != 0 {
            flags |= POLLUX_BLOCK_UNMAP;
        }
        Action::Submit(Transfer { operation, flags, offset, length })
    }
}
