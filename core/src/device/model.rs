//! A device model as transports see it.
use super::{
    activation::{ActivateError, Activation, ActiveQueue},
    config_space::{ConfigFields, ToldConfig},
    measure::Measure,
};
use crate::{
    memory::GuestMemory,
    queue::{Position, QueueUpdate},
    ring::QueueConfig,
};
use std::{os::fd::RawFd, sync::Arc, task::Poll};

/// A virtio device model. All calls come from one thread at a time, a transport's; the data path runs elsewhere, on
/// workers.
pub trait DeviceModel: Send {
    /// The device's name in the configuration, such as `blk0`.
    fn name(&self) -> &str;
    /// Virtio device ID (virtio 1.3, 5).
    fn device_id(&self) -> u32;
    /// Features offered, without those of the transport.
    fn features(&self) -> u64;
    /// Greatest size of each queue, one entry per queue. Powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space. Bytes beyond its end are left as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space. What is read-only ignores it. `features` are those accepted so far.
    fn write_config(&mut self, offset: u64, data: &[u8], features: u64);
    /// The driver has set FEATURES_OK with these features, and the device has accepted them. The driver reads the
    /// configuration space next.
    fn features_accepted(&mut self, _features: u64) {}
    /// Which fields of the configuration space change.
    fn config_fields(&self) -> ConfigFields {
        ConfigFields::default()
    }
    /// A driver that has accepted `features` starts its rings with certain assumptions about the configuration space,
    /// maybe from an earlier process. The device follows what the driver has set, or else errs on the safe side.
    /// Returns the assumptions that it cannot meet, each as a sentence.
    fn config_was_told(&mut self, _features: u64, _told: &ToldConfig) -> Vec<String> {
        Vec::new()
    }
    /// The driver is ready: queues are started next, each by itself.
    ///
    /// # Errors
    /// The device needs a reset: its backend cannot use the memory.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Serves a queue from now on. Called between [`activate`](Self::activate) and [`deactivate`](Self::deactivate).
    ///
    /// # Errors
    /// The queue is not usable, or the backend cannot start.
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError>;
    /// Stops serving a queue, and returns its position once every request in flight on it has completed. `None`: it was
    /// not started, or was lost.
    fn stop_queue(&mut self, _index: usize) -> Option<Position> {
        None
    }
    /// Begins to stop a queue, and does not wait for its requests. [`poll_stop_queue`](Self::poll_stop_queue) or
    /// [`stop_queue`](Self::stop_queue) follows.
    fn begin_stop_queue(&mut self, _index: usize) {}
    /// As [`stop_queue`](Self::stop_queue), if every request in flight has completed by now.
    fn poll_stop_queue(&mut self, index: usize) -> Poll<Option<Position>> {
        Poll::Ready(self.stop_queue(index))
    }
    /// Changes a setting of a running queue. Does nothing if it is not started.
    fn update_queue(&mut self, _index: usize, _update: QueueUpdate) {}
    /// Gives the device and its running queues a new memory map in place of the old, while requests are in flight.
    /// `config` says where the rings of a queue are in it.
    ///
    /// # Errors
    /// The backend cannot use the memory; the queues keep the old one.
    fn set_memory(
        &mut self,
        _memory: &GuestMemory,
        _config: &dyn Fn(usize) -> QueueConfig,
    ) -> Result<(), ActivateError> {
        Ok(())
    }
    /// Releases old memory maps that no request needs any more. Returns whether others remain, so that this must be
    /// called again.
    fn release_memory(&mut self) -> bool {
        false
    }
    /// The guest is gone: releases what is still known of its memory, unless the device is active.
    fn forget_memory(&mut self) {}
    /// The means to ask the backend again what its medium is like. `None`: nothing could change.
    fn measure(&self) -> Option<Arc<dyn Measure>> {
        None
    }
    /// Applies what was [measured](Measure::measure) last, if that has not been done yet. Returns whether it changes
    /// the configuration space.
    fn refresh(&mut self) -> bool {
        false
    }
    /// Becomes readable when the backend has changed by itself, and should be [measured](Self::measure).
    fn change_event(&self) -> Option<RawFd> {
        None
    }
    /// Stops serving all queues: returns when every request in flight has completed and nothing touches the guest's
    /// memory any more. Idempotent.
    fn deactivate(&mut self);
    /// The driver has reset the device, which is not active: forget what it set.
    fn reset(&mut self) {}
}
