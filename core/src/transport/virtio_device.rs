//! A virtio device as PCI and MMIO drive it: the device status machine (virtio 1.3, 2.1 and 3.1), feature negotiation
//! and the set-up of its queues, around one device model.
use super::{
    QueueSetup, STATUS_DRIVER_OK, STATUS_FAILED, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
    features::{REGISTER_FEATURES, check_features},
    served::{Hold, Served},
};
use crate::{
    device::{ActiveQueue, DeviceModel},
    event::{InterruptState, Notifier},
    memory::GuestMemory,
    ring::{RingKind, RingStart},
};
use std::{fmt, io, os::fd::RawFd, sync::Arc};
use tracing::{error, info, warn};
use virtio_bindings::virtio_config::VIRTIO_F_RING_RESET;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A virtio device as a transport drives it: status machine, features and queues around one device model.
pub struct VirtioDevice {
    served: Served,
    memory: GuestMemory,
    offered: u64,
    accepted: u64,
    status: u8,
    queues: Vec<QueueSetup>,
    kicks: Vec<Arc<EventFd>>,
    notifiers: Vec<Notifier>,
}

impl fmt::Debug for VirtioDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VirtioDevice({}, status {:#x})", self.name(), self.status())
    }
}

impl VirtioDevice {
    /// Wraps `model`, whose queues will lie in `memory`.
    ///
    /// # Errors
    /// No more file descriptors, or a model with an impossible queue size.
    pub fn new(model: Box<dyn DeviceModel>, memory: GuestMemory) -> io::Result<Self> {
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for &size in model.queue_sizes() {
            let name = model.name();
            let queue = QueueSetup::new(size)
                .ok_or_else(|| io::Error::other(format!("{name}: a queue cannot have {size} entries")))?;
            queues.push(queue);
            kicks.push(Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?));
        }
        let notifiers = vec![Notifier::silent(); queues.len()];
        let offered = model.features() | REGISTER_FEATURES;
        Ok(VirtioDevice {
            served: Served::new(model),
            memory,
            offered,
            accepted: 0,
            status: 0,
            queues,
            kicks,
            notifiers,
        })
    }

    /// The device's name in the configuration.
    pub fn name(&self) -> &str {
        self.served.model().name()
    }

    /// Virtio device ID.
    pub fn device_id(&self) -> u32 {
        self.served.model().device_id()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// 32 bits of the features offered; `page` 0 holds bits 0 to 31.
    pub fn device_features(&self, page: u32) -> u32 {
        if page < 2 { (self.offered >> (32 * page)) as u32 } else { 0 }
    }

    /// 32 bits of the features that the driver accepted.
    pub fn driver_features(&self, page: u32) -> u32 {
        if page < 2 { (self.accepted >> (32 * page)) as u32 } else { 0 }
    }

    /// The driver accepts features. Ignored once FEATURES_OK is set: it must not do so then (virtio 1.3, 3.1.1).
    pub fn set_driver_features(&mut self, page: u32, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 || page >= 2 {
            return;
        }
        let shift = 32 * page;
        self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    /// The device status register (virtio 1.3, 2.1).
    pub fn status(&self) -> u8 {
        self.status | if self.interrupts().has_failed() { STATUS_NEEDS_RESET } else { 0 }
    }

    /// The driver writes the device status register. Writing 0 resets the device and returns when that is done: every
    /// request in flight has completed.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        // The driver must not clear a bit except by a reset (virtio 1.3, 2.1.1), and only the device sets NEEDS_RESET.
        let mut new = self.status | value & !STATUS_NEEDS_RESET;
        let set = new & !self.status;
        if set & STATUS_FEATURES_OK != 0 && !self.features_are_acceptable() {
            // The driver reads the bit back and finds it clear (virtio 1.3, 3.1.1 step 6).
            new &= !STATUS_FEATURES_OK;
        } else if set & STATUS_FEATURES_OK != 0 {
            self.served.model_mut().features_accepted(self.accepted);
        }
        self.status = new;
        if set & STATUS_FAILED != 0 && self.may_log() {
            warn!("{}: the guest's driver has given up on the device", self.name());
        }
        if set & STATUS_DRIVER_OK != 0 {
            self.start();
        }
    }

    pub(super) fn may_log(&self) -> bool {
        self.interrupts().may_log(self.name())
    }

    fn features_are_acceptable(&self) -> bool {
        let checked = check_features(self.accepted, self.offered);
        if let Err(error) = checked
            && self.may_log()
        {
            warn!("{}: the guest's driver {error}", self.name());
        }
        checked.is_ok()
    }

    fn start(&mut self) {
        if self.served.is_active() || self.status & STATUS_FAILED != 0 {
            return;
        }
        if self.status & STATUS_FEATURES_OK == 0 {
            if self.may_log() {
                error!("{}: the guest's driver set DRIVER_OK before its features were agreed upon", self.name());
            }
            self.interrupts().fail();
            return;
        }
        match self.activate() {
            Ok(()) => {
                if tracing::enabled!(tracing::Level::INFO) && self.may_log() {
                    info!("{}: started by the guest's driver, features {:#x}", self.name(), self.accepted);
                }
            }
            Err(reason) => {
                if self.may_log() {
                    error!("{}: cannot start: {reason}; the device needs a reset by the guest", self.name());
                }
                self.interrupts().fail();
            }
        }
    }

    /// Starts the device and the queues that the driver has enabled; none of them if one is not usable.
    fn activate(&mut self) -> Result<(), String> {
        let queues = self.enabled_queues()?;
        let started = self.served.activate(self.memory.clone(), self.accepted);
        started
            .and_then(|()| queues.into_iter().try_for_each(|queue| self.served.start_queue(queue)))
            .inspect_err(|_| self.served.deactivate())
    }

    fn enabled_queues(&self) -> Result<Vec<ActiveQueue>, String> {
        (0..self.queues.len()).filter(|&index| self.queues[index].ready()).map(|index| self.checked(index)).collect()
    }

    /// A queue as its driver has set it up, if that makes a valid ring.
    fn checked(&self, index: usize) -> Result<ActiveQueue, String> {
        let (kind, mut tables) = (RingKind::of_features(self.accepted), self.memory.translator());
        let (config, notifier) = (self.queues[index].config(), self.notifiers[index].clone());
        kind.check(&config, &mut tables).map_err(|error| format!("queue {index}: {error}"))?;
        let kick = Some(self.kicks[index].clone());
        Ok(ActiveQueue { index, config, start: RingStart::default(), kick, notifier })
    }

    /// Resets the device (virtio 1.3, 2.4): drains the data path, then forgets what the driver set.
    pub fn reset(&mut self) {
        if self.served.is_active() && tracing::enabled!(tracing::Level::INFO) && self.may_log() {
            info!("{}: reset", self.name());
        }
        self.served.deactivate();
        self.served.model_mut().reset();
        self.status = 0;
        self.accepted = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.notifiers.fill(Notifier::silent());
        for kick in &self.kicks {
            // Kicks of the old driver do not concern the next one; an empty counter answers EAGAIN.
            let _ = kick.read();
        }
        self.interrupts().reset();
        self.interrupts().set_config_event(None);
    }

    /// Sets whether the device may access memory, independently of what its driver asks for: the Bus Master Enable bit
    /// of a PCI function (PCI 3.0, 6.2.2). A kernel that hands the machine over to another kernel clears it, so that no
    /// access meant for the old one reaches the memory of the new one.
    ///
    /// When the bit is cleared, this returns once the rings are stopped and the requests in flight have completed,
    /// however long the backend takes, as a reset does. When it is set again, the rings continue where they stopped,
    /// unless they were abandoned.
    pub fn set_bus_master(&mut self, enabled: bool) {
        if !enabled {
            self.served.hold(Hold::NoBusMaster);
            self.served.wait_settled();
        } else if self.served.is_held_by(Hold::NoBusMaster) {
            self.served.release(Hold::NoBusMaster);
            self.go_on();
        }
    }

    /// Forgets the rings that were stopped because the device may not access memory: they do not continue before a
    /// reset. This is for when another driver has taken over, which now owns the memory that they are in. It sets the
    /// bit before it resets the device (Linux: `virtio_pci_probe`); requests that the previous driver had left in a
    /// ring would then be carried out in the new driver's memory.
    pub fn abandon_rings(&mut self) {
        if self.served.is_held_by(Hold::NoBusMaster) {
            self.served.abandon_held();
        }
    }

    /// Lets the queues that were held continue, if nothing holds the device any more.
    fn go_on(&mut self) {
        if let Err(reason) = self.served.go_on()
            && self.may_log()
        {
            error!("{}: cannot go on: {reason}; the device needs a reset by the guest", self.name());
        }
    }

    /// Whether the driver has started the device.
    pub(super) fn is_active(&self) -> bool {
        self.served.is_active()
    }

    /// Number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// One queue's state, if there is such a queue.
    pub fn queue(&self, index: usize) -> Option<&QueueSetup> {
        self.queues.get(index)
    }

    /// One queue's state for the driver to set up: `None` if there is no such queue, or once it is enabled (virtio 1.3,
    /// 4.1.4.3.2: the driver configures the other fields before enabling the queue).
    pub fn queue_mut(&mut self, index: usize) -> Option<&mut QueueSetup> {
        self.queues.get_mut(index).filter(|queue| !queue.ready())
    }

    /// The driver enables a queue, or on MMIO disables it: a queue that runs is stopped, its requests completed, before
    /// this returns (virtio 1.3, 4.2.2.2: the driver reads the register back and has its memory again). Once the device
    /// runs, only a queue that was [reset](Self::reset_queue) is enabled (virtio 1.3, 2.6.1.2).
    pub fn set_queue_ready(&mut self, index: usize, ready: bool) {
        match (self.served.is_active(), ready) {
            (true, true) => self.enable_queue(index),
            (true, false) => self.disable_queue(index),
            (false, _) => {
                if let Some(queue) = self.queues.get_mut(index) {
                    queue.set_ready(ready);
                }
            }
        }
    }

    fn enable_queue(&mut self, index: usize) {
        self.settle();
        let Some(queue) = self.queues.get_mut(index) else { return };
        // A broken ring takes the whole device with it until a reset.
        if !queue.was_reset() || self.served.is_draining(index) || self.served.interrupts().has_failed() {
            if self.may_log() {
                warn!("{}: the guest's driver changes queue {index} of a running device; ignored", self.name());
            }
            return;
        }
        queue.set_ready(true);
        if let Err(reason) = self.checked(index).and_then(|queue| self.served.start_queue(queue)) {
            if self.may_log() {
                error!("{}: cannot go on: {reason}; the device needs a reset by the guest", self.name());
            }
            self.interrupts().fail();
        }
    }

    /// The driver resets a queue (virtio 1.3, 2.6.1), whether it runs or not: requests in flight complete, nothing new
    /// is taken, and all of its registers are as after a reset of the device. This does not wait for the requests:
    /// [`is_queue_resetting`](Self::is_queue_resetting) says when they are done. Returns whether the driver may, which
    /// takes the feature RING_RESET and a queue of that index.
    pub fn reset_queue(&mut self, index: usize) -> bool {
        let may = self.status & STATUS_FEATURES_OK != 0 && self.accepted & 1 << VIRTIO_F_RING_RESET != 0;
        let Some(queue) = self.queues.get_mut(index).filter(|_| may) else { return false };
        queue.reset_alone();
        self.served.begin_stop_queue(index);
        self.notifiers[index] = Notifier::silent();
        // Earlier kicks do not concern the next ring; an empty counter answers EAGAIN.
        let _ = self.kicks[index].read();
        true
    }

    /// Whether a reset of that queue still waits for requests in flight, when last [settled](Self::settle).
    pub fn is_queue_resetting(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(QueueSetup::was_reset) && self.served.is_draining(index)
    }

    /// Checks which of the requests that queues wait for have ended. Must be called before registers are read.
    pub fn settle(&mut self) {
        self.served.settle();
    }

    /// Gives the device another map of the guest's memory, in which all that the old one has is at the same addresses.
    /// Requests in flight complete in the old one, which is kept until [`release_memory`](DeviceModel::release_memory)
    /// reports that it is not used any more.
    ///
    /// # Errors
    /// The backend cannot use the memory: why. The device keeps the old one.
    pub(super) fn set_memory(&mut self, memory: &GuestMemory) -> Result<(), String> {
        let configs: Vec<_> = (0..self.queues.len())
            .map(|index| self.served.queue_config(index).unwrap_or_else(|| self.queues[index].config()))
            .collect();
        self.served.set_memory(memory, &|index| configs[index])?;
        self.memory = memory.clone();
        Ok(())
    }

    /// Becomes readable when the backend has changed by itself: the medium should then be
    /// [measured](super::DeviceHandle::refresh).
    pub fn change_event(&self) -> Option<RawFd> {
        self.served.model().change_event()
    }

    /// The device and its queues.
    pub(super) fn served_mut(&mut self) -> &mut Served {
        &mut self.served
    }

    fn disable_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return };
        queue.set_ready(false);
        self.served.stop_queue(index);
    }

    /// Sets how a queue's driver is notified. Takes effect when the device starts.
    pub fn set_notifier(&mut self, index: usize, notifier: Notifier) {
        if let Some(slot) = self.notifiers.get_mut(index) {
            *slot = notifier;
        }
    }

    /// The event behind a queue's available buffer notification: the transport registers it as an ioeventfd, or
    /// writes it.
    pub fn kick(&self, index: usize) -> Option<&EventFd> {
        self.kicks.get(index).map(|kick| &**kick)
    }

    /// What the workers report.
    pub fn interrupts(&self) -> &Arc<InterruptState> {
        self.served.interrupts()
    }

    /// Changes whenever the configuration space does (virtio 1.3, 2.5.1).
    pub fn config_generation(&self) -> u32 {
        self.interrupts().config_generation()
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.served.model().read_config(offset, data);
    }

    /// Writes the device's configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.served.model_mut().write_config(offset, data, self.accepted);
    }

    /// Gives the model back, stopped.
    pub fn into_model(mut self) -> Box<dyn DeviceModel> {
        self.reset();
        self.served.into_model()
    }
}
