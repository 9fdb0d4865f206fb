//! What every device model does: its queues on their workers, its activation, changes of the guest's memory, the
//! statistics. What differs is a [`ModelKind`].
use super::{
    activation::{ActivateError, Activation, ActiveQueue},
    config_space::{ConfigFields, ToldConfig},
    measure::Measure,
    model::DeviceModel,
};
use crate::{
    memory::GuestMemory,
    queue::{Position, QueueOptions, QueueSet, QueueUpdate, VirtqueueSetup},
    ring::{InOrder, PackedRing, QueueConfig, Ring, RingKind, SplitRing},
    stats::{QueueIdentity, QueueKind, QueueRecord, StatsHandle, StatsSegment},
    worker::{Task, WorkerHandle},
};
use std::{fmt, os::fd::RawFd, sync::Arc, task::Poll};
use tracing::error;
use virtio_bindings::{virtio_config::VIRTIO_F_IN_ORDER, virtio_ring::VIRTIO_RING_F_EVENT_IDX};

/// How a device is set up, whatever its kind.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The device's name in the configuration.
    pub name: String,
    /// The workers that the queues are assigned to in turn. At least one, unless the queues are polled by hand.
    pub workers: Vec<WorkerHandle>,
    /// How its queues are set up.
    pub queues: QueueOptions,
}

/// What is particular to one kind of device. `[control]` throughout; methods that [`DeviceModel`] has as well are
/// documented there.
pub trait ModelKind: Send {
    /// What its queues count in addition to what all queues count. It names the virtio device ID.
    type Stats: QueueKind;

    /// Features of this kind of device.
    fn features(&self) -> u64 {
        0
    }
    /// Reads the configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    /// Writes the configuration space.
    fn write_config(&mut self, _offset: u64, _data: &[u8], _features: u64) {}
    /// The driver has set FEATURES_OK with these features.
    fn features_accepted(&mut self, _features: u64) {}
    /// Which fields of the configuration space change.
    fn config_fields(&self) -> ConfigFields {
        ConfigFields::default()
    }
    /// A driver starts its rings with certain assumptions about the configuration space.
    fn config_was_told(&mut self, _features: u64, _told: &ToldConfig) -> Vec<String> {
        Vec::new()
    }
    /// Builds a queue on this kind of ring, by `VirtqueueSetup::serve`.
    ///
    /// # Errors
    /// The ring is not usable, or the backend refuses a queue.
    fn build_queue<R: Ring>(
        &self,
        setup: VirtqueueSetup,
        stats: StatsHandle<Self::Stats>,
    ) -> Result<Box<dyn Task>, String>;
    /// Builds a queue on the ring that a driver with these features speaks. A kind whose data path should be compiled
    /// with this crate, and not with each program, does the same in a function of its own.
    ///
    /// # Errors
    /// As those of [`build_queue`](Self::build_queue).
    fn build(
        &self,
        features: u64,
        setup: VirtqueueSetup,
        stats: StatsHandle<Self::Stats>,
    ) -> Result<Box<dyn Task>, String> {
        build_on_ring(self, features, setup, stats)
    }
    /// Announces guest memory to the backend, which then knows all of it.
    ///
    /// # Errors
    /// It cannot use that memory.
    fn add_memory(&self, _memory: &GuestMemory) -> Result<(), String> {
        Ok(())
    }
    /// Withdraws guest memory that was announced and is not in `memory`. No request points into it any more.
    fn remove_memory_but(&self, _memory: Option<&GuestMemory>) {}
    /// The means to ask the backend again what it is like.
    fn measure(&self) -> Option<Arc<dyn Measure>> {
        None
    }
    /// Applies what was measured. Returns whether that changes the configuration space.
    fn refresh(&mut self) -> bool {
        false
    }
    /// Becomes readable when the backend has changed by itself.
    fn change_event(&self) -> Option<RawFd> {
        None
    }
    /// The driver has reset the device, which is not active: forget what it set.
    fn reset(&mut self) {}
}

/// Chooses the ring that a driver speaks.
pub(super) fn build_on_ring<K: ModelKind + ?Sized>(
    kind: &K,
    features: u64,
    setup: VirtqueueSetup,
    stats: StatsHandle<K::Stats>,
) -> Result<Box<dyn Task>, String> {
    match (RingKind::of_features(features), features & 1 << VIRTIO_F_IN_ORDER != 0) {
        (RingKind::Split, false) => kind.build_queue::<SplitRing>(setup, stats),
        (RingKind::Split, true) => kind.build_queue::<InOrder<SplitRing>>(setup, stats),
        (RingKind::Packed, false) => kind.build_queue::<PackedRing>(setup, stats),
        (RingKind::Packed, true) => kind.build_queue::<InOrder<PackedRing>>(setup, stats),
    }
}

/// A device model: what all of them have, around what is particular to a kind.
pub struct DeviceShell<K: ModelKind> {
    options: DeviceOptions,
    kind: K,
    queue_sizes: Vec<u16>,
    stats: Vec<QueueRecord<K::Stats>>,
    queues: QueueSet,
    /// What the queues run with, while the device is active.
    activation: Option<Activation>,
}

impl<K: ModelKind> fmt::Debug for DeviceShell<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DeviceShell({})", self.options.name)
    }
}

