//! The data path of one block queue: reap, accept, submit, signal.
//!
//! One turn of [`BlkQueue::poll`] takes up to [`BATCH`] requests from the ring in stages (heads, descriptors, headers),
//! so that the cache misses of a batch overlap; offers them to the backend in one call; and tells the driver once. What
//! changes while a queue runs is in `change`, how it ends in `ending`, interrupts that wait in `interrupt`.
use super::{
    Shared,
    chain::{ChainParts, IN_USE, Inline, OVERFLOWN, Slot, answer_id, range_action},
    change::Retiring,
    failures::FailureLog,
    portions::Portions,
    request::{Action, Limits, Status},
    rooms::{Rooms, inline_rooms},
    tally::Tally,
};
use crate::{
    block::{DiskQueue, QueueFailed},
    event::{InterruptState, Notifier},
    fallible,
    memory::{DirtyLog, GuestMemory, Translator},
    queue::{QueueOptions, coalescing::Coalescer},
    ring::{QueueConfig, Ring, RingError, RingStart},
    stats::{BlkStats, BlkStatsHandle, QueueRecord, QueueStatsHandle, clock},
    worker::{SleepFds, Task, Watch},
};
use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_FLUSH};
use std::{
    any::Any,
    collections::HashMap,
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
};
use vmm_sys_util::eventfd::EventFd;

/// Most requests of one turn.
pub const BATCH: usize = 64;
/// Requests after which a backend that completes them at once lets the driver see them, while it goes on with the rest
/// of the batch. The driver takes them and makes new ones meanwhile, instead of waiting for the last.
pub const GROUP: usize = 16;

/// All that a queue needs.
#[derive(Debug)]
pub(super) struct QueueSetup<Q> {
    pub(super) name: String,
    pub(super) config: QueueConfig,
    pub(super) start: RingStart,
    pub(super) event_idx: bool,
    pub(super) memory: GuestMemory,
    pub(super) backend: Q,
    pub(super) limits: Limits,
    pub(super) serial: String,
    pub(super) shared: Arc<Shared>,
    pub(super) kick: Option<EventFd>,
    pub(super) notifier: Notifier,
    pub(super) interrupts: Arc<InterruptState>,
    pub(super) stats: QueueRecord<BlkStats>,
    pub(super) options: QueueOptions,
}

/// Where the queue stands on its way to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// Nothing new is taken; what is in flight completes.
    Draining,
    /// The backend makes everything durable.
    Flushing,
    Stopped,
}

/// One queue of a block device on a ring of either kind, in front of a disk's queue. Owned by one worker.
#[derive(Debug)]
pub struct BlkQueue<R, Q> {
    pub(super) ring: R,
    pub(super) data: Translator,
    pub(super) backend: Q,
    pub(super) slots: Box<[Slot]>,
    /// The segments of each slot's request.
    pub(super) inline: Box<[Inline]>,
    /// Room for chains that outgrow it.
    pub(super) rooms: Rooms,
    /// The batch between its first and second stage.
    pub(super) heads: [u16; BATCH],
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
    pub(super) limits: Limits,
    pub(super) phase: Phase,
    /// Turns have no more to do at their end than to signal: the queue runs, and no interrupt is ever held.
    ends_plainly: bool,
    /// What the driver is to be told of, if that may wait.
    pub(super) coalescer: Coalescer,
    /// The ring's count of chains given back, up to the last batch that `coalescer` knows of.
    pub(super) used_noted: u16,
    /// The driver broke the ring, or the backend has failed: the ring is not read any more.
    pub(super) broken: bool,
    /// The rings were used before: the driver may wait for what it was not told of.
    resumed: bool,
    /// There are requests to be taken again that the process before had in flight.
    pub(super) recovering: bool,
    /// Where the pages are noted that the device writes.
    pub(super) log: Option<DirtyLog>,
    /// Memory maps that were replaced, for the sake of requests in flight.
    pub(super) retiring: Retiring,
    /// The backend has failed and not stopped: it may touch the memory of its requests for ever.
    pub(super) lost: bool,
    latency_sample: u32,
    sample_countdown: u32,
    scale: clock::Scale,
    pub(super) stats: QueueStatsHandle,
    pub(super) blk_stats: BlkStatsHandle,
    pub(super) notifier: Notifier,
    pub(super) shared: Arc<Shared>,
    pub(super) interrupts: Arc<InterruptState>,
    pub(super) kick: Option<EventFd>,
    pub(super) name: String,
    serial: String,
}

// SAFETY: the pointers in slots and requests lead to guest memory, which the translators keep mapped, or into the
// queue's own boxes, which move with it.
unsafe impl<R: Ring, Q: DiskQueue> Send for BlkQueue<R, Q> {}

