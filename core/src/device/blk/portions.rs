//! Requests that the backend does not take at once, done in portions, one after the other.
//!
//! A driver knows how long a segment may be and how many a request may have, but no limit for the whole (virtio 1.3,
//! 5.2.4), and systems such as FreeBSD want segments of 1 MiB. Whatever it makes within those limits must work, while a
//! backend may take less at a time, and a worker should not copy hundreds of megabytes in one turn.
use super::{
    chain::{OLD_MEMORY, OVERFLOWN, PORTIONED},
    failures::Cause,
    queue::BlkQueue,
    request::{MediumLimits, Status, Transfer},
    tally::Tally,
};
use crate::{
    block::DiskQueue,
    queue::{BATCH, Virtqueue},
    ring::Ring,
    stats::BlkStats,
};
use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_READ, Segment};
use std::ops::Range;

/// A request on its way, of which a portion is with the backend.
#[derive(Debug)]
pub(super) struct Portions {
    head: u16,
    transfer: Transfer,
    /// Bytes before this portion, and in it.
    done: u64,
    length: u64,
    /// Segments of this portion, in the room of the request, and the end of all of them.
    segments: Range<usize>,
    end: usize,
    /// What the next portion begins with of the last of those segments.
    rest: Option<Segment>,
}

impl Portions {
    /// Of a request whose data is in `segments` of its room.
    fn new(head: u16, transfer: Transfer, segments: Range<usize>) -> Self {
        let (start, end) = (segments.start, segments.end);
        Portions { head, transfer, done: 0, length: 0, segments: start..start, end, rest: None }
    }

    fn is_last(&self) -> bool {
        self.done + self.length >= self.transfer.length
    }

    /// The next portion, as much as the backend takes, in whole blocks. `None`: its segments are too small for that.
    fn next(&mut self, room: &mut [Segment], limits: &MediumLimits) -> Option<BlockRequest> {
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
        // What is too much goes back, from the last segment on, and what is cut off of it is kept.
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

/// What becomes of a request when one of its portions is done.
enum Next {
    Submitted,
    Done,
    Impossible,
}

impl<Q: DiskQueue> BlkQueue<Q> {
    /// Begins a request in portions. What is known of it is in its slot.
    #[cold]
    pub(super) fn begin_portions<R: Ring>(&mut self, queue: &mut Virtqueue<R>, head: u16, transfer: Transfer) {
        let slot = &mut self.slots[usize::from(head)];
        slot.operation = transfer.operation;
        slot.length = transfer.length.try_into().unwrap_or(u32::MAX);
        slot.state |= PORTIONED;
        let segments = slot.data_range();
        self.portions.insert(head, Portions::new(head, transfer, segments));
        if !matches!(self.next_portion(queue, head), Next::Submitted) {
            self.note_impossible(transfer.operation, transfer.offset);
            self.complete_alone(queue, head, Status::IoError);
        }
    }

    /// Ends a request that was done in portions, is a long one, or was taken under a memory map that has been replaced;
    /// or goes on with it.
    #[cold]
    pub(super) fn complete_unusual<R: Ring>(
        &mut self,
        queue: &mut Virtqueue<R>,
        head: u16,
        status: Status,
        tally: &mut Tally,
    ) {
        let state = self.slots[usize::from(head)].state;
        let mut status = status;
        if state & PORTIONED != 0 {
            if status == Status::Ok {
                match self.next_portion(queue, head) {
                    Next::Submitted => return,
                    Next::Impossible => {
                        let slot = &mut self.slots[usize::from(head)];
                        slot.length = 0;
                        let (operation, offset) = (slot.operation, self.backend.offset(head.into()));
                        self.note_impossible(operation, offset);
                        status = Status::IoError;
                    }
                    Next::Done => {}
                }
            }
            self.portions.remove(&head);
        }
        self.end_request(queue, head, status, tally);
        if state & OVERFLOWN != 0 {
            self.rooms.give_back(head);
        }
        if state & OLD_MEMORY != 0 {
            queue.old_request_done();
        }
    }

    fn note_impossible(&self, operation: u32, offset: u64) {
        self.stats.count_error(BlkStats::REFUSED);
        let reason = "the segments that the backend takes at once are less than a block together";
        self.failures().note(operation as usize, offset, Cause::Refused(reason));
    }

    /// Makes a request of the next portion.
    fn next_portion<R: Ring>(&mut self, queue: &Virtqueue<R>, head: u16) -> Next {
        let Some(portions) = self.portions.get_mut(&head) else { return Next::Done };
        let index = usize::from(head);
        let is_overflown = self.slots[index].state & OVERFLOWN != 0;
        let room = if is_overflown { &mut self.rooms.of_mut(head)[..] } else { &mut self.inline[index][..] };
        if portions.transfer.operation == POLLUX_BLOCK_READ {
            queue.log_written(&room[portions.segments.clone()]);
        }
        if portions.is_last() {
            return Next::Done;
        }
        let Some(request) = portions.next(room, &self.limits) else { return Next::Impossible };
        self.make_pending_room();
        self.pending.push(request);
        // One portion a turn: others wait on the same worker.
        self.completes_at_once = false;
        Next::Submitted
    }

    /// Forgets pending requests that the backend has taken. A backend that never takes all of them, while each portion
    /// that ends makes another one pending, would otherwise have the list grow for as long as requests have portions.
    fn make_pending_room(&mut self) {
        if self.pending_start >= BATCH {
            self.pending.drain(..self.pending_start);
            self.pending_start = 0;
        }
        debug_assert!(self.pending.len() < BATCH + self.slots.len(), "a request is pending once");
    }
}
