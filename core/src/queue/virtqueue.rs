//! One virtqueue as its worker serves it: the ring, and what belongs to it whatever the device is.
use super::{
    coalescing::{BatchNotice, Coalescer},
    options::QueueOptions,
    retiring::Retiring,
    sampler::Sampler,
    update::{Position, QueueUpdate, Retired},
};
use crate::{
    event::{InterruptState, Notifier, Watch},
    memory::{DirtyLog, GuestMemory, Translator},
    ring::{QueueConfig, Ring, RingError, RingStart},
    stats::{QueueStatsHandle, clock},
};
use pollux_abi::block_v1::Segment;
use rustix::io::{ReadWriteFlags, preadv2};
use std::{
    io::IoSliceMut,
    mem::{replace, swap},
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    sync::{Arc, mpsc::SyncSender},
};
use tracing::error;
use vmm_sys_util::eventfd::EventFd;

/// Most chains of one turn.
pub const BATCH: usize = 64;

/// All that a virtqueue needs.
#[derive(Debug)]
pub struct VirtqueueSetup {
    /// Index of the queue in its device.
    pub(crate) index: usize,
    /// For messages: `blk0 queue 1`.
    pub(crate) name: String,
    pub(crate) config: QueueConfig,
    pub(crate) start: RingStart,
    pub(crate) event_idx: bool,
    pub(crate) memory: GuestMemory,
    pub(crate) kick: Option<Arc<EventFd>>,
    pub(crate) notifier: Notifier,
    pub(crate) interrupts: Arc<InterruptState>,
    pub(crate) stats: QueueStatsHandle,
    pub(crate) options: QueueOptions,
}

/// Where a virtqueue stands on its way to a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// Nothing new is taken; what is in flight completes.
    Draining,
    /// What has completed is made durable.
    Flushing,
    Stopped,
}

/// One virtqueue on a ring of any kind. Owned by one worker.
///
/// A device's turn [takes](Self::take) a batch of chains, [walks](Ring::walk) all of them, and gives any number of
/// chains back to the [`ring`](Self::ring). The shell shows them to the driver and tells it.
#[derive(Debug)]
pub(crate) struct Virtqueue<R> {
    pub(crate) ring: R,
    /// Translates the addresses of data; those of the ring have a translator of their own.
    pub(crate) data: Translator,
    /// The chains of the last batch that was taken.
    pub(crate) heads: [u16; BATCH],
    pub(crate) stats: QueueStatsHandle,
    pub(crate) sampler: Sampler,
    pub(crate) name: String,
    phase: Phase,
    /// The driver broke the ring, or the device has failed: the ring is not read any more.
    is_broken: bool,
    /// There are chains that an earlier process had in flight and that must be taken again.
    is_recovering: bool,
    /// None of these three prevents new chains from being taken. Combined, so that a turn without work has only one
    /// thing to check.
    is_open: bool,
    /// Turns have nothing to do at their end except to signal: the queue runs, and no interrupt is ever held.
    pub(super) ends_plainly: bool,
    coalescer: Coalescer,
    /// The ring's count of chains given back, up to the last batch that `coalescer` knows of.
    used_noted: u16,
    /// Where the pages are noted that the device writes.
    log: Option<DirtyLog>,
    /// Memory maps that were replaced, for the sake of requests in flight.
    retiring: Retiring,
    notifier: Notifier,
    kick: Option<Arc<EventFd>>,
    interrupts: Arc<InterruptState>,
    /// The rings were used before: the driver may be waiting for something that it was not notified of.
    is_resumed: bool,
}

impl<R: Ring> Virtqueue<R> {
    /// # Errors
    /// As [`Ring::start`].
    pub(crate) fn new(setup: VirtqueueSetup) -> Result<Self, RingError> {
        let (log, is_resumed) = (setup.start.log.clone(), setup.start.resumed);
        let ring = R::start(&setup.config, setup.memory.translator(), setup.event_idx, setup.start)?;
        let coalescer = Coalescer::new(setup.options.coalescing, clock::ticks_per_second());
        let is_recovering = ring.has_recovered_chains();
        Ok(Virtqueue {
            data: setup.memory.translator(),
            heads: [0; BATCH],
            stats: setup.stats,
            sampler: Sampler::new(setup.options.latency_sample),
            name: setup.name,
            phase: Phase::Running,
            is_broken: false,
            is_recovering,
            is_open: !is_recovering,
            ends_plainly: coalescer.is_off(),
            coalescer,
            used_noted: ring.used_count(),
            log,
            retiring: Retiring::default(),
            notifier: setup.notifier,
            kick: setup.kick,
            interrupts: setup.interrupts,
            is_resumed,
            ring,
        })
    }

