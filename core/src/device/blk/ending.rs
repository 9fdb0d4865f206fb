//! How a queue ends: its driver breaks the ring, its backend fails, or it is stopped.
use super::{
    queue::{BlkQueue, Phase},
    request::{FLUSH, Status},
};
use crate::{
    block::{DiskQueue, QueueFailed},
    ring::{Ring, RingError},
};
use pollux_abi::block_v1::POLLUX_BLOCK_FLUSH;
use tracing::error;

impl<R: Ring, Q: DiskQueue> BlkQueue<R, Q> {
    /// The slot beyond the ring is that of the flush at the end.
    #[cold]
    pub(super) fn finish_flush(&mut self, result: i32) {
        if result != 0 && self.interrupts.may_log(&self.name) {
            let error = std::io::Error::from_raw_os_error(result.saturating_neg());
            error!("{}: the last flush failed, and the newest writes may be lost: {error}", self.name);
        }
        self.phase = Phase::Stopped;
    }

    /// The driver broke the rules: the device needs a reset, and the ring is not touched any more but for what is in
    /// flight.
    #[cold]
    pub(super) fn break_ring(&mut self, error: RingError) -> usize {
        if self.interrupts.may_log(&self.name) {
            error!("{}: the guest's driver broke its ring: {error}; the device needs a reset by the guest", self.name);
        }
        self.broken = true;
        self.recovering = false;
        self.interrupts.fail();
        1
    }

    /// The backend has failed: all of its requests end with an I/O error, and the device needs a reset.
    #[cold]
    pub(super) fn fail_backend(&mut self, failure: QueueFailed) {
        let disk = self.backend.disk();
        if self.interrupts.may_log(&self.name) {
            let (name, server) = (disk.name(), disk.server());
            error!("{}: {name}: {server} has failed ({failure}); the requests end with an I/O error", self.name);
        }
        self.broken = true;
        self.recovering = false;
        self.stats.in_flight.set(0);
        self.interrupts.fail();
        // Before the driver has its buffers back, the backend must have let go of them.
        if self.backend.stop().is_err() {
            error!(
                "{}: {} cannot say that it has stopped; the requests never end, and their memory is kept",
                self.name,
                disk.server()
            );
            self.lost = true;
            self.pending.clear();
            return;
        }
        for slot in self.backend.take_in_flight() {
            match u16::try_from(slot) {
                Ok(head) if head < self.ring.size() => self.complete_alone(head, Status::IoError),
                _ => self.finish_flush(-libc::EIO),
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for request in &pending[self.pending_start..] {
            let head = request.token as u16;
            if head < self.ring.size() && self.slots[usize::from(head)].is_in_use() {
                self.complete_alone(head, Status::IoError);
            }
        }
        self.pending_start = 0;
    }

    /// Goes on with a stop: once nothing is in flight, one last flush.
    #[cold]
    pub(super) fn advance_stop(&mut self) {
        if self.lost {
            self.phase = Phase::Stopped;
        }
        if self.phase != Phase::Draining || self.recovering || self.backend.in_flight() > 0 || !self.pending.is_empty()
        {
            return;
        }
        if self.backend.has_failed() || !self.backend.disk().info().offers(POLLUX_BLOCK_FLUSH) {
            self.phase = Phase::Stopped;
            return;
        }
        self.phase = Phase::Flushing;
        self.pending.push(FLUSH.request(self.ring.size(), &[]));
    }
}
