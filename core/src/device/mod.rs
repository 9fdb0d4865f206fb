//! Device models: what a guest's driver sees, whatever the transport.
//!
//! | module | virtio device |
//! |---|---|
//! | [`blk`] | block device (virtio 1.3, 5.2) |
pub mod blk;

use crate::{
    memory::GuestMemory,
    ring::QueueConfig,
    transport::{InterruptState, Notifier},
};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Why a device could not be started by its driver. The transport tells the guest with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct ActivateError {
    /// The device's name in the configuration.
    pub device: String,
    /// What went wrong.
    pub reason: String,
}

/// One queue that the driver has enabled.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Index of the queue in the device.
    pub index: usize,
    /// Size and addresses, as the driver set them. Checked by the ring when it is built.
    pub config: QueueConfig,
    /// The driver's available buffer notification.
    pub kick: EventFd,
    /// The used buffer notification to the driver.
    pub notifier: Notifier,
}

/// All that a device model needs to run: the common end of every transport.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features that the driver accepted.
    pub features: u64,
    /// The queues that the driver enabled.
    pub queues: Vec<ActiveQueue>,
    /// Where the device reports configuration changes and its own failure.
    pub interrupts: Arc<InterruptState>,
}

/// A virtio device model. All calls come from one thread at a time, a transport's; the data path runs elsewhere, on
/// workers.
pub trait DeviceModel: Send {
    /// The device's name in the configuration, such as `blk0`.
    fn name(&self) -> &str;
    /// Virtio device ID (virtio 1.3, 5).
    fn device_id(&self) -> u32;
    /// Features offered, without those of the transport.
    fn features(&self) -> u64;
    /// Greatest size of each queue, which says how many there are. Powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];
    /// Reads the configuration space. Bytes beyond its end are left as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space. What is read-only ignores it. `features` are those accepted so far.
    fn write_config(&mut self, offset: u64, data: &[u8], features: u64);
    /// The driver has set FEATURES_OK with these features, and the device has accepted them. The driver reads the
    /// configuration space next.
    fn features_accepted(&mut self, _features: u64) {}
    /// The driver has set DRIVER_OK: serve the queues.
    ///
    /// # Errors
    /// The device needs a reset: a queue is not usable, or the backend cannot start.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops serving: returns when every request in flight has completed and nothing touches the guest's memory any
    /// more. Idempotent.
    fn deactivate(&mut self);
}
