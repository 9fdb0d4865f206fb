//! One request's chain: where its header, data and status are (virtio 1.3, 5.2.6).
use super::{
    request::{Action, Data, HEADER_BYTES, Header, MediumLimits, RANGE_BYTES, Range, Status},
    rooms::Rooms,
    slot::{IN_USE, INLINE_SEGMENTS, Inline, OVERFLOWN, Slot},
};
use crate::{
    memory::{Translator, prefetch, scatter},
    ring::{Ring, RingError, SegmentList},
};
use pollux_abi::block_v1::Segment;
use std::ptr::null;

/// A chain that has been followed, and whose header has not been read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChainParts {
    /// The header in guest memory; null: it was scattered, and is in `copy`.
    header: *const u8,
    copy: [u8; HEADER_BYTES],
    segments: *const Segment,
    segment_count: u32,
    readable: u64,
    writable: u64,
}

impl ChainParts {
    pub(super) const EMPTY: Self = ChainParts {
        header: null(),
        copy: [0; HEADER_BYTES],
        segments: null(),
        segment_count: 0,
        readable: 0,
        writable: 0,
    };

    /// Follows one chain and finds header, data and status in it. Nothing is assumed about how the driver has divided
    /// them into buffers (virtio 1.3, 2.7.4).
    #[expect(
        clippy::extra_unused_type_parameters,
        reason = "`Q`, the kind of the disk's queue, gives each data path a function of its own, which is inlined"
    )]
    #[inline]
    pub(super) fn take_chain<R: Ring, Q>(
        &mut self,
        ring: &mut R,
        memory: &mut Translator,
        head: u16,
        slot: &mut Slot,
        (inline, rooms): (&mut Inline, &mut Rooms),
    ) -> Result<(), RingError> {
        if slot.is_in_use() {
            return Err(RingError::InUse(head));
        }
        let mut list = SegmentList::new(inline, rooms.next());
        let chain = ring.walk(head, memory, &mut list)?;
        let segments = list.into_slice();
        if chain.readable_bytes < HEADER_BYTES as u64 {
            return Err(RingError::Short(head, "the header of 16 bytes"));
        }
        let mut end = segments.len();
        let Some(last) = segments.last_mut().filter(|_| chain.writable > 0) else {
            return Err(RingError::Short(head, "the status byte"));
        };
        last.length -= 1;
        slot.status = last.base.wrapping_add(last.length);
        slot.written = chain.writable_bytes.min(u32::MAX.into()) as u32;
        slot.state = IN_USE;
        let is_long = end > INLINE_SEGMENTS;
        end -= usize::from(last.length == 0);
        let start = self.find_header(segments);
        let data = &segments[start..end.max(start)];
        self.segments = data.as_ptr();
        self.segment_count = data.len() as u32;
        // Both are at most `MAX_SEGMENTS`, and a header of 16 bytes at most 16 segments.
        (slot.first, slot.count) = (start as u8, data.len() as u16);
        self.readable = chain.readable_bytes - HEADER_BYTES as u64;
        self.writable = chain.writable_bytes - 1;
        if is_long {
            slot.state |= OVERFLOWN;
            rooms.take(head);
        }
        Ok(())
    }

    /// Cuts the header off the segments, which are long enough together. Returns the index of the first one of the
    /// data.
    #[inline(always)]
    fn find_header(&mut self, segments: &mut [Segment]) -> usize {
        let first = &mut segments[0];
        if first.length < HEADER_BYTES {
            self.header = null();
            return take_scattered(segments, &mut self.copy);
        }
        self.header = first.base;
        prefetch(self.header);
        first.base = first.base.wrapping_add(HEADER_BYTES);
        first.length -= HEADER_BYTES;
        usize::from(first.length == 0)
    }

    /// Reads the header, once.
    #[inline(always)]
    pub(super) fn header(&self) -> Header {
        #[repr(C, packed)]
        #[derive(Clone, Copy)]
        struct Words(u64, u64);
        let source = if self.header.is_null() { self.copy.as_ptr() } else { self.header };
        // SAFETY: 16 bytes of a translated segment, or of the copy; a packed struct has no alignment.
        let words = unsafe { source.cast::<Words>().read_volatile() };
        Header::new(words.0, words.1)
    }

    /// The data, valid as long as the slot is in use.
    #[inline(always)]
    pub(super) fn data<'a>(&self) -> Data<'a> {
        // SAFETY: `take_chain` made this from the slot's own room, which nothing changes while the request is in use.
        let segments = unsafe { std::slice::from_raw_parts(self.segments, self.segment_count as usize) };
        Data { segments, readable: self.readable, writable: self.writable }
    }
}

/// Copies bytes from the start of the segments and cuts them off. Returns the index of the first segment with a rest.
/// There must be enough of them.
#[cold]
fn take_scattered(segments: &mut [Segment], mut target: &mut [u8]) -> usize {
    let mut index = 0;
    while !target.is_empty() {
        let segment = &mut segments[index];
        let length = segment.length.min(target.len());
        // SAFETY: the segment was translated, and no Rust reference covers guest memory.
        unsafe { std::ptr::copy_nonoverlapping(segment.base.cast_const(), target.as_mut_ptr(), length) };
        target = &mut target[length..];
        segment.base = segment.base.wrapping_add(length);
        segment.length -= length;
        index += usize::from(segment.length == 0);
    }
    index
}

/// Reads the range of a discard or write-zeroes. The driver was told that a request has one.
#[cold]
pub(super) fn range_action(operation: u32, data: &Data<'_>, limits: &MediumLimits, durable: bool) -> Action {
    if data.readable != RANGE_BYTES as u64 || data.writable != 0 {
        return Action::Complete(Status::IoError);
    }
    let mut bytes = [0; RANGE_BYTES];
    take_scattered(&mut data.segments.to_vec(), &mut bytes);
    Range::new(bytes).action(operation, limits, durable)
}

/// GET_ID: the name, filled up with zeroes to 20 bytes (virtio 1.3, 5.2.6).
#[cold]
pub(super) fn answer_id(data: &Data<'_>, name: &str) -> Status {
    let mut id = [0; 20];
    let length = name.len().min(id.len());
    id[..length].copy_from_slice(&name.as_bytes()[..length]);
    if data.readable > 0 || data.writable == 0 {
        return Status::IoError;
    }
    // SAFETY: the segments were translated for this request, which is in flight.
    unsafe { scatter(data.segments, &id) };
    Status::Ok
}
