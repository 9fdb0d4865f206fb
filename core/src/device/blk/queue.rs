//! The data path of one block queue: reap, accept, submit, signal.
//!
//! One turn of [`BlkQueue::poll`] takes up to [`BATCH`] requests from the ring in stages (heads, descriptors,
//! headers), so that the cache misses of a batch overlap; offers them to the backend in one call; and tells the
//! driver once.
use super::{
    chain::{ChainParts, Inline, NO_SEGMENT, Overflow, Slot, range_action},
    request::{Action, Data, FLUSH, Limits, Status},
    tally::Tally,
};
use crate::{
    memory::{GuestMemory, Translator},
    plugin::{BackendQueue, QueueFailed},
    ring::{QueueConfig, RingError, SplitRing},
    stats::{QueueStatsHandle, clock},
    transport::{InterruptState, Notifier},
    worker::{SleepFds, Task},
};
use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_FLUSH};
use std::{
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::error;
use vmm_sys_util::eventfd::EventFd;

/// Most requests of one turn.
pub const BATCH: usize = 64;
/// All that a queue needs.
#[derive(Debug)]
pub(super) struct QueueSetup {
    pub(super) name: String,
    pub(super) config: QueueConfig,
    pub(super) event_idx: bool,
    pub(super) memory: GuestMemory,
    pub(super) backend: BackendQueue,
    pub(super) limits: Limits,
    pub(super) serial: String,
    pub(super) writeback: Arc<AtomicBool>,
    pub(super) kick: EventFd,
    pub(super) notifier: Notifier,
    pub(super) interrupts: Arc<InterruptState>,
    pub(super) stats: QueueStatsHandle,
    pub(super) latency_sample: u32,
}

/// Where the queue stands on its way to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Nothing new is taken; what is in flight completes.
    Draining,
    /// The backend makes everything durable.
    Flushing,
    Stopped,
}

/// One queue of a block device. Owned by one worker.
#[derive(Debug)]
pub struct BlkQueue {
    ring: SplitRing,
    data: Translator,
    backend: BackendQueue,
    slots: Box<[Slot]>,
    /// The segments of each slot's request.
    inline: Box<[Inline]>,
    /// Room for chains that outgrow it. The memory is zeroed and untouched until then.
    overflow: Box<[Overflow]>,
    /// The batch between its first and second stage.
    heads: [u16; BATCH],
    /// The batch between its second and third stage. It is kept, since clearing it every turn would cost more than a
    /// request.
    parts: Box<[ChainParts]>,
    /// Requests for the backend, those from `pending_start` on not yet taken by it.
    pending: Vec<BlockRequest>,
    pending_start: usize,
    limits: Limits,
    phase: Phase,
    /// The driver broke the ring, or the backend has failed: the ring is not read any more.
    broken: bool,
    /// The backend has failed and not stopped: it may touch the memory of its requests for ever.
    lost: bool,
    latency_sample: u32,
    sample_countdown: u32,
    scale: clock::Scale,
    stats: QueueStatsHandle,
    notifier: Notifier,
    writeback: Arc<AtomicBool>,
    interrupts: Arc<InterruptState>,
    kick: EventFd,
    name: String,
    serial: String,
}

// SAFETY: the pointers in slots and requests lead to guest memory, which the translators keep mapped, or into the
// queue's own boxes, which move with it.
unsafe impl Send for BlkQueue {}

impl BlkQueue {
    pub(super) fn new(setup: QueueSetup) -> Result<Self, RingError> {
        let ring = SplitRing::new(&setup.config, setup.memory.translator(), setup.event_idx)?;
        let size = usize::from(ring.size());
        assert!(setup.backend.depth() > size, "the backend's queue has a slot for the last flush");
        Ok(BlkQueue {
            data: setup.memory.translator(),
            backend: setup.backend,
            slots: (0..size).map(|_| Slot::EMPTY).collect(),
            inline: vec![[NO_SEGMENT; _]; size].into(),
            parts: vec![ChainParts::EMPTY; BATCH].into(),
            // SAFETY: all zeroes are a null pointer and a length of 0.
            overflow: unsafe { Box::new_zeroed_slice(size).assume_init() },
            heads: [0; BATCH],
            pending: Vec::with_capacity(BATCH),
            pending_start: 0,
            limits: setup.limits,
            phase: Phase::Running,
            broken: false,
            lost: false,
            latency_sample: setup.latency_sample,
            sample_countdown: setup.latency_sample,
            scale: clock::Scale::new(),
            stats: setup.stats,
            notifier: setup.notifier,
            writeback: setup.writeback,
            interrupts: setup.interrupts,
            kick: setup.kick,
            name: setup.name,
            serial: setup.serial,
            ring,
        })
    }