    /// Takes a batch of chains into [`heads`](Self::heads): first those that an earlier process had in flight, then new
    /// ones as long as the queue runs. Returns how many there are.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> usize {
        if !self.is_open {
            return self.take_recovered(BATCH);
        }
        match self.ring.pop(&mut self.heads) {
            Ok(count) => count,
            Err(error) => self.take_none(error),
        }
    }

    /// As [`take`](Self::take), for a device that has no room for a full batch.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_at_most(&mut self, room: usize) -> usize {
        if room == 0 {
            return 0;
        }
        if !self.is_open {
            return self.take_recovered(room);
        }
        self.ring.pop(&mut self.heads[..room]).unwrap_or_else(|error| self.take_none(error))
    }

    /// Takes chains that an earlier process had in flight, even in a queue that takes no new ones.
    #[cold]
    #[inline(never)]
    fn take_recovered(&mut self, room: usize) -> usize {
        if !self.is_recovering {
            return 0;
        }
        let count = self.ring.pop_recovered(&mut self.heads[..room]);
        self.is_recovering = self.ring.has_recovered_chains();
        self.note_state();
        count
    }

    #[cold]
    fn take_none(&mut self, error: RingError) -> usize {
        self.break_ring(error);
        0
    }

    fn note_state(&mut self) {
        self.is_open = self.phase == Phase::Running && !self.is_broken && !self.is_recovering;
    }

    /// Where it stands on its way to a stop.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Advances towards a stop.
    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
        self.ends_plainly = false;
        self.note_state();
    }

    /// Checks whether the driver wants to be notified of what was published since the last call, and notifies it, now
    /// or later.
    pub(crate) fn tell_driver(&mut self) {
        if self.ends_plainly {
            self.tell_at_once();
        } else {
            self.note_batch();
        }
    }

    /// The same for a queue that [ends plainly](Self::ends_plainly).
    #[inline]
    pub(super) fn tell_at_once(&mut self) {
        if self.ring.needs_signal() {
            self.notifier.signal();
            self.stats.interrupts.add(1);
        } else {
            self.stats.interrupts_suppressed.add(1);
        }
    }

    /// Counts what happens to a batch that was just published.
    fn note_batch(&mut self) {
        let used = self.ring.used_count();
        let fresh = used.wrapping_sub(replace(&mut self.used_noted, used));
        // The ring is asked in any case: its answer covers the time since it was last asked.
        let is_wanted = self.ring.needs_signal();
        match self.coalescer.note(fresh.into(), is_wanted) {
            BatchNotice::Unwanted => self.stats.interrupts_suppressed.add(1),
            BatchNotice::Merged => self.stats.interrupts_merged.add(1),
            // It is counted when it is sent.
            BatchNotice::Pending => {}
        }
    }

    /// Sends the interrupt that is pending, if there is one and it is due. `is_busy`: the device has requests in
    /// flight.
    pub(super) fn send_due(&mut self, is_busy: bool) {
        if self.coalescer.is_pending() && self.coalescer.is_due(self.has_more(is_busy), clock::ticks) {
            self.send_pending();
        }
    }

    /// Whether more requests that an interrupt could cover are going to complete. A queue that has failed or is
    /// stopping holds nothing.
    fn has_more(&self, is_busy: bool) -> bool {
        let goes_on = self.phase == Phase::Running && !self.is_broken;
        goes_on && (is_busy || self.is_recovering || self.ring.has_available())
    }

    /// Sends the interrupt that is pending, if there is one, due or not.
    pub(super) fn send_pending(&mut self) {
        if self.coalescer.take(clock::ticks) {
            self.notifier.signal();
            self.stats.interrupts.add(1);
        }
    }

    /// The driver broke the rules: the device needs a reset, and the ring is not touched any more except for what is in
    /// flight. Returns 1, as a piece of work.
    #[cold]
    pub(crate) fn break_ring(&mut self, error: RingError) -> usize {
        if self.may_log() {
            error!("{}: the guest's driver broke its ring: {error}; the device needs a reset by the guest", self.name);
        }
        self.fail();
        1
    }

    /// The device cannot continue: nothing more is taken, and the driver is told (virtio 1.3, 2.1.2).
    #[cold]
    pub(crate) fn fail(&mut self) {
        self.is_broken = true;
        self.is_recovering = false;
        self.note_state();
        self.interrupts.fail();
    }

    /// Whether a line about something that the guest may have caused may be logged.
    pub(crate) fn may_log(&self) -> bool {
        self.interrupts.may_log(&self.name)
    }

    /// Whether pages that the device writes are noted.
    #[inline(always)]
    pub(crate) fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Notes what the device has written to guest memory, if that is logged: before the driver is told of it.
    #[cold]
    pub(crate) fn log_written(&self, segments: &[Segment]) {
        let Some(log) = &self.log else { return };
        for segment in segments {
            let host = segment.base;
            if let Some(address) = self.data.guest_address(host).or_else(|| self.retiring.guest_address(host)) {
                log.mark(address, segment.length as u64);
            }
        }
    }

    /// A request has ended that was in flight when the memory map was replaced.
    #[cold]
    pub(crate) fn old_request_done(&mut self) {
        self.retiring.request_done();
    }
}

