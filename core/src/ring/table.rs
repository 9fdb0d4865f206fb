//! Descriptor tables, and the buffers in them: what both kinds of ring read in the same way.
use super::{
    chain::{Chain, SegmentList},
    config::MAX_QUEUE_SIZE,
    error::RingError,
};
use crate::memory::Translator;
use pollux_abi::block_v1::Segment;
use std::ptr::read_volatile;

pub(super) const DESCRIPTOR_NEXT: u16 = 1;
pub(super) const DESCRIPTOR_WRITE: u16 = 2;
pub(super) const DESCRIPTOR_INDIRECT: u16 = 4;

/// Descriptors that are followed however small the queue. More than the buffers that any device takes.
pub(super) const MAX_CHAIN: u16 = 1024;

/// Where the descriptors of a chain are: the queue's own table, an indirect one, or an indirect one that reaches over
/// memory regions (guest address instead of a pointer).
#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    Host(*const [u64; 2], u16),
    Guest(u64, u16),
}

impl Table {
    /// The indirect table that a descriptor of chain `head` points to.
    #[inline(always)]
    pub(super) fn indirect(
        head: u16,
        address: u64,
        length: u32,
        flags: u16,
        tables: &mut Translator,
    ) -> Result<Self, RingError> {
        // NEXT must not be set beside INDIRECT (virtio 1.3, 2.7.5.3.1 and 2.8.19), and the length is in whole
        // descriptors.
        let entries = length / 16;
        if flags & DESCRIPTOR_NEXT != 0 || !length.is_multiple_of(16) || entries == 0 || entries > MAX_QUEUE_SIZE.into()
        {
            return Err(RingError::Indirect(head));
        }
        match tables.translate(address, length.into()) {
            Some(host) => Ok(Table::Host(host.cast_const().cast(), entries as u16)),
            None => Ok(Table::Guest(address, entries as u16)),
        }
    }

    /// Number of descriptors.
    #[inline(always)]
    pub(super) fn entries(self) -> u16 {
        let (Table::Host(_, entries) | Table::Guest(_, entries)) = self;
        entries
    }

    /// Reads one descriptor, once: its address, and what follows it.
    #[inline(always)]
    pub(super) fn read(self, index: u16, tables: &mut Translator) -> Result<[u64; 2], RingError> {
        let entry = match self {
            Table::Host(start, entries) if index < entries => start.wrapping_add(index.into()),
            Table::Guest(start, entries) if index < entries => scattered_descriptor(start, index, tables)?,
            Table::Host(_, entries) | Table::Guest(_, entries) => {
                return Err(RingError::DescriptorIndex(index, entries));
            }
        };
        // SAFETY: the entry lies in a table that was translated as a whole, or was translated by itself. Two reads of
        // 8 bytes; tables need not be aligned when they are indirect.
        Ok(unsafe {
            [read_volatile_unaligned(entry.cast::<u64>()), read_volatile_unaligned(entry.cast::<u64>().wrapping_add(1))]
        })
    }
}

#[cold]
fn scattered_descriptor(start: u64, index: u16, tables: &mut Translator) -> Result<*const [u64; 2], RingError> {
    let address = start.wrapping_add(16 * u64::from(index));
    let entry = tables.translate(address, 16).ok_or(RingError::Address(address, 16))?;
    Ok(entry.cast_const().cast())
}

/// A buffer as a descriptor describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) address: u64,
    pub(super) length: u32,
    /// The descriptor's flags: only `WRITE` matters here.
    pub(super) flags: u16,
}

impl Chain {
    /// Adds a buffer, and its segments to the list.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        head: u16,
        buffer: Buffer,
        data: &mut Translator,
        segments: &mut SegmentList<'_>,
    ) -> Result<(), RingError> {
        let Buffer { address, length, flags } = buffer;
        let bytes = u64::from(length);
        let parts = match data.translate(address, bytes) {
            _ if length == 0 => 0,
            Some(base) if segments.push(Segment { base, length: length as usize }) => 1,
            Some(_) => return Err(RingError::TooLong(head)),
            None => add_scattered(head, buffer, data, segments)?,
        };
        if flags & DESCRIPTOR_WRITE != 0 {
            self.writable += parts;
            self.writable_bytes += bytes;
        } else if self.writable == 0 {
            self.readable += parts;
            self.readable_bytes += bytes;
        } else {
            return Err(RingError::Order(head));
        }
        Ok(())
    }
}

/// Adds a buffer that reaches over memory regions, a segment for each. Returns how many there were.
#[cold]
#[inline(never)]
fn add_scattered(
    head: u16,
    buffer: Buffer,
    data: &mut Translator,
    segments: &mut SegmentList<'_>,
) -> Result<u32, RingError> {
    let Buffer { address, length, .. } = buffer;
    let outside = RingError::Address(address, length);
    let (mut at, mut left, mut parts) = (address, u64::from(length), 0);
    while left > 0 {
        let (base, part) = data.translate_part(at, left).ok_or(outside)?;
        if !segments.push(Segment { base, length: part as usize }) {
            return Err(RingError::TooLong(head));
        }
        parts += 1;
        left -= part;
        at = at.checked_add(part).ok_or(outside)?;
    }
    Ok(parts)
}

/// Eight bytes of guest memory at any alignment. As a packed struct it is read by one instruction.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Unaligned(u64);

/// Reads guest memory that need not be aligned, once.
///
/// # Safety
/// `source` must be valid for reads of 8 bytes.
#[inline(always)]
unsafe fn read_volatile_unaligned(source: *const u64) -> u64 {
    // SAFETY: the caller vouches for the pointer; the packed struct has no alignment.
    u64::from_le(unsafe { read_volatile(source.cast::<Unaligned>()) }.0)
}
