//! One turn of a block queue: reap, accept, submit.
//!
//! It takes up to [`BATCH`](crate::queue::BATCH) requests from the ring in stages (heads, descriptors, headers), so
//! that the cache misses of a batch overlap, and offers them to the backend in one call. What every queue does is in
//! [`queue`](crate::queue).
use super::{
    queue::BlkQueue,
    request::{FLUSH, Status},
    slot::OLD_MEMORY,
    tally::Tally,
};
use crate::{
    block::{DiskQueue, QueueFailed},
    queue::{QueueModel, Virtqueue},
    ring::Ring,
    worker::Deadline,
};
use pollux_abi::block_v1::POLLUX_BLOCK_FLUSH;
use std::{mem::take, os::fd::RawFd};
use tracing::error;

/// Requests after which a backend that completes them at once lets the driver see them, while it continues with the
/// rest of the batch. The driver takes them and makes new ones meanwhile, instead of waiting for the last.
pub const GROUP: usize = 16;

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
        // Fewer than the slots in use if the ring broke within a batch: such a batch is never submitted.
        self.backend.in_flight() + (self.pending.len() - self.pending_start) as u32
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.backend.wake_fd()
    }

    fn deadline(&self) -> Option<Deadline> {
        self.backend.deadline()
    }

    fn arm(&mut self, queue: &mut Virtqueue<R>, armed: bool) -> bool {
        // Nothing signals when requests that the backend did not take can be offered again.
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
    /// Takes completed requests from the backend and gives them back to the driver.
    #[inline]
    fn reap<R: Ring>(&mut self, queue: &mut Virtqueue<R>) -> usize {
        let result = self.backend.poll();
        let completed = self.finish_completed(queue);
        if let Err(failure) = result {
            self.fail_backend(queue, failure);
        }
        completed
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
        let taken = match self.backend.submit(offered) {
            Ok(taken) => taken,
            Err(failure) => return self.submit_failed(queue, failure),
        };
        self.completes_at_once = self.backend.completed() == count;
        self.pending_start += taken;
        if self.pending_start == self.pending.len() {
            self.pending.clear();
            self.pending_start = 0;
        }
        let completed = self.finish_completed(queue);
        if completed == 0 {
            queue.stats.in_flight.set(self.backend.in_flight().into());
        }
        taken + completed
    }

    /// Continues with the groups of a batch after the first, and shows the driver each completed one.
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

    /// The backend has failed in a call of `submit`. What completed in that call counts.
    #[cold]
    fn submit_failed<R: Ring>(&mut self, queue: &mut Virtqueue<R>, failure: QueueFailed) -> usize {
        self.completes_at_once = false;
        let completed = self.finish_completed(queue);
        self.fail_backend(queue, failure);
        completed
    }

    /// Gives the requests back to the driver that the backend's last call has completed. Returns how many there are.
    #[inline]
    fn finish_completed<R: Ring>(&mut self, queue: &mut Virtqueue<R>) -> usize {
        let completed = self.backend.completed();
        if completed == 0 {
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
        completed
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
}

/// The flush at the end, whose slot is that beyond the ring, is done.
#[cold]
fn note_flushed<R: Ring>(queue: &Virtqueue<R>, result: i32) {
    if result != 0 && queue.may_log() {
        let error = std::io::Error::from_raw_os_error(result.saturating_neg());
        error!("{}: the last flush failed, and the newest writes may be lost: {error}", queue.name);
    }
}
