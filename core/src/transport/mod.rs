//! How a guest's driver reaches a device.
//!
//! | module | holds |
//! |---|---|
//! | [`pci`], [`mmio`] | a map of registers onto a [`VirtioDevice`] |
//! | [`vhost_user`] | a map of messages |
//! | `virtio_device` | the device status machine and the set-up of queues by registers |
//! | `status` | the bits of the device status register |
//! | `features` | which features are offered, and which of them a driver may accept |
//! | `queue_setup` | the registers of one queue |
//! | [`DeviceHandle`] | the verbs of a served device, for the program that runs it |
//! | `served` | the life cycle of a device and its queues, whatever the transport |
//!
//! All end in [`DeviceModel::activate`](crate::device::DeviceModel::activate) and
//! [`DeviceModel::start_queue`](crate::device::DeviceModel::start_queue).
mod features;
mod handle;
pub mod mmio;
pub mod pci;
mod queue_setup;
mod served;
mod status;
#[cfg(test)]
mod test_device;
pub mod vhost_user;
mod virtio_device;

pub use features::{REGISTER_FEATURES, TRANSPORT_FEATURES};
pub use handle::{DeviceHandle, HandleError};
pub use queue_setup::QueueSetup;
pub use status::{
    STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FAILED, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
};
pub use virtio_device::VirtioDevice;
