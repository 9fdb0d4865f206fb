//! The data path of one block queue: reap, accept, submit.
//!
//! One turn takes up to [`BATCH`] requests from the ring in stages (heads, descriptors, headers), so that the cache
//! misses of a batch overlap, and offers them to the backend in one call. What every queue does is in
//! [`queue`](crate::queue).
use super::{
    Shared,
    chain::{ChainParts, IN_USE, Inline, OLD_MEMORY, OVERFLOWN, Slot, answer_id, range_action},
    failures::FailureLog,
    portions::Portions,
    request::{Action, FLUSH, MediumLimits, Status},
    rooms::{Rooms, inline_rooms},
    tally::Tally,
};
use crate::{
    block::{DiskQueue, QueueFailed},
    fallible,
    queue::{BATCH, QueueModel, Virtqueue},
    ring::{Ring, RingError},
    stats::BlkStatsHandle,
    worker::Deadline,
};
use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_READ, Segment};
use std::{
    collections::HashMap,
    mem::take,
    os::fd::RawFd,
    sync::{Arc, atomic::Ordering},
};
use tracing::error;

/// Requests after which a backend that completes them at once lets the driver see them, while it goes on with the rest
/// of the batch. The driver takes them and makes new ones meanwhile, instead of waiting for the last.
pub const GROUP: usize = 16;

/// What a block queue needs beside its virtqueue.
#[derive(Debug)]
pub(super) struct BlkSetup<Q> {
    /// Size of the ring.
    pub(super) size: u16,
    pub(super) backend: Q,
    pub(super) limits: MediumLimits,
    pub(super) serial: String,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: BlkStatsHandle,
}

/// One queue of a block device, in front of a disk's queue.
#[derive(Debug)]
pub(super) struct BlkQueue<Q> {
    pub(super) backend: Q,
    pub(super) slots: Box<[Slot]>,
    /// The segments of each slot's request.
    pub(super) inline: Box<[Inline]>,
    /// Room for chains that outgrow it.
    pub(super) rooms: Rooms,
    /// The batch between its second and third stage. It is kept, since clearing it every turn would cost more than a
    /// request.
    parts: Box<[ChainParts]>,
    /// Requests for the backend, those from `pending_start` on not yet taken by it.
    pub(super) pending: Vec<BlockRequest>,
    pub(super) pending_start: usize,
    /// The backend completed all that it was offered the last time, before it returned.
    pub(super) completes_at_once: bool,
    /// Requests that are done in portions, by their heads: as many as the ring has, if the guest likes.
    pub(super) portions: HashMap<u16, Portions>,
    pub(super) limits: MediumLimits,
    /// The backend has failed and not stopped: it may touch the memory of its requests for ever.
    is_lost: bool,
    pub(super) stats: BlkStatsHandle,
    pub(super) shared: Arc<Shared>,
    serial: String,
}

// SAFETY: the pointers in slots and requests lead to guest memory, which the translators of the virtqueue keep mapped,
// or into the queue's own boxes, which move with it.
unsafe impl<Q: DiskQueue> Send for BlkQueue<Q> {}

impl<R: Ring, Q: DiskQueue> QueueModel<R> for BlkQueue<Q> {
    fn start(&mut self) -> Result<(), String> {
        self.backend.start().map_err(|error| error.to_string())
    }

    #[inline(always)]
    fn turn(&mut self, queue: &mut Virtqueue<R>) -> usize {
        let mut work = 0;
        // A backend that was full and has nothing in flight may yet have become ready.
        if self.backend.in_flight() > 0 || !self.pending.is_empty() {
            work += self.reap(queue);
        }
        if self.pending.is_empty() {
            let taken = if self.rooms.are_few() { queue.take_at_most(self.rooms.batch()) } else { queue.take() };
            if taken > 0 {
                work += self.accept(queue, taken);
            }
        }
        if !self.pending.is_empty() {
            work += self.submit(queue);
            if self.completes_at_once && !self.pending.is_empty() {
                work += self.submit_rest(queue);
            }
        }
        work
    }

    fn is_busy(&self) -> bool {
        !self.is_lost && (self.backend.in_flight() > 0 || !self.pending.is_empty())
    }

    fn begin_flush(&mut self) -> bool {
        if self.is_lost || self.backend.has_failed() || !self.backend.disk().info().offers(POLLUX_BLOCK_FLUSH) {
            return false;
        }
        self.pending.push(FLUSH.request(self.slots.len() as u16, &[]));
        true
    }

    fn memory_replaced(&mut self) -> u32 {
        for slot in self.slots.iter_mut().filter(|slot| slot.is_in_use()) {
            slot.state |= OLD_MEMORY;
        }
        // Not so many as there are slots in use, if the ring broke within a batch: that one is never submitted.
        self.backend.in_flight() + (self.pending.len() - self.pending_start) as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.backend.wake_fd()
    }

