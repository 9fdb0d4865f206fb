//! Whether a device may access memory, apart from what its driver asks of it: the Bus Master Enable bit of a PCI
//! function (PCI 3.0, 6.2.2). A kernel that hands the machine over to another one clears it, so that nothing of the old
//! one's reaches the new one's memory.
use super::VirtioDevice;
use crate::{queue::Position, ring::RingStart};
use tracing::error;

/// Where a queue goes on that was not started, or was stopped, because the device may not access memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    /// It was never started.
    AtBeginning,
    /// It was stopped, its requests completed.
    At(Position),
}

impl Held {
    fn start(self) -> RingStart {
        match self {
            Held::AtBeginning => RingStart::default(),
            Held::At(position) => RingStart { base: Some(position.base), resumed: true, ..RingStart::default() },
        }
    }
}

impl VirtioDevice {
    /// Says whether the device may access memory. Cleared, this returns when its rings are stopped and the requests in
    /// flight have completed, however long the backend takes, as a reset does. Set again, the rings go on where they
    /// stopped, unless they were abandoned.
    pub fn set_bus_master(&mut self, enabled: bool) {
        if std::mem::replace(&mut self.is_bus_master, enabled) == enabled || !self.active {
            return;
        }
        if enabled {
            self.start_held();
        } else {
            (0..self.queues.len()).for_each(|index| self.hold(index));
        }
    }

    /// Forgets the rings that were stopped because the device may not access memory: they do not go on before a reset.
    /// For when another driver than theirs has come, to which the memory belongs that they are in. It sets the bit
    /// before it resets the device (Linux: `virtio_pci_probe`), and what the one before had left in a ring would be
    /// done then, in memory of the other's.
    pub fn abandon_rings(&mut self) {
        if !self.is_bus_master {
            self.held.fill(None);
        }
    }

    fn hold(&mut self, index: usize) {
        if self.queues[index].ready() && self.held[index].is_none() {
            // A queue that was lost is not started again: its device waits for a reset.
            self.held[index] = self.model.stop_queue(index).map(Held::At);
        }
    }

    fn start_held(&mut self) {
        for index in 0..self.queues.len() {
            let Some(held) = self.held[index].take() else { continue };
            // A broken ring is not touched any more before the reset.
            if self.interrupts.has_failed() {
                return;
            }
            let queue = self.active_queue(index, held.start());
            let started = queue.and_then(|queue| self.model.start_queue(queue).map_err(|error| error.reason));
            if let Err(reason) = started {
                if self.may_log() {
                    error!("{}: cannot go on: {reason}; the device needs a reset by the guest", self.name());
                }
                self.interrupts.fail();
            }
        }
    }
}
