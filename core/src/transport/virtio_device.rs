//! A virtio device as PCI and MMIO drive it: the device status machine (virtio 1.3, 2.1 and 3.1), feature negotiation
//! and the set-up of its queues, around one device model.
use super::{
    QueueSetup, STATUS_DRIVER_OK, STATUS_FAILED, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
    bus_master::Held,
    features::{TRANSPORT_FEATURES, check_features},
};
use crate::{
    device::{Activation, ActiveQueue, DeviceModel},
    event::{InterruptState, Notifier},
    memory::GuestMemory,
    ring::{RingKind, RingStart},
};
use std::{fmt, io, sync::Arc};
use tracing::{error, info, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A virtio device as a transport drives it: status machine, features and queues around one device model.
pub struct VirtioDevice {
    pub(super) model: Box<dyn DeviceModel>,
    memory: GuestMemory,
    offered: u64,
    accepted: u64,
    status: u8,
    pub(super) active: bool,
    /// Whether the device may access memory.
    pub(super) is_bus_master: bool,
    /// The queues that would run if it might.
    pub(super) held: Vec<Option<Held>>,
    pub(super) queues: Vec<QueueSetup>,
    kicks: Vec<EventFd>,
    notifiers: Vec<Notifier>,
    pub(super) interrupts: Arc<InterruptState>,
}

impl fmt::Debug for VirtioDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VirtioDevice({}, status {:#x})", self.model.name(), self.status())
    }
}

impl VirtioDevice {
    /// Wraps `model`, whose queues will lie in `memory`.
    ///
    /// # Errors
    /// No more file descriptors, or a model with a queue size that cannot be.
    pub fn new(model: Box<dyn DeviceModel>, memory: GuestMemory) -> io::Result<Self> {
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for &size in model.queue_sizes() {
            let name = model.name();
            let queue = QueueSetup::new(size)
                .ok_or_else(|| io::Error::other(format!("{name}: a queue of {size} entries cannot be")))?;
            queues.push(queue);
            kicks.push(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        }
        let notifiers = vec![Notifier::silent(); queues.len()];
        let offered = model.features() | TRANSPORT_FEATURES;
        let interrupts = Arc::default();
        Ok(VirtioDevice {
            model,
            memory,
            offered,
            accepted: 0,
            status: 0,
            active: false,
            is_bus_master: true,
            held: (0..queues.len()).map(|_| None).collect(),
            queues,
            kicks,
            notifiers,
            interrupts,
        })
    }

    /// The device's name in the configuration.
    pub fn name(&self) -> &str {
        self.model.name()
    }

    /// Virtio device ID.
    pub fn device_id(&self) -> u32 {
        self.model.device_id()
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

    /// The driver accepts features. Once FEATURES_OK is set it must not (virtio 1.3, 3.1.1): ignored then.
    pub fn set_driver_features(&mut self, page: u32, value: u32) {
        if self.status & STATUS_FEATURES_OK != 0 || page >= 2 {
            return;
        }
        let shift = 32 * page;
        self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    /// The device status register (virtio 1.3, 2.1).
    pub fn status(&self) -> u8 {
        self.status | if self.interrupts.has_failed() { STATUS_NEEDS_RESET } else { 0 }
    }

    /// The driver writes the device status register. Writing 0 resets the device and returns when that is done: every
    /// request in flight has completed.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        // The driver must not clear a bit but by a reset (virtio 1.3, 2.1.1), and NEEDS_RESET is the device's alone.
        let mut new = self.status | value & !STATUS_NEEDS_RESET;
        let set = new & !self.status;
        if set & STATUS_FEATURES_OK != 0 && !self.features_are_acceptable() {
            // The driver reads the bit back and finds it clear (virtio 1.3, 3.1.1 step 6).
            new &= !STATUS_FEATURES_OK;
        } else if set & STATUS_FEATURES_OK != 0 {
            self.model.features_accepted(self.accepted);
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
        self.interrupts.may_log(self.name())
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
        if self.active || self.status & STATUS_FAILED != 0 {
            return;
        }
        if self.status & STATUS_FEATURES_OK == 0 {
            if self.may_log() {
                error!("{}: the guest's driver set DRIVER_OK before its features were agreed upon", self.name());
            }
            self.interrupts.fail();
            return;
        }
        match self.activate() {
            Ok(()) => {
                self.active = true;
                if tracing::enabled!(tracing::Level::INFO) && self.may_log() {
                    info!("{}: started by the guest's driver, features {:#x}", self.name(), self.accepted);
                }
            }
            Err(reason) => {
                if self.may_log() {
                    error!("{}: cannot start: {reason}; the device needs a reset by the guest", self.name());
                }
                self.interrupts.fail();
            }
        }
    }

    /// Starts the model and the queues that the driver has enabled; none of them, if one is not usable, or yet, if the
    /// device may not access memory.
    fn activate(&mut self) -> Result<(), String> {
        let mut queues = self.enabled_queues()?;
        if !self.is_bus_master {
            queues.drain(..).for_each(|queue| self.held[queue.index] = Some(Held::AtBeginning));
        }
        let (memory, interrupts) = (self.memory.clone(), self.interrupts.clone());
        let started = self.model.activate(Activation { memory, features: self.accepted, interrupts });
        let started = started.and_then(|()| queues.into_iter().try_for_each(|queue| self.model.start_queue(queue)));
        started.map_err(|error| {
            self.model.deactivate();
            error.reason
        })
    }

    fn enabled_queues(&self) -> Result<Vec<ActiveQueue>, String> {
        let mut queues = Vec::new();
        let (kind, mut tables) = (RingKind::of_features(self.accepted), self.memory.translator());
        for (index, queue) in self.queues.iter().enumerate().filter(|(_, queue)| queue.ready()) {
            let config = queue.config();
            kind.check(&config, &mut tables).map_err(|error| format!("queue {index}: {error}"))?;
            queues.push(self.active_queue(index, RingStart::default())?);
        }
        Ok(queues)
    }

    /// A queue as its model takes it.
    pub(super) fn active_queue(&self, index: usize, start: RingStart) -> Result<ActiveQueue, String> {
        let kick = self.kicks[index].try_clone().map_err(|error| format!("queue {index}: {error}"))?;
        let (config, notifier) = (self.queues[index].config(), self.notifiers[index].clone());
        Ok(ActiveQueue { index, config, start, kick: Some(kick), notifier })
    }

    /// Resets the device (virtio 1.3, 2.4): drains the data path, then forgets what the driver set.
    pub fn reset(&mut self) {
        if self.active && tracing::enabled!(tracing::Level::INFO) && self.may_log() {
            info!("{}: reset", self.name());
        }
        self.model.deactivate();
        self.model.reset();
        self.active = false;
        self.held.fill(None);
        self.status = 0;
        self.accepted = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        self.notifiers.fill(Notifier::silent());
        for kick in &self.kicks {
            // Kicks of the old driver are no concern of the next one; an empty counter answers EAGAIN.
            let _ = kick.read();
        }
        self.interrupts.reset();
        self.interrupts.set_config_event(None);
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
    /// runs, none is enabled: queue reset is not offered.
    pub fn set_queue_ready(&mut self, index: usize, ready: bool) {
        if self.active && !ready {
            self.disable_queue(index);
        } else if self.active {
            if self.may_log() {
                warn!("{}: the guest's driver changes queue {index} of a running device; ignored", self.name());
            }
        } else if let Some(queue) = self.queues.get_mut(index) {
            queue.set_ready(ready);
        }
    }

    fn disable_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else { return };
        queue.set_ready(false);
        self.held[index] = None;
        self.model.stop_queue(index);
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
        self.kicks.get(index)
    }

    /// What the workers report.
    pub fn interrupts(&self) -> &Arc<InterruptState> {
        &self.interrupts
    }

    /// Changes whenever the configuration space does (virtio 1.3, 2.5.1).
    pub fn config_generation(&self) -> u32 {
        self.interrupts.config_generation()
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.model.read_config(offset, data);
    }

    /// Writes the device's configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.model.write_config(offset, data, self.accepted);
    }

    /// Gives the model back, stopped.
    pub fn into_model(mut self) -> Box<dyn DeviceModel> {
        self.reset();
        self.model
    }
}
