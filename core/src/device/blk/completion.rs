//! How requests end: those that the backend has completed or failed, or was never given.
use super::{
    failures::Cause,
    queue::BlkQueue,
    request::Status,
    slot::{IN_USE, OLD_MEMORY, OVERFLOWN, PORTIONED},
    tally::Tally,
};
use crate::{
    block::DiskQueue,
    queue::{BATCH, Virtqueue},
    ring::Ring,
    stats::BlkStats,
};
use pollux_abi::block_v1::{POLLUX_BLOCK_READ, Segment};

/// What happens to a request when one of its portions is done.
pub(super) enum Next {
    Submitted,
    Done,
    Impossible,
}

impl<Q: DiskQueue> BlkQueue<Q> {
    /// A request, or a portion of it, is done.
    #[inline(always)]
    pub(super) fn complete<R: Ring>(&mut self, queue: &mut Virtqueue<R>, head: u16, status: Status, tally: &mut Tally) {
        if self.slots[usize::from(head)].state != IN_USE {
            self.complete_unusual(queue, head, status, tally);
        } else {
            self.end_request(queue, head, status, tally);
        }
    }

    /// Ends a request: status byte, used ring, statistics.
    #[inline(always)]
    fn end_request<R: Ring>(&mut self, queue: &mut Virtqueue<R>, head: u16, status: Status, tally: &mut Tally) {
        let slot = &mut self.slots[usize::from(head)];
        debug_assert!(slot.is_in_use());
        let state = slot.state;
        slot.state = state & OVERFLOWN;
        // SAFETY: `take_chain` took the pointer from a segment that was translated for this request.
        unsafe { slot.status.write_volatile(status as u8) };
        let (written, started, operation) = (slot.written, slot.started, slot.operation);
        tally.count(operation, slot.length.into(), status);
        queue.ring.push_used(head, written);
        if started != 0 {
            self.stats.latency.record(operation, queue.sampler.nanoseconds_since(started));
        }
    }

    /// Ends a request that was done in portions, is a long one, or was taken under a memory map that has been replaced;
    /// or continues with it.
    #[cold]
    fn complete_unusual<R: Ring>(&mut self, queue: &mut Virtqueue<R>, head: u16, status: Status, tally: &mut Tally) {
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
            // Now: with the last of its requests goes the map that knows the pages which they have written.
            if queue.is_logged() {
                self.log_request(queue, head);
            }
            queue.old_request_done();
        }
    }

    /// Ends a request that the medium has failed: `result` is a negative errno.
    #[cold]
    #[inline(never)]
    pub(super) fn complete_failed<R: Ring>(
        &mut self,
        queue: &mut Virtqueue<R>,
        head: u16,
        result: i32,
        tally: &mut Tally,
    ) {
        let slot = &mut self.slots[usize::from(head)];
        // The driver cannot know about any part that was transferred.
        slot.length = 0;
        let (operation, errno) = (slot.operation as usize, result.saturating_neg());
        let offset = self.backend.offset(head.into());
        self.stats.count_error(errno.try_into().unwrap_or(0));
        self.failures().note(operation, offset, Cause::Errno(errno));
        self.complete(queue, head, Status::from_result(result), tally);
    }

    /// Ends a request that does not come from the backend.
    #[cold]
    pub(super) fn complete_alone<R: Ring>(&mut self, queue: &mut Virtqueue<R>, head: u16, status: Status) {
        if status != Status::Ok {
            self.slots[usize::from(head)].length = 0;
        }
        let mut tally = Tally::default();
        self.complete(queue, head, status, &mut tally);
        tally.add_to(&queue.stats, &self.stats);
        if queue.is_logged() {
            self.log_request(queue, head);
        }
    }

    /// Makes a request of the next portion.
    pub(super) fn next_portion<R: Ring>(&mut self, queue: &Virtqueue<R>, head: u16) -> Next {
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
        // One portion per turn: others wait for the same worker.
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

    pub(super) fn note_impossible(&self, operation: u32, offset: u64) {
        self.stats.count_error(BlkStats::REFUSED);
        let reason = "the segments that the backend takes at once are less than a block together";
        self.failures().note(operation as usize, offset, Cause::Refused(reason));
    }

    /// Notes what the device has written for one request: its data, if it was read, and the status byte.
    #[cold]
    pub(super) fn log_request<R: Ring>(&self, queue: &Virtqueue<R>, head: u16) {
        let index = usize::from(head);
        let slot = &self.slots[index];
        queue.log_written(&[Segment { base: slot.status, length: 1 }]);
        // Of what does not come from the backend, only the answer to GET_ID has data that is written; recording too
        // much does no harm.
        if slot.operation == POLLUX_BLOCK_READ || slot.operation == u32::MAX {
            queue.log_written(slot.data((&self.inline[index], self.rooms.of(head))));
        }
    }
}
