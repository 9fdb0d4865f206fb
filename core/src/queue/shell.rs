//! What every device's queue does on a worker: its life, its changes, its sleep. What differs is a [`QueueModel`].
//!
//! Here a queue has one ring. What belongs to a ring is in [`Virtqueue`], its stop included, and what belongs to the
//! task that serves it is here. So a queue of two rings, such as the pair of a network device, is a shell with two
//! virtqueues: its model's turn is given both, `begin_stop` and `arm` go to each, the last end of a phase counts, and a
//! change names the ring that it is for.
use super::{
    update::QueueUpdate,
    virtqueue::{Phase, Virtqueue, VirtqueueSetup},
};
use crate::{
    event::Watch,
    ring::Ring,
    worker::{Deadline, SleepFds, Task},
};
use std::{any::Any, mem::replace, os::fd::RawFd};

/// What is particular to the queues of one kind of device. `[worker]` throughout, but for `drop`.
///
/// All methods are called through a type parameter: a queue is compiled for its ring and its device, and the shell
/// costs its data path nothing.
pub(crate) trait QueueModel<R: Ring>: Send {
    /// The calling thread owns the queue from now on.
    ///
    /// # Errors
    /// The reason why it cannot run.
    fn start(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// One turn: takes chains, carries out or begins what they ask for, and gives completed chains back to the ring.
    /// Returns how much there was to do. Never blocks. The shell publishes what was given back.
    fn turn(&mut self, queue: &mut Virtqueue<R>) -> usize;
    /// Whether chains were taken that have not been given back, and will be.
    fn is_busy(&self) -> bool {
        false
    }
    /// The queue is stopping, and is not busy any more: begins what must be done at the very end, such as a flush.
    /// Returns whether there is such a thing; if so, the queue has stopped when it is not busy again.
    fn begin_flush(&mut self) -> bool {
        false
    }
    /// The memory map is being replaced: notes which requests were taken under the old one, and tells
    /// [`Virtqueue::old_request_done`] when one of them has ended. Returns how many there are.
    fn memory_replaced(&mut self) -> u32 {
        0
    }
    /// Becomes readable when a request ends while the model is armed.
    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
    /// As [`Task::deadline`].
    #[inline(always)]
    fn deadline(&self) -> Option<Deadline> {
        None
    }
    /// Before (`true`) and after a sleep on [`wake_fd`](Self::wake_fd). Returns whether the worker must not sleep.
    fn arm(&mut self, _queue: &mut Virtqueue<R>, _armed: bool) -> bool {
        self.is_busy()
    }
    /// Whether a chain could be taken now.
    fn has_room(&self) -> bool {
        true
    }
    /// There is nothing to do: an opportunity for work that is not urgent, such as log lines.
    fn idle(&self) {}
    /// The last call. Returns whether nothing touches what the queue or its requests own any more: otherwise, all of it
    /// is kept for ever. Requests that are in flight, if the queue has failed, do not end.
    fn stop(&mut self) -> bool {
        true
    }
}

impl VirtqueueSetup {
    /// The task that serves the queue by `model`, on a ring of this kind.
    ///
    /// # Errors
    /// The ring is not usable.
    pub(crate) fn serve<R: Ring>(self, model: impl QueueModel<R> + 'static) -> Result<Box<dyn Task>, String> {
        let queue = Virtqueue::<R>::new(self).map_err(|error| error.to_string())?;
        Ok(Box::new(QueueShell { queue, model }))
    }
}

/// One queue of a device. Owned by one worker.
#[derive(Debug)]
struct QueueShell<R, M> {
    queue: Virtqueue<R>,
    model: M,
}

impl<R: Ring, M: QueueModel<R>> QueueShell<R, M> {
    /// What a turn does at its end if there is more to do than to signal: it advances a stop, and sends the pending
    /// interrupt if that is due.
    #[inline(never)]
    fn end_turn(&mut self) {
        if self.queue.phase() != Phase::Running {
            self.advance_stop();
        }
        if self.queue.ring.publish() {
            self.queue.tell_driver();
        }
        self.queue.send_due(self.model.is_busy());
    }

    /// Advances a stop: once nothing is in flight, it begins what the device does at the very end.
    #[cold]
    fn advance_stop(&mut self) {
        if self.model.is_busy() || self.queue.is_recovering() {
            return;
        }
        match self.queue.phase() {
            Phase::Draining if self.model.begin_flush() => self.queue.set_phase(Phase::Flushing),
            Phase::Draining | Phase::Flushing => self.queue.set_phase(Phase::Stopped),
            Phase::Running | Phase::Stopped => {}
        }
    }
}

impl<R: Ring, M: QueueModel<R>> Task for QueueShell<R, M> {
    fn name(&self) -> &str {
        &self.queue.name
    }

    fn start(&mut self) -> Result<(), String> {
        self.model.start()?;
        self.queue.start();
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> usize {
        let work = self.model.turn(&mut self.queue);
        if !self.queue.ends_plainly {
            self.end_turn();
        } else if self.queue.ring.publish() {
            self.queue.tell_at_once();
        }
        work
    }

    fn watch(&self) -> Option<Watch> {
        self.model.idle();
        // Only the driver can bring work.
        if self.model.is_busy() { None } else { self.queue.watch() }
    }

    fn deadline(&self) -> Option<Deadline> {
        self.model.deadline()
    }

    fn begin_stop(&mut self) {
        self.queue.set_phase(Phase::Draining);
    }

    fn is_stopped(&self) -> bool {
        self.queue.phase() == Phase::Stopped
    }

    fn finish(&mut self) -> bool {
        debug_assert!(!self.queue.has_pending_interrupt(), "the turn that ended the stop has sent it");
        self.queue.take_kicks();
        self.model.stop()
    }

    fn abandon(&mut self) -> bool {
        self.queue.abandon();
        // The driver must not have its buffers back before the device has let go of them. Once it has, the requests in
        // flight have ended, although their results are not reported, and a reset makes a new queue.
        self.model.stop()
    }

    fn update(&mut self, change: &mut dyn Any) {
        let Some(update) = change.downcast_mut() else { return };
        *update = match replace(update, QueueUpdate::Empty) {
            QueueUpdate::Memory { config, tables, data, retired } => {
                self.queue.adopt_memory(&config, [tables, data], retired, self.model.memory_replaced());
                QueueUpdate::Empty
            }
            other => self.queue.change(other),
        };
    }

    fn sleep_fds(&self) -> SleepFds {
        SleepFds { kick: self.queue.kick_fd(), wake: self.model.wake_fd() }
    }

    fn arm(&mut self) -> bool {
        self.model.idle();
        self.queue.must_be_polled() || self.model.arm(&mut self.queue, true) || self.queue.arm(self.model.has_room())
    }

    fn disarm(&mut self) {
        self.model.arm(&mut self.queue, false);
        self.queue.disarm();
    }
}
