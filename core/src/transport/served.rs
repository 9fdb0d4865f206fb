//! A device as every transport serves it: one life cycle around one device model, queue by queue.
//!
//! A queue is started and stopped as its driver wishes. Apart from that, the device as a whole can be held, by the
//! guest's bus or by the program that runs the device: then its queues are drained, nothing touches the guest's memory,
//! and each queue continues where it was once nothing holds the device any more. What its driver changes meanwhile
//! takes effect then.
//!
//! All calls come from one thread at a time: the one that holds the transport's lock. Methods documented to wait for
//! requests in flight do so for as long as the medium takes; the others do not wait.
use crate::{
    device::{Activation, ActiveQueue, DeviceModel, Measure},
    event::InterruptState,
    memory::GuestMemory,
    queue::{Position, QueueUpdate},
    ring::QueueConfig,
};
use std::{mem::replace, sync::Arc, task::Poll};

/// Why no queue of a device runs, whatever its driver has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The device may not access memory: the Bus Master Enable bit of its PCI function is clear (PCI 3.0, 6.2.2).
    NoBusMaster,
    /// The program that runs the device has paused it.
    Paused,
}

/// Where a queue is in its life.
#[derive(Debug)]
enum Life {
    /// It was not started, or was stopped.
    Stopped,
    /// A worker serves it, as it was started and changed since.
    Running(ActiveQueue),
    /// A worker completes what is in flight, and takes nothing new. Then the queue is held as described here if it
    /// `goes_on`; otherwise, it is stopped.
    Draining { queue: ActiveQueue, goes_on: bool },
    /// It starts as described here once nothing holds the device.
    Held(ActiveQueue),
}

/// A device model with its queues.
pub(crate) struct Served {
    model: Box<dyn DeviceModel>,
    interrupts: Arc<InterruptState>,
    is_active: bool,
    holds: Vec<Hold>,
    queues: Vec<Life>,
}

impl Served {
    /// A device that no driver has started.
    pub(crate) fn new(model: Box<dyn DeviceModel>) -> Self {
        let queues = model.queue_sizes().iter().map(|_| Life::Stopped).collect();
        Served { model, interrupts: Arc::default(), is_active: false, holds: Vec::new(), queues }
    }

    /// The model: its identity, features and configuration space.
    pub(crate) fn model(&self) -> &dyn DeviceModel {
        &*self.model
    }

    /// As [`model`](Self::model), for what the driver sets there. Its life cycle is driven by the methods here.
    pub(crate) fn model_mut(&mut self) -> &mut dyn DeviceModel {
        &mut *self.model
    }

    /// What the workers report.
    pub(crate) fn interrupts(&self) -> &Arc<InterruptState> {
        &self.interrupts
    }

    /// Whether the driver has started the device.
    pub(crate) fn is_active(&self) -> bool {
        self.is_active
    }

    /// The driver is ready: starts the device, without any queue.
    ///
    /// # Errors
    /// The device needs a reset: why.
    pub(crate) fn activate(&mut self, memory: GuestMemory, features: u64) -> Result<(), String> {
        let activation = Activation { memory, features, interrupts: self.interrupts.clone() };
        self.model.activate(activation).map_err(|error| error.reason)?;
        self.is_active = true;
        Ok(())
    }

    /// Stops the device with all of its queues. Waits for requests in flight. Idempotent.
    pub(crate) fn deactivate(&mut self) {
        self.model.deactivate();
        self.queues.fill_with(|| Life::Stopped);
        self.is_active = false;
    }

