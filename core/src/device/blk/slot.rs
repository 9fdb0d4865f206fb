//! The slot that remembers a request between ring and backend, and the room for its segments.
use super::request::MAX_DATA_SEGMENTS;
use pollux_abi::block_v1::Segment;
use std::ptr::null_mut;

/// Segments that a slot holds itself: header, status and four of data.
pub(super) const INLINE_SEGMENTS: usize = 6;
/// Segments of the longest request: header and status may share segments with data, or have one each.
const MAX_SEGMENTS: usize = MAX_DATA_SEGMENTS + 2;

/// The segments that most requests fit in. Kept apart from the slots, since the backend reads them while the slots
/// change.
pub(super) type Inline = [Segment; INLINE_SEGMENTS];

/// Room for the segments of a request that outgrows [`Inline`].
pub(super) type Overflow = [Segment; MAX_SEGMENTS];

/// What is remembered of a request between ring and backend.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Where the status byte goes.
    pub(super) status: *mut u8,
    /// Time stamp at which it was taken from the ring; 0: not sampled.
    pub(super) started: u64,
    /// Bytes of the writable part: what the used ring is told.
    pub(super) written: u32,
    /// Length of the data, for the statistics.
    pub(super) length: u32,
    pub(super) operation: u32,
    /// Segments of its data, from index `first` of its room on.
    pub(super) count: u16,
    pub(super) first: u8,
    /// [`IN_USE`], [`OLD_MEMORY`], [`OVERFLOWN`], [`PORTIONED`].
    pub(super) state: u8,
}

/// In [`Slot::state`]: the request is on its way.
pub(super) const IN_USE: u8 = 1;
/// In [`Slot::state`]: it was taken under a memory map that has been replaced since.
pub(super) const OLD_MEMORY: u8 = 2;
/// In [`Slot::state`]: its segments are in one of the [`Rooms`](super::rooms::Rooms). Stays when the request has ended.
pub(super) const OVERFLOWN: u8 = 4;
/// In [`Slot::state`]: the backend has a portion of it.
pub(super) const PORTIONED: u8 = 8;

impl Slot {
    pub(super) const EMPTY: Self =
        Slot { status: null_mut(), started: 0, written: 0, length: 0, operation: 0, count: 0, first: 0, state: 0 };

    #[inline(always)]
    pub(super) fn is_in_use(&self) -> bool {
        self.state & IN_USE != 0
    }

    /// Where in its room the segments of its data are.
    pub(super) fn data_range(&self) -> std::ops::Range<usize> {
        self.first.into()..usize::from(self.first) + usize::from(self.count)
    }

    /// The segments of its data, also just after its end. `room` is its own.
    pub(super) fn data<'r>(&self, room: (&'r Inline, &'r Overflow)) -> &'r [Segment] {
        let segments = if self.state & OVERFLOWN != 0 { &room.1[..] } else { &room.0[..] };
        segments.get(self.data_range()).unwrap_or_default()
    }
}
