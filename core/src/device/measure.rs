//! The part of a refresh that takes as long as the medium does.

/// Asks a backend what its medium is like without involving the device, so that no user of the device has to wait for
/// it.
pub trait Measure: Send + Sync {
    /// Asks, and keeps the answer for [`DeviceModel::refresh`](super::DeviceModel::refresh). Any thread, one at a time.
    fn measure(&self);
}
