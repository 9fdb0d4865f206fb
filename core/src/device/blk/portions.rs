//! Requests that are too large for the backend, carried out in portions, one after the other.
//!
//! A driver knows how long a segment may be and how many a request may have, but no limit for the whole (virtio 1.3,
//! 5.2.4), and systems such as FreeBSD want segments of 1 MiB. Whatever it makes within those limits must work, while a
//! backend may take less at a time, and a worker should not copy hundreds of megabytes in one turn.
use super::request::{MediumLimits, Transfer};
use pollux_abi::block_v1::{BlockRequest, Segment};
use std::ops::Range;

/// A request on its way, of which a portion is with the backend.
#[derive(Debug)]
pub(super) struct Portions {
    head: u16,
    pub(super) transfer: Transfer,
    /// Bytes before this portion, and in it.
    done: u64,
    length: u64,
    /// Segments of this portion, in the room of the request, and the end of all of them.
    pub(super) segments: Range<usize>,
    end: usize,
    /// The part of the last of those segments with which the next portion begins.
    rest: Option<Segment>,
}

impl Portions {
    /// For a request whose data is in `segments` of its room.
    pub(super) fn new(head: u16, transfer: Transfer, segments: Range<usize>) -> Self {
        let (start, end) = (segments.start, segments.end);
        Portions { head, transfer, done: 0, length: 0, segments: start..start, end, rest: None }
    }

    pub(super) fn is_last(&self) -> bool {
        self.done + self.length >= self.transfer.length
    }

    /// The next portion, as much as the backend takes, in whole blocks. `None`: its segments are too small for that.
    pub(super) fn next(&mut self, room: &mut [Segment], limits: &MediumLimits) -> Option<BlockRequest> {
        let mut start = self.segments.end;
        if let Some(rest) = self.rest.take() {
            start -= 1;
            room[start] = rest;
        }
        self.done += self.length;
        let (mut end, mut bytes) = (start, 0);
        while end < self.end && end - start < limits.max_segments && bytes < limits.max_transfer {
            bytes += room[end].length as u64;
            end += 1;
        }
        self.length = limits.portion(bytes);
        if self.length == 0 {
            return None;
        }
        // The excess is removed, starting from the last segment, and the part cut off from a segment is kept.
        let mut excess = (bytes - self.length) as usize;
        while excess > 0 && room[end - 1].length <= excess {
            excess -= room[end - 1].length;
            end -= 1;
        }
        if excess > 0 {
            let last = &mut room[end - 1];
            last.length -= excess;
            self.rest = Some(Segment { base: last.base.wrapping_add(last.length), length: excess });
        }
        self.segments = start..end;
        Some(self.transfer.part(self.done, self.length).request(self.head, &room[start..end]))
    }
}