    fn deadline(&self) -> Option<Deadline> {
        self.backend.deadline()
    }

    fn arm(&mut self, queue: &mut Virtqueue<R>, armed: bool) -> bool {
        // Nothing says when what the backend did not take can be offered again.
        if armed && !self.pending.is_empty() {
            return true;
        }
        self.backend.arm(armed).unwrap_or_else(|failure| {
            self.fail_backend(queue, failure);
            true
        })
    }

    fn has_room(&self) -> bool {
        self.rooms.batch() > 0
    }

    fn idle(&self) {
        self.failures().report(false);
    }

    fn stop(&mut self) -> bool {
        self.failures().report(true);
        !self.is_lost && self.backend.stop().is_ok()
    }
}

impl<Q: DiskQueue> BlkQueue<Q> {
    pub(super) fn new(setup: BlkSetup<Q>) -> Result<Self, RingError> {
        let size = usize::from(setup.size);
        assert!(setup.backend.depth() > size, "the backend's queue has a slot for the last flush");
        Ok(BlkQueue {
            backend: setup.backend,
            slots: fallible::filled(Slot::EMPTY, size)?,
            inline: inline_rooms(size)?,
            rooms: Rooms::new(size)?,
            parts: vec![ChainParts::EMPTY; BATCH].into(),
            pending: Vec::with_capacity(BATCH),
            pending_start: 0,
            completes_at_once: false,
            portions: HashMap::new(),
            limits: setup.limits,
            is_lost: false,
            stats: setup.stats,
            shared: setup.shared,
            serial: setup.serial,
        })
    }

    /// Takes completed requests from the backend and gives them back to the driver.
    #[inline]
    fn reap<R: Ring>(&mut self, queue: &mut Virtqueue<R>) -> usize {
        let result = self.backend.poll();
        self.finish_completed(queue, result.err())
    }

    /// Offers pending requests to the backend: a group of them if it completes them at once, or else all, which it may
    /// have to hand on in one call. Those that it does not take stay pending.
    #[inline(always)]
    fn submit<R: Ring>(&mut self, queue: &mut Virtqueue<R>) -> usize {
        let mut offered = &mut self.pending[self.pending_start..];
        if self.completes_at_once && offered.len() > GROUP {
            offered = &mut offered[..GROUP];
        }
        let count = offered.len();
        let result = self.backend.submit(offered);
        let Ok(taken) = result else {
            self.completes_at_once = false;
            return self.finish_completed(queue, result.err());
        };
        self.completes_at_once = self.backend.completed() == count;
        self.pending_start += taken;
        if self.pending_start == self.pending.len() {
            self.pending.clear();
            self.pending_start = 0;
        }
        let completed = self.finish_completed(queue, None);
        if completed == 0 {
            queue.stats.in_flight.set(self.backend.in_flight().into());
        }
        taken + completed
    }

    /// Goes on with the groups of a batch after its first, and shows the driver each that is done.
    #[inline(never)]
    fn submit_rest<R: Ring>(&mut self, queue: &mut Virtqueue<R>) -> usize {
        let mut work = 0;
        while self.completes_at_once && !self.pending.is_empty() {
            queue.ring.publish();
            work += self.submit(queue);
        }
        // All of the groups are one batch for the driver.
        queue.ring.publish();
        queue.tell_driver();
        work
    }