    /// One turn.
    #[inline]
    fn turn(&mut self) -> usize {
        let mut work = 0;
        // A backend that was full and has nothing in flight may yet have become ready.
        if self.backend.in_flight() > 0 || !self.pending.is_empty() {
            work += self.reap();
        }
        if self.phase == Phase::Running && !self.broken && self.pending.is_empty() {
            work += self.accept();
        }
        if !self.pending.is_empty() {
            work += self.submit();
        }
        if self.phase != Phase::Running {
            self.advance_stop();
        }
        if self.ring.publish() {
            self.signal();
        }
        work
    }

    /// Takes completed requests from the backend and gives them back to the driver.
    #[inline]
    fn reap(&mut self) -> usize {
        let result = self.backend.poll();
        self.finish_completed(result.err())
    }

    /// Offers pending requests to the backend. Those that it does not take stay pending.
    #[inline]
    fn submit(&mut self) -> usize {
        let result = self.backend.submit(&mut self.pending[self.pending_start..]);
        let Ok(taken) = result else { return self.finish_completed(result.err()) };
        self.pending_start += taken;
        if self.pending_start == self.pending.len() {
            self.pending.clear();
            self.pending_start = 0;
        }
        self.stats.in_flight.set(self.backend.in_flight().into());
        taken + self.finish_completed(None)
    }

    #[inline]
    fn finish_completed(&mut self, failure: Option<QueueFailed>) -> usize {
        let completed = self.backend.completed();
        if completed == 0 && failure.is_none() {
            return 0;
        }
        let mut tally = Tally::default();
        for index in 0..completed {
            let completion = self.backend.completion(index);
            let status = Status::from_result(completion.result);
            match u16::try_from(completion.slot) {
                Ok(head) if head < self.ring.size() => self.complete(head, status, &mut tally),
                _ => self.finish_flush(status),
            }
        }
        tally.add_to(&self.stats);
        self.stats.in_flight.set(self.backend.in_flight().into());
        if let Some(failure) = failure {
            self.fail_backend(failure);
        }
        completed
    }

    /// The slot beyond the ring is that of the flush at the end.
    #[cold]
    fn finish_flush(&mut self, status: Status) {
        if status != Status::Ok && self.interrupts.may_log(&self.name) {
            error!("{}: the last flush failed: the newest writes may be lost", self.name);
        }
        self.phase = Phase::Stopped;
    }

    /// Ends a request: status byte, used ring, statistics.
    #[inline]
    fn complete(&mut self, head: u16, status: Status, tally: &mut Tally) {
        let slot = &mut self.slots[usize::from(head)];
        debug_assert!(slot.in_use);
        slot.in_use = false;
        // SAFETY: `take_chain` took the pointer from a segment that was translated for this request.
        unsafe { slot.status.write_volatile(status as u8) };
        let (written, started) = (slot.written, slot.started);
        tally.count(slot.operation, slot.length.into(), status);
        self.ring.push_used(head, written);
        if started != 0 {
            self.stats.latency.record(self.scale.nanoseconds(clock::ticks().wrapping_sub(started)));
        }
    }

    /// Takes a batch from the ring and turns it into requests for the backend.
    #[inline]
    fn accept(&mut self) -> usize {
        let count = match self.ring.pop(&mut self.heads) {
            Ok(0) => return 0,
            Ok(count) => count,
            Err(error) => return self.break_ring(error),
        };
        self.stats.batches.add(1);
        let started = self.sample();
        for (parts, &head) in self.parts.iter_mut().zip(&self.heads[..count]) {
            let index = usize::from(head);
            let room = (&mut self.inline[index], &mut self.overflow[index]);
            if let Err(error) = parts.take_chain(&mut self.ring, &mut self.data, head, &mut self.slots[index], room) {
                // The driver is broken, and so is all of this batch: none of it has been submitted.
                return self.break_ring(error);
            }
            self.slots[index].started = started;
        }
        let durable = !self.writeback.load(Ordering::Relaxed);
        for index in 0..count {
            self.accept_request(self.heads[index], index, durable);
        }
        count
    }

    /// The time stamp of a batch whose latency is measured, or 0.
    #[inline(always)]
    fn sample(&mut self) -> u64 {
        if self.sample_countdown > 1 {
            self.sample_countdown -= 1;
            return 0;
        }
        self.sample_countdown = self.latency_sample;
        if self.latency_sample == 0 { 0 } else { clock::ticks() }
    }

