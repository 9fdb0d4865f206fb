//! Guest memory of requests: header, status and data of each have a fixed place.
use pollux_core::memory::{GuestMemory, Translator};
use pollux_driver::slots::Chain;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

/// The unit of addresses in requests (virtio 1.3, 5.2.6).
pub const SECTOR_BYTES: u64 = 512;

/// Header and status of a request share a cache line, as in Linux.
const META_BYTES: u64 = 64;
const STATUS_OFFSET: u64 = 16;
/// What a status byte holds before the device writes it.
pub const UNTOUCHED: u8 = 0xff;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads a block.
    Read,
    /// Writes a block.
    Write,
    /// Makes everything written durable.
    Flush,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// Sector of 512 bytes; 0 for a flush.
    pub sector: u64,
    /// Length in bytes; 0 for a flush.
    pub bytes: u32,
}

impl Operation {
    /// Makes everything written durable.
    pub const FLUSH: Operation = Operation { kind: Kind::Flush, sector: 0, bytes: 0 };
}

/// The memory of one queue's requests.
#[derive(Debug)]
pub struct Slots {
    meta: *mut u8,
    meta_address: u64,
    data: *mut u8,
    data_address: u64,
    /// From the data of one slot to that of the next.
    stride: u64,
    count: u16,
    data_bytes: u32,
    _memory: Translator,
}

// SAFETY: the pointers lead to a shared mapping that `_memory` keeps alive; one thread at a time has the slots.
unsafe impl Send for Slots {}

impl Slots {
    fn meta_bytes(count: u16) -> u64 {
        (META_BYTES * u64::from(count)).next_multiple_of(4096)
    }

    fn stride(data_bytes: u32) -> u64 {
        u64::from(data_bytes).next_multiple_of(4096)
    }

    /// Bytes of guest memory, from a page border on, for `count` requests with `data_bytes` of data each.
    pub fn bytes(count: u16, data_bytes: u32) -> u64 {
        Self::meta_bytes(count) + u64::from(count) * Self::stride(data_bytes)
    }

    /// Places the requests at guest-physical `base`, a page border.
    ///
    /// # Panics
    /// They are not in guest memory.
    pub fn new(memory: &GuestMemory, base: u64, count: u16, data_bytes: u32) -> Self {
        let mut translator = memory.translator();
        let start = translator.translate(base, Self::bytes(count, data_bytes)).expect("the slots lie in guest memory");
        Slots {
            meta: start,
            meta_address: base,
            data: start.wrapping_add(Self::meta_bytes(count) as usize),
            data_address: base + Self::meta_bytes(count),
            stride: Self::stride(data_bytes),
            count,
            data_bytes,
            _memory: translator,
        }
    }

    /// Number of slots.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes of data that a slot has room for.
    pub fn data_bytes(&self) -> u32 {
        self.data_bytes
    }

    #[inline(always)]
    fn meta(&self, slot: u16) -> *mut u8 {
        assert!(slot < self.count);
        // SAFETY: the slot was checked; `new` translated the whole area.
        unsafe { self.meta.add((META_BYTES * u64::from(slot)) as usize) }
    }

    #[inline(always)]
    fn data(&self, slot: u16, length: usize) -> *mut u8 {
        assert!(slot < self.count && length <= self.data_bytes as usize);
        // SAFETY: slot and length were checked; `new` translated the whole area.
        unsafe { self.data.add((self.stride * u64::from(slot)) as usize) }
    }

    /// Writes the header of a request, and returns where its buffers are.
    #[inline]
    pub fn prepare(&mut self, slot: u16, operation: &Operation) -> Chain {
        let kind = match operation.kind {
            Kind::Read => VIRTIO_BLK_T_IN,
            Kind::Write => VIRTIO_BLK_T_OUT,
            Kind::Flush => VIRTIO_BLK_T_FLUSH,
        };
        assert!(operation.bytes <= self.data_bytes, "the data fits its slot");
        let meta = self.meta(slot);
        // SAFETY: META_BYTES have room for header and status, and are aligned; the request is not in flight.
        unsafe {
            meta.cast::<[u64; 2]>().write([u64::from(kind), operation.sector]);
            meta.add(STATUS_OFFSET as usize).write(UNTOUCHED);
        }
        let header = self.meta_address + META_BYTES * u64::from(slot);
        Chain {
            header,
            data: self.data_address + self.stride * u64::from(slot),
            length: operation.bytes,
            device_writes: operation.kind == Kind::Read,
            status: header + STATUS_OFFSET,
        }
    }

    /// The status of a request that has come back.
    #[inline]
    pub fn status(&self, slot: u16) -> u8 {
        // SAFETY: the status lies within the slot's meta bytes. Volatile: the device has written it.
        unsafe { self.meta(slot).add(STATUS_OFFSET as usize).read_volatile() }
    }

    /// Fills the data of a request that is not in flight.
    pub fn write_data(&mut self, slot: u16, bytes: &[u8]) {
        let target = self.data(slot, bytes.len());
        // SAFETY: `data` checked the length; the memory is not in flight, and no slice of ours.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Makes the data of a request that is not in flight unlike any that was written: what a read then leaves untouched
    /// is no record.
    pub fn spoil_data(&mut self, slot: u16, length: usize) {
        let target = self.data(slot, length);
        for offset in (0..length).step_by(SECTOR_BYTES as usize) {
            // SAFETY: `data` checked the length, a multiple of the sector; the memory is aligned to pages.
            unsafe { target.add(offset).cast::<u64>().write(u64::MAX) };
        }
    }

    /// Copies the data of a request that has come back.
    pub fn read_data(&self, slot: u16, bytes: &mut [u8]) {
        let source = self.data(slot, bytes.len());
        // SAFETY: as above.
        unsafe { source.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }
}