    /// Serves a queue that is stopped, from now on or, while something holds the device, from its release on.
    ///
    /// # Errors
    /// The queue is not usable, or its backend cannot start: why. The queue stays stopped.
    pub(crate) fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), String> {
        let index = queue.index;
        debug_assert!(matches!(self.queues[index], Life::Stopped), "queue {index} is started once");
        self.queues[index] = if self.holds.is_empty() {
            self.model.start_queue(queue.clone()).map_err(|error| error.reason)?;
            Life::Running(queue)
        } else {
            Life::Held(queue)
        };
        Ok(())
    }

    /// Stops a queue and returns its position, if it was started and was not lost. Waits for its requests in flight.
    pub(crate) fn stop_queue(&mut self, index: usize) -> Option<Position> {
        match replace(&mut self.queues[index], Life::Stopped) {
            Life::Stopped => None,
            Life::Held(queue) => queue.start.base.map(|base| Position { base }),
            Life::Running(_) | Life::Draining { .. } => self.model.stop_queue(index),
        }
    }

    /// Begins to stop a queue that is not to continue where it was. It is stopped once
    /// [`is_draining`](Self::is_draining) returns `false`.
    pub(crate) fn begin_stop_queue(&mut self, index: usize) {
        self.queues[index] = match replace(&mut self.queues[index], Life::Stopped) {
            Life::Stopped | Life::Held(_) => Life::Stopped,
            Life::Draining { queue, .. } => Life::Draining { queue, goes_on: false },
            Life::Running(queue) => {
                self.model.begin_stop_queue(index);
                Life::Draining { queue, goes_on: false }
            }
        };
    }

    /// Whether a queue has requests in flight that its stop waits for, when last [settled](Self::settle).
    pub(crate) fn is_draining(&self, index: usize) -> bool {
        matches!(self.queues[index], Life::Draining { .. })
    }

    /// Changes a setting of a queue that was started.
    pub(crate) fn update_queue(&mut self, index: usize, update: QueueUpdate) {
        let runs = matches!(self.queues[index], Life::Running(_) | Life::Draining { .. });
        if let Some(queue) = self.queues[index].queue_mut() {
            match &update {
                QueueUpdate::Notifier(notifier) => queue.notifier = notifier.clone(),
                QueueUpdate::Kick(kick) => queue.kick = kick.clone(),
                QueueUpdate::Log(log, used) => (queue.start.log, queue.start.log_used) = (log.clone(), *used),
                QueueUpdate::Memory { .. } | QueueUpdate::Position(_) | QueueUpdate::Empty => {}
            }
        }
        if runs {
            self.model.update_queue(index, update);
        }
    }

    /// Where the rings of a queue that was started are.
    pub(crate) fn queue_config(&self, index: usize) -> Option<QueueConfig> {
        match &self.queues[index] {
            Life::Running(queue) | Life::Draining { queue, .. } | Life::Held(queue) => Some(queue.config),
            Life::Stopped => None,
        }
    }

    /// Gives the device and its queues a new memory map in place of the old, while requests are in flight. `config`
    /// says where the rings of a queue are in it.
    ///
    /// # Errors
    /// The backend cannot use the memory: why. The device stays with the old.
    pub(crate) fn set_memory(
        &mut self,
        memory: &GuestMemory,
        config: &dyn Fn(usize) -> QueueConfig,
    ) -> Result<(), String> {
        self.model.set_memory(memory, config).map_err(|error| error.reason)?;
        for (index, life) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = life.queue_mut() {
                queue.config = config(index);
            }
        }
        Ok(())
    }

    /// Keeps all queues from running, for this reason, until it is [released](Self::release). Once
    /// [`settle`](Self::settle) returns `true`, nothing touches the guest's memory.
    pub(crate) fn hold(&mut self, hold: Hold) {
        if !self.is_held_by(hold) {
            self.holds.push(hold);
        }
        for index in 0..self.queues.len() {
            self.queues[index] = match replace(&mut self.queues[index], Life::Stopped) {
                Life::Running(queue) => {
                    self.model.begin_stop_queue(index);
                    Life::Draining { queue, goes_on: true }
                }
                other => other,
            };
        }
    }

    /// Removes a reason. [`go_on`](Self::go_on) does the rest.
    pub(crate) fn release(&mut self, hold: Hold) {
        self.holds.retain(|other| *other != hold);
    }

    /// Whether the device is held for that reason.
    pub(crate) fn is_held_by(&self, hold: Hold) -> bool {
        self.holds.contains(&hold)
    }

    /// Forgets the queues that are held: they do not continue.
    pub(crate) fn abandon_held(&mut self) {
        for life in &mut self.queues {
            *life = match replace(life, Life::Stopped) {
                Life::Held(_) => Life::Stopped,
                Life::Draining { queue, .. } => Life::Draining { queue, goes_on: false },
                other => other,
            };
        }
    }

    /// Checks which queues have completed what was in flight. Returns whether all that were to stop have.
    pub(crate) fn settle(&mut self) -> bool {
        let mut is_settled = true;
        for index in 0..self.queues.len() {
            if self.is_draining(index) {
                match self.model.poll_stop_queue(index) {
                    Poll::Ready(position) => self.drained(index, position),
                    Poll::Pending => is_settled = false,
                }
            }
        }
        is_settled
    }

    /// As [`settle`](Self::settle), but waits until all requests in flight have completed.
    pub(crate) fn wait_settled(&mut self) {
        for index in 0..self.queues.len() {
            if self.is_draining(index) {
                let position = self.model.stop_queue(index);
                self.drained(index, position);
            }
        }
    }

    /// A queue has ended at `position`, or was lost: then it is not started again, and its device waits for a reset.
    fn drained(&mut self, index: usize, position: Option<Position>) {
        self.queues[index] = match (replace(&mut self.queues[index], Life::Stopped), position) {
            (Life::Draining { mut queue, goes_on: true }, Some(position)) => {
                (queue.start.base, queue.start.resumed) = (Some(position.base), true);
                Life::Held(queue)
            }
            (Life::Draining { goes_on: true, .. }, None) => {
                self.interrupts.fail();
                Life::Stopped
            }
            _ => Life::Stopped,
        };
    }

    /// Starts the queues that were held, if nothing holds the device any more. All must be settled before.
    ///
    /// # Errors
    /// One cannot start: which, and why. The device then needs a reset, and tells its driver so.
    pub(crate) fn go_on(&mut self) -> Result<(), String> {
        for index in 0..self.queues.len() {
            // A broken ring is not touched any more before the reset.
            if !self.holds.is_empty() || self.interrupts.has_failed() {
                return Ok(());
            }
            if !matches!(self.queues[index], Life::Held(_)) {
                continue;
            }
            let Life::Held(queue) = replace(&mut self.queues[index], Life::Stopped) else { continue };
            self.start_queue(queue).inspect_err(|_| self.interrupts.fail())?;
        }
        Ok(())
    }

    /// Asks the backend what its medium is like, without the device being locked.
    pub(crate) fn measure(&self) -> Option<Arc<dyn Measure>> {
        self.model.measure()
    }

    /// Applies what was [measured](Self::measure), and tells the driver if that changes the configuration space.
    /// Returns whether it does.
    pub(crate) fn refresh(&mut self) -> bool {
        let has_changed = self.model.refresh();
        if has_changed {
            self.interrupts.config_changed();
        }
        has_changed
    }

    /// Gives the model back, stopped.
    pub(crate) fn into_model(mut self) -> Box<dyn DeviceModel> {
        self.deactivate();
        self.model
    }
}

impl Life {
    /// The queue as it was started and changed since.
    fn queue_mut(&mut self) -> Option<&mut ActiveQueue> {
        match self {
            Life::Running(queue) | Life::Draining { queue, .. } | Life::Held(queue) => Some(queue),
            Life::Stopped => None,
        }
    }
}