    #[inline]
    fn finish_completed<R: Ring>(&mut self, queue: &mut Virtqueue<R>, failure: Option<QueueFailed>) -> usize {
        let completed = self.backend.completed();
        if completed == 0 && failure.is_none() {
            return 0;
        }
        let mut tally = Tally::default();
        for index in 0..completed {
            let completion = self.backend.take_completion(index);
            match u16::try_from(completion.slot) {
                Ok(head) if head < queue.ring.size() => match completion.result {
                    0 => self.complete(queue, head, Status::Ok, &mut tally),
                    result => self.complete_failed(queue, head, result, &mut tally),
                },
                _ => note_flushed(queue, completion.result),
            }
        }
        tally.add_to(&queue.stats, &self.stats);
        queue.stats.in_flight.set(self.backend.in_flight().into());
        if queue.is_logged() {
            self.log_completed(queue, completed);
        }
        if let Some(failure) = failure {
            self.fail_backend(queue, failure);
        }
        completed
    }

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
    pub(super) fn end_request<R: Ring>(
        &mut self,
        queue: &mut Virtqueue<R>,
        head: u16,
        status: Status,
        tally: &mut Tally,
    ) {
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

    /// Turns the chains that were taken into requests for the backend. Returns how much there was to do.
    #[inline(always)]
    fn accept<R: Ring>(&mut self, queue: &mut Virtqueue<R>, count: usize) -> usize {
        queue.stats.batches.record(count);
        let started = queue.sampler.begin();
        for (parts, &head) in self.parts.iter_mut().zip(&queue.heads[..count]) {
            let index = usize::from(head);
            let room = (&mut self.inline[index], &mut self.rooms);
            let slot = &mut self.slots[index];
            if let Err(error) = parts.take_chain::<R, Q>(&mut queue.ring, &mut queue.data, head, slot, room) {
                // The driver is broken, and so is all of this batch: none of it has been submitted.
                return queue.break_ring(error);
            }
            self.slots[index].started = started;
        }
        let durable = !self.shared.writeback.load(Ordering::Relaxed);
        self.limits.capacity_sectors = self.shared.capacity_sectors.load(Ordering::Relaxed);
        for index in 0..count {
            self.accept_request(queue, index, durable);
        }
        count
    }

    /// Reads the header and does, queues or refuses the request.
    #[inline]
    fn accept_request<R: Ring>(&mut self, queue: &mut Virtqueue<R>, index: usize, durable: bool) {
        let head = queue.heads[index];
        let parts = &self.parts[index];
        let (header, data) = (parts.header(), parts.data());
        let slot = &mut self.slots[usize::from(head)];
        slot.length = 0;
        slot.operation = u32::MAX;
        let mut action = header.action(&data, &self.limits, durable);
        if let Action::Range(operation) = action {
            slot.operation = operation;
            action = range_action(operation, &data, &self.limits, durable);
        }
        match action {
            Action::Submit(transfer) => {
                // Discards move no data, however long they are.
                let moves_data = transfer.operation < POLLUX_BLOCK_FLUSH;
                slot.operation = transfer.operation;
                slot.length = if moves_data { transfer.length as u32 } else { 0 };
                self.pending.push(transfer.request(head, if moves_data { data.segments } else { &[] }));
            }
            Action::GetId => {
                let status = answer_id(&data, &self.serial);
                self.answer(queue, head, &header, &data, status);
            }
            Action::Complete(status) => self.answer(queue, head, &header, &data, status),
            Action::Range(_) => unreachable!("a range has been turned into a request"),
        }
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

    pub(super) fn failures(&self) -> &FailureLog {
        &self.shared.failures
    }

    pub(super) fn limits(&self) -> &MediumLimits {
        &self.limits
    }

    /// The backend has failed: all of its requests end with an I/O error, and the device needs a reset.
    #[cold]
    fn fail_backend<R: Ring>(&mut self, queue: &mut Virtqueue<R>, failure: QueueFailed) {
        let (name, disk) = (queue.name.clone(), self.backend.disk());
        if queue.may_log() {
            let (medium, server) = (disk.name(), disk.server());
            error!("{name}: {medium}: {server} has failed ({failure}); the requests end with an I/O error");
        }
        queue.stats.in_flight.set(0);
        queue.fail();
        // Before the driver has its buffers back, the backend must have let go of them.
        if self.backend.stop().is_err() {
            error!(
                "{name}: {} cannot say that it has stopped; the requests never end, and their memory is kept",
                disk.server()
            );
            self.is_lost = true;
            self.pending.clear();
            return;
        }
        for slot in self.backend.take_in_flight() {
            match u16::try_from(slot) {
                Ok(head) if head < queue.ring.size() => self.complete_alone(queue, head, Status::IoError),
                _ => note_flushed(queue, -libc::EIO),
            }
        }
        let pending = take(&mut self.pending);
        for request in &pending[take(&mut self.pending_start)..] {
            let head = request.token as u16;
            if head < queue.ring.size() && self.slots[usize::from(head)].is_in_use() {
                self.complete_alone(queue, head, Status::IoError);
            }
        }
    }

    /// Notes what the device has written for requests that have just ended, before the driver is told of them.
    #[cold]
    #[inline(never)]
    fn log_completed<R: Ring>(&self, queue: &Virtqueue<R>, completed: usize) {
        for index in 0..completed {
            if let Ok(head) = u16::try_from(self.backend.completion(index).slot)
                && head < queue.ring.size()
            {
                self.log_request(queue, head);
            }
        }
    }

    /// Notes what the device has written for one request: its data, if it was read, and the status byte.
    #[cold]
    fn log_request<R: Ring>(&self, queue: &Virtqueue<R>, head: u16) {
        let index = usize::from(head);
        let slot = &self.slots[index];
        queue.log_written(&[Segment { base: slot.status, length: 1 }]);
        // Of what does not come from the backend, only the answer to GET_ID has data that is written; to note too much
        // does no harm.
        if slot.operation == POLLUX_BLOCK_READ || slot.operation == u32::MAX {
            queue.log_written(slot.data((&self.inline[index], self.rooms.of(head))));
        }
    }
}

/// The flush at the end, whose slot is that beyond the ring, is done.
#[cold]
fn note_flushed<R: Ring>(queue: &Virtqueue<R>, result: i32) {
    if result != 0 && queue.may_log() {
        let error = std::io::Error::from_raw_os_error(result.saturating_neg());
        error!("{}: the last flush failed, and the newest writes may be lost: {error}", queue.name);
    }
}
