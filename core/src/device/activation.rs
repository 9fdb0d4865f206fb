//! What a device model is given when its driver starts it.
use crate::{
    event::{InterruptState, Notifier},
    memory::GuestMemory,
    ring::{QueueConfig, RingStart},
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
#[derive(Clone, Debug)]
pub struct ActiveQueue {
    /// Index of the queue in the device.
    pub index: usize,
    /// Size and addresses, as the driver set them. Checked by the ring when it is built.
    pub config: QueueConfig,
    /// Where the device continues.
    pub start: RingStart,
    /// The driver's available buffer notification. Without one its worker never sleeps.
    pub kick: Option<Arc<EventFd>>,
    /// The used buffer notification to the driver.
    pub notifier: Notifier,
}

/// What all queues of a running device share: the common end of every transport.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features that the driver accepted.
    pub features: u64,
    /// Where the device reports configuration changes and its own failure.
    pub interrupts: Arc<InterruptState>,
}