impl<K: ModelKind> DeviceShell<K> {
    /// A device of this kind. Its statistics go to `segment`.
    pub fn around(kind: K, options: DeviceOptions, segment: &StatsSegment) -> Self {
        let queues = QueueSet::new(&options.name, &options.workers);
        let device = &options.name;
        let identity = |index| QueueIdentity { device, index, worker: queues.worker_name(index) };
        let stats = (0..options.queues.count).filter_map(|index| segment.add_queue(identity(index))).collect();
        let queue_sizes = vec![options.queues.size; options.queues.count];
        DeviceShell { options, kind, queue_sizes, stats, queues, activation: None }
    }

    /// Builds the data path of one queue, which belongs to the thread that polls it.
    ///
    /// # Errors
    /// The ring is not usable, or the backend refuses a queue.
    pub fn queue(&self, activation: &Activation, queue: ActiveQueue) -> Result<Box<dyn Task>, String> {
        let has = |feature: u32| activation.features & 1 << feature != 0;
        let QueueRecord { common, block } =
            self.stats.get(queue.index).cloned().ok_or("there is no room in the statistics")?;
        let setup = VirtqueueSetup {
            index: queue.index,
            name: format!("{} queue {}", self.options.name, queue.index),
            config: queue.config,
            start: queue.start,
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
            memory: activation.memory.clone(),
            kick: queue.kick,
            notifier: queue.notifier,
            interrupts: activation.interrupts.clone(),
            stats: common,
            options: self.options.queues,
        };
        self.kind.build(activation.features, setup, block)
    }

    fn check_not_lost(&self) -> Result<(), ActivateError> {
        if self.queues.has_lost() {
            return Err(self.error("a queue of it was lost before, and its backend may still use the guest's memory"));
        }
        Ok(())
    }

    fn error(&self, reason: impl ToString) -> ActivateError {
        ActivateError { device: self.options.name.clone(), reason: reason.to_string() }
    }
}

impl<K: ModelKind> DeviceModel for DeviceShell<K> {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn device_id(&self) -> u32 {
        K::Stats::KIND
    }

    fn features(&self) -> u64 {
        self.kind.features() | u64::from(self.options.queues.in_order) << VIRTIO_F_IN_ORDER
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.kind.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8], features: u64) {
        self.kind.write_config(offset, data, features);
    }

    fn features_accepted(&mut self, features: u64) {
        self.kind.features_accepted(features);
    }

    fn config_fields(&self) -> ConfigFields {
        self.kind.config_fields()
    }

    fn config_was_told(&mut self, features: u64, told: &ToldConfig) -> Vec<String> {
        self.kind.config_was_told(features, told)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.check_not_lost()?;
        self.kind.add_memory(&activation.memory).map_err(|error| self.error(error))?;
        self.kind.remove_memory_but(Some(&activation.memory));
        self.activation = Some(activation);
        Ok(())
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        // Not even one that was reset alone, whose driver believes that it has its buffers back.
        self.check_not_lost()?;
        let Some(activation) = &self.activation else { return Err(self.error("a queue starts before its device")) };
        let index = queue.index;
        let task = self.queue(activation, queue);
        let attached = task.and_then(|task| self.queues.attach(index, task));
        attached.map_err(|reason| self.error(format!("queue {index}: {reason}")))
    }

    fn stop_queue(&mut self, index: usize) -> Option<Position> {
        self.queues.detach(index)
    }

    fn begin_stop_queue(&mut self, index: usize) {
        self.queues.begin_detach(index);
    }

    fn poll_stop_queue(&mut self, index: usize) -> Poll<Option<Position>> {
        self.queues.poll_detach(index)
    }

    fn update_queue(&mut self, index: usize, update: QueueUpdate) {
        self.queues.update(index, update);
    }

    fn set_memory(&mut self, memory: &GuestMemory, config: &dyn Fn(usize) -> QueueConfig) -> Result<(), ActivateError> {
        if self.activation.is_none() {
            return Ok(());
        }
        self.kind.add_memory(memory).map_err(|error| self.error(error))?;
        if let Some(activation) = &mut self.activation {
            activation.memory = memory.clone();
        }
        self.queues.set_memory(memory, config);
        self.release_memory();
        Ok(())
    }

    fn release_memory(&mut self) -> bool {
        let waits = self.queues.collect_retired();
        // The backend of a lost queue may use any of them for ever.
        if let Some(activation) = &self.activation
            && !waits
            && !self.queues.has_lost()
        {
            self.kind.remove_memory_but(Some(&activation.memory));
        }
        waits
    }

    fn forget_memory(&mut self) {
        if self.activation.is_none() && !self.queues.has_lost() {
            self.kind.remove_memory_but(None);
        }
    }

    fn measure(&self) -> Option<Arc<dyn Measure>> {
        self.kind.measure()
    }

    fn refresh(&mut self) -> bool {
        self.kind.refresh()
    }

    fn change_event(&self) -> Option<RawFd> {
        self.kind.change_event()
    }

    fn deactivate(&mut self) {
        self.queues.detach_all();
        self.activation = None;
    }

    fn reset(&mut self) {
        self.kind.reset();
    }
}

impl<K: ModelKind> Drop for DeviceShell<K> {
    fn drop(&mut self) {
        self.deactivate();
        if self.queues.has_lost() {
            error!("{}: the memory of its last guest stays mapped, since a queue was lost", self.options.name);
            return;
        }
        self.kind.remove_memory_but(None);
    }
}