/// What the shell does with it.
impl<R: Ring> Virtqueue<R> {
    /// The worker begins.
    pub(super) fn start(&self) {
        if self.is_resumed {
            self.notifier.signal();
        }
    }

    /// Takes up a change and leaves in its place what was there before. One of the memory map is for
    /// [`adopt_memory`](Self::adopt_memory).
    pub(super) fn change(&mut self, update: QueueUpdate) -> QueueUpdate {
        match update {
            QueueUpdate::Notifier(mut notifier) => {
                // A pending notification is sent in the new way: the old one may lead nowhere by now.
                swap(&mut self.notifier, &mut notifier);
                if self.coalescer.is_pending() {
                    self.send_pending();
                } else {
                    self.notifier.signal();
                }
                QueueUpdate::Notifier(notifier)
            }
            QueueUpdate::Kick(mut kick) => {
                self.take_kicks();
                swap(&mut self.kick, &mut kick);
                QueueUpdate::Kick(kick)
            }
            QueueUpdate::Log(mut log, used) => {
                let old = self.ring.set_log(log.clone().zip(used));
                swap(&mut self.log, &mut log);
                QueueUpdate::Log(log.or(old.map(|(log, _)| log)), None)
            }
            QueueUpdate::Position(_) => QueueUpdate::Position(Some(Position { base: self.ring.base() })),
            other @ (QueueUpdate::Memory { .. } | QueueUpdate::Empty) => other,
        }
    }

    /// Switches to another memory map. The requests in flight, whose number is given, complete in the old one, which is
    /// kept for them.
    pub(super) fn adopt_memory(
        &mut self,
        config: &QueueConfig,
        [mut tables, mut data]: [Translator; 2],
        done: SyncSender<Retired>,
        in_flight: u32,
    ) {
        // A broken ring stays where it was, for the requests in flight, and then has no use for the new map. Either
        // way, the old one is in use until those requests have completed.
        if !self.is_broken {
            match self.ring.adopt(config, &mut tables) {
                Ok(()) => swap(&mut self.data, &mut data),
                Err(error) => _ = self.break_ring(error),
            }
        }
        self.retiring.keep([tables, data], done, in_flight);
    }

    /// What changes when the driver has something for an idle device. `None`: that is not all there is to wait for.
    pub(super) fn watch(&self) -> Option<Watch> {
        let waits = self.is_recovering || self.is_broken || self.coalescer.is_pending();
        if waits || self.phase != Phase::Running { None } else { self.ring.watch() }
    }

    /// What the driver kicks.
    pub(super) fn kick_fd(&self) -> Option<RawFd> {
        self.kick.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether the worker must not sleep, whatever the device does: a driver that does not kick must be polled.
    pub(super) fn must_be_polled(&self) -> bool {
        self.kick.is_none() || self.is_recovering
    }

    /// Whether there are chains that an earlier process had in flight and that were not taken yet.
    pub(super) fn is_recovering(&self) -> bool {
        self.is_recovering
    }

    /// Asks for a kick, unless the device has no room for what it would bring. Returns `true` if there is work already.
    pub(super) fn arm(&mut self, has_room: bool) -> bool {
        // Chains for which there is no room wait until a request ends, which wakes us.
        let is_busy = !self.is_broken && has_room && self.ring.enable_kicks();
        if !is_busy {
            // Nothing would send it while the worker sleeps.
            self.send_pending();
        }
        is_busy
    }

    /// The worker polls again.
    pub(super) fn disarm(&mut self) {
        self.take_kicks();
        if !self.is_broken {
            self.ring.disable_kicks();
        }
    }

    /// Its task has panicked: the guest is told, and nothing counts as in flight any more.
    pub(super) fn abandon(&mut self) {
        self.interrupts.fail();
        self.send_pending();
        self.stats.in_flight.set(0);
    }

    /// Takes the kicks that have arrived, for the statistics and so that the descriptor is not readable any more.
    pub(super) fn take_kicks(&mut self) {
        let Some(kick) = &self.kick else { return };
        // SAFETY: the descriptor is open as long as `kick` is borrowed.
        let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
        let mut count = [0; 8];
        // The descriptor may come from a front end, which can make it block at any time: hence RWF_NOWAIT, which an
        // eventfd supports (Linux 5.8). EAGAIN: there were none.
        let read = preadv2(kick, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT);
        if read == Ok(8) {
            self.stats.kicks.add(u64::from_ne_bytes(count));
        }
    }

    /// Whether an interrupt is held.
    pub(super) fn has_pending_interrupt(&self) -> bool {
        self.coalescer.is_pending()
    }
}