    /// Reads the header and does, queues or refuses the request.
    #[inline]
    fn accept_request(&mut self, head: u16, index: usize, durable: bool) {
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
                let status = self.answer_id(&data);
                self.complete_alone(head, status);
            }
            Action::Complete(status) => self.complete_alone(head, status),
            Action::Range(_) => unreachable!("a range has been turned into a request"),
        }
    }

    /// GET_ID: the name, filled up with zeroes to 20 bytes (virtio 1.3, 5.2.6).
    #[cold]
    fn answer_id(&self, data: &Data<'_>) -> Status {
        let mut id = [0; 20];
        let length = self.serial.len().min(id.len());
        id[..length].copy_from_slice(&self.serial.as_bytes()[..length]);
        let status = if data.readable == 0 && data.writable > 0 { Status::Ok } else { Status::IoError };
        if status == Status::Ok {
            let mut rest = &id[..];
            for segment in data.segments {
                let length = segment.length.min(rest.len());
                // SAFETY: the segment was translated for this request, and no Rust reference covers guest memory.
                unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), segment.base, length) };
                rest = &rest[length..];
            }
        }
        status
    }

    /// Ends a request that does not come from the backend.
    #[cold]
    fn complete_alone(&mut self, head: u16, status: Status) {
        let mut tally = Tally::default();
        self.complete(head, status, &mut tally);
        tally.add_to(&self.stats);
    }

    #[inline]
    fn signal(&mut self) {
        if self.ring.needs_signal() {
            self.notifier.signal();
            self.stats.interrupts.add(1);
        } else {
            self.stats.interrupts_suppressed.add(1);
        }
    }

    /// The driver broke the rules: the device needs a reset, and the ring is not touched any more but for what is in
    /// flight.
    #[cold]
    fn break_ring(&mut self, error: RingError) -> usize {
        if self.interrupts.may_log(&self.name) {
            error!("{}: the guest's driver broke its ring: {error}; the device needs a reset by the guest", self.name);
        }
        self.broken = true;
        self.interrupts.fail();
        1
    }

    /// The backend has failed: all of its requests end with an I/O error, and the device needs a reset.
    #[cold]
    fn fail_backend(&mut self, failure: QueueFailed) {
        let backend = self.backend.backend().clone();
        if self.interrupts.may_log(&self.name) {
            let (name, plugin) = (backend.name(), backend.plugin().name());
            error!(
                "{}: {name}: the plugin {plugin} has failed ({failure}); the requests end with an I/O error",
                self.name
            );
        }
        self.broken = true;
        self.stats.in_flight.set(0);
        self.interrupts.fail();
        // Before the driver has its buffers back, the backend must have let go of them.
        if self.backend.stop().is_err() {
            error!(
                "{}: the plugin {} cannot say that it has stopped; the requests never end, and their memory is kept",
                self.name,
                backend.plugin().name()
            );
            self.lost = true;
            self.pending.clear();
            return;
        }
        for slot in self.backend.take_in_flight() {
            match u16::try_from(slot) {
                Ok(head) if head < self.ring.size() => self.complete_alone(head, Status::IoError),
                _ => self.finish_flush(Status::IoError),
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for request in &pending[self.pending_start..] {
            let head = request.token as u16;
            if head < self.ring.size() && self.slots[usize::from(head)].in_use {
                self.complete_alone(head, Status::IoError);
            }
        }
        self.pending_start = 0;
    }

    /// Goes on with a stop: once nothing is in flight, one last flush.
    #[cold]
    fn advance_stop(&mut self) {
        if self.lost {
            self.phase = Phase::Stopped;
        }
        if self.phase != Phase::Draining || self.backend.in_flight() > 0 || !self.pending.is_empty() {
            return;
        }
        if self.backend.has_failed() || !self.backend.backend().info().offers(POLLUX_BLOCK_FLUSH) {
            self.phase = Phase::Stopped;
            return;
        }
        self.phase = Phase::Flushing;
        self.pending.push(FLUSH.request(self.ring.size(), &[]));
    }

    fn arm_backend(&mut self, armed: bool) -> bool {
        self.backend.arm(armed).unwrap_or_else(|failure| {
            self.fail_backend(failure);
            true
        })
    }

    /// Takes the kicks that came in, for the statistics and so that the descriptor is not readable any more.
    fn take_kicks(&mut self) {
        // EAGAIN: there were none.
        if let Ok(kicks) = self.kick.read() {
            self.stats.kicks.add(kicks);
        }
    }
}

impl Task for BlkQueue {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&mut self) -> Result<(), String> {
        self.backend.start().map_err(|error| error.to_string())
    }

    #[inline]
    fn poll(&mut self) -> usize {
        self.turn()
    }

    fn begin_stop(&mut self) {
        self.phase = Phase::Draining;
    }

    fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    fn finish(&mut self) -> bool {
        self.take_kicks();
        !self.lost && self.backend.stop().is_ok()
    }

    fn abandon(&mut self) {
        self.interrupts.fail();
        // The driver must not have its buffers back before the backend has let go of them; it has not, by this queue.
        // What it resets to is refused by the device.
        let _ = self.backend.stop();
    }

    fn sleep_fds(&self) -> SleepFds {
        SleepFds { kick: Some(self.kick.as_raw_fd()), wake: self.backend.wake_fd() }
    }

    fn arm(&mut self) -> bool {
        if !self.pending.is_empty() || self.backend.in_flight() > 0 && self.backend.wake_fd().is_none() {
            return true;
        }
        let busy = self.arm_backend(true);
        busy | (!self.broken && self.ring.enable_kicks())
    }

    fn disarm(&mut self) {
        self.arm_backend(false);
        self.take_kicks();
        if !self.broken {
            self.ring.disable_kicks();
        }
    }
}