impl<R: Ring, Q: DiskQueue> BlkQueue<R, Q> {
    pub(super) fn new(setup: QueueSetup<Q>) -> Result<Self, RingError> {
        let (log, resumed) = (setup.start.log.clone(), setup.start.resumed);
        let ring = R::start(&setup.config, setup.memory.translator(), setup.event_idx, setup.start)?;
        let size = usize::from(ring.size());
        assert!(setup.backend.depth() > size, "the backend's queue has a slot for the last flush");
        let mut rooms = Rooms::new(size)?;
        rooms.set_recovering(ring.has_left_over());
        let coalescer = Coalescer::new(setup.options.coalescing, clock::ticks_per_second());
        Ok(BlkQueue {
            data: setup.memory.translator(),
            backend: setup.backend,
            slots: fallible::filled(Slot::EMPTY, size)?,
            inline: inline_rooms(size)?,
            parts: vec![ChainParts::EMPTY; BATCH].into(),
            rooms,
            heads: [0; BATCH],
            pending: Vec::with_capacity(BATCH),
            pending_start: 0,
            completes_at_once: false,
            portions: HashMap::new(),
            limits: setup.limits,
            phase: Phase::Running,
            ends_plainly: coalescer.is_off(),
            coalescer,
            used_noted: ring.used_count(),
            broken: false,
            recovering: ring.has_left_over(),
            resumed,
            log,
            retiring: Retiring::default(),
            lost: false,
            latency_sample: setup.options.latency_sample,
            sample_countdown: setup.options.latency_sample,
            scale: clock::Scale::new(),
            stats: setup.stats.common,
            blk_stats: setup.stats.block,
            notifier: setup.notifier,
            shared: setup.shared,
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
        if !self.broken && self.pending.is_empty() {
            let taken = match self.phase {
                _ if self.rooms.is_detour() => self.take_detour(),
                Phase::Running => self.take(),
                _ => 0,
            };
            if taken > 0 {
                work += self.accept(taken);
            }
        }
        let mut is_shown = false;
        if !self.pending.is_empty() {
            work += self.submit();
            if self.completes_at_once && !self.pending.is_empty() {
                is_shown = true;
                work += self.submit_rest();
            }
        }
        if !self.ends_plainly {
            self.end_turn(is_shown);
        } else if self.ring.publish() | is_shown {
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

    /// Offers pending requests to the backend: a group of them if it completes them at once, or else all, which it may
    /// have to hand on in one call. Those that it does not take stay pending.
    #[inline(always)]
    fn submit(&mut self) -> usize {
        let mut offered = &mut self.pending[self.pending_start..];
        if self.completes_at_once && offered.len() > GROUP {
            offered = &mut offered[..GROUP];
        }
        let count = offered.len();
        let result = self.backend.submit(offered);
        let Ok(taken) = result else {
            self.completes_at_once = false;
            return self.finish_completed(result.err());
        };
        self.completes_at_once = self.backend.completed() == count;
        self.pending_start += taken;
        if self.pending_start == self.pending.len() {
            self.pending.clear();
            self.pending_start = 0;
        }
        let completed = self.finish_completed(None);
        if completed == 0 {
            self.stats.in_flight.set(self.backend.in_flight().into());
        }
        taken + completed
    }

    /// Goes on with the groups of a batch after its first, and shows the driver each that is done.
    #[inline(never)]
    fn submit_rest(&mut self) -> usize {
        let mut work = 0;
        while self.completes_at_once && !self.pending.is_empty() {
            self.ring.publish();
            work += self.submit();
        }
        work
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
            match u16::try_from(completion.slot) {
                Ok(head) if head < self.ring.size() => match completion.result {
                    0 => self.complete(head, Status::Ok, &mut tally),
                    result => self.complete_failed(head, result, self.backend.offset(completion.slot), &mut tally),
                },
                _ => self.finish_flush(completion.result),
            }
        }
        tally.add_to(&self.stats, &self.blk_stats);
        self.stats.in_flight.set(self.backend.in_flight().into());
        if self.log.is_some() {
            self.log_completed(completed);
        }
        if let Some(failure) = failure {
            self.fail_backend(failure);
        }
        completed
    }

    /// A request, or a portion of it, is done.
    #[inline(always)]
    pub(super) fn complete(&mut self, head: u16, status: Status, tally: &mut Tally) {
        if self.slots[usize::from(head)].state != IN_USE {
            self.complete_unusual(head, status, tally);
        } else {
            self.end_request(head, status, tally);
        }
    }

    /// Ends a request: status byte, used ring, statistics.
    #[inline(always)]
    pub(super) fn end_request(&mut self, head: u16, status: Status, tally: &mut Tally) {
        let slot = &mut self.slots[usize::from(head)];
        debug_assert!(slot.is_in_use());
        let state = slot.state;
        slot.state = state & OVERFLOWN;
        // SAFETY: `take_chain` took the pointer from a segment that was translated for this request.
        unsafe { slot.status.write_volatile(status as u8) };
        let (written, started, operation) = (slot.written, slot.started, slot.operation);
        tally.count(operation, slot.length.into(), status);
        self.ring.push_used(head, written);
        if started != 0 {
            self.blk_stats.latency.record(operation, self.scale.nanoseconds(clock::ticks().wrapping_sub(started)));
        }
    }

    /// Takes a batch from the ring into `heads`. Returns how many there are.
    #[inline(always)]
    fn take(&mut self) -> usize {
        match self.ring.pop(&mut self.heads) {
            Ok(count) => count,
            Err(error) => self.take_none(error),
        }
    }

    #[cold]
    pub(super) fn take_none(&mut self, error: RingError) -> usize {
        self.break_ring(error);
        0
    }

    /// Turns the chains in `heads` into requests for the backend. Returns how much there was to do.
    #[inline(always)]
    fn accept(&mut self, count: usize) -> usize {
        self.stats.batches.record(count);
        let started = self.sample();
        for (parts, &head) in self.parts.iter_mut().zip(&self.heads[..count]) {
            let index = usize::from(head);
            let room = (&mut self.inline[index], &mut self.rooms);
            if let Err(error) = parts.take_chain(&mut self.ring, &mut self.data, head, &mut self.slots[index], room) {
                // The driver is broken, and so is all of this batch: none of it has been submitted.
                return self.break_ring(error);
            }
            self.slots[index].started = started;
        }
        let durable = !self.shared.writeback.load(Ordering::Relaxed);
        self.limits.capacity_sectors = self.shared.capacity_sectors.load(Ordering::Relaxed);
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
                let status = answer_id(&data, &self.serial);
                self.answer(head, &header, &data, status);
            }
            Action::Complete(status) => self.answer(head, &header, &data, status),
            Action::Range(_) => unreachable!("a range has been turned into a request"),
        }
    }

    /// Ends a request that does not come from the backend.
    #[cold]
    pub(super) fn complete_alone(&mut self, head: u16, status: Status) {
        if status != Status::Ok {
            self.slots[usize::from(head)].length = 0;
        }
        let mut tally = Tally::default();
        self.complete(head, status, &mut tally);
        tally.add_to(&self.stats, &self.blk_stats);
        if self.log.is_some() {
            self.log_request(head);
        }
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

    /// The slot of a request among those that the last call of the backend has completed.
    pub(super) fn completed_slot(&self, index: usize) -> u32 {
        self.backend.completion(index).slot
    }

    pub(super) fn failures(&self) -> &FailureLog {
        &self.shared.failures
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn arm_backend(&mut self, armed: bool) -> bool {
        self.backend.arm(armed).unwrap_or_else(|failure| {
            self.fail_backend(failure);
            true
        })
    }
}

impl<R: Ring, Q: DiskQueue> Task for BlkQueue<R, Q> {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&mut self) -> Result<(), String> {
        self.backend.start().map_err(|error| error.to_string())?;
        if self.resumed {
            self.notifier.signal();
        }
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> usize {
        self.turn()
    }

    fn watch(&self) -> Option<Watch> {
        self.failures().report(false);
        // Only the driver can bring work.
        let waits = self.backend.in_flight() > 0 || !self.pending.is_empty() || self.recovering || self.broken;
        let waits = waits || self.coalescer.is_owed();
        if waits || self.phase != Phase::Running { None } else { self.ring.watch() }
    }

    fn begin_stop(&mut self) {
        self.phase = Phase::Draining;
        self.ends_plainly = false;
    }

    fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    fn finish(&mut self) -> bool {
        debug_assert!(!self.coalescer.is_owed(), "the turn that ended the stop has sent it");
        self.take_kicks();
        self.failures().report(true);
        !self.lost && self.backend.stop().is_ok()
    }

    fn abandon(&mut self) -> bool {
        self.interrupts.fail();
        self.send_owed();
        self.stats.in_flight.set(0);
        // The driver must not have its buffers back before the backend has let go of them. Once it has, the requests in
        // flight have ended, though nobody is told how, and a reset makes a new queue.
        !self.lost && self.backend.stop().is_ok()
    }

    fn update(&mut self, change: &mut dyn Any) {
        if let Some(update) = change.downcast_mut() {
            self.change(update);
        }
    }

    fn sleep_fds(&self) -> SleepFds {
        SleepFds { kick: self.kick.as_ref().map(AsRawFd::as_raw_fd), wake: self.backend.wake_fd() }
    }

    fn arm(&mut self) -> bool {
        self.failures().report(false);
        // A driver that does not kick must be polled.
        if self.kick.is_none() || self.recovering {
            return true;
        }
        if !self.pending.is_empty() || self.backend.in_flight() > 0 && self.backend.wake_fd().is_none() {
            return true;
        }
        let busy = self.arm_backend(true);
        // What a ring still has when there is no room for it waits for a request to end, which wakes us.
        let busy = busy | (!self.broken && self.rooms.batch() > 0 && self.ring.enable_kicks());
        if !busy {
            // Nobody would send it while the worker sleeps.
            self.send_owed();
        }
        busy
    }

    fn disarm(&mut self) {
        self.arm_backend(false);
        self.take_kicks();
        if !self.broken {
            self.ring.disable_kicks();
        }
    }
}
