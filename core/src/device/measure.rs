//! The part of a refresh that takes as long as the medium does.

/// What asks a backend how its medium is, apart from the device: nobody who wants the device has to wait for it.
pub trait Measure: Send + Sync {
    /// Asks, and keeps the answer for [`DeviceModel::refresh`](super::DeviceModel::refresh). Any thread, one at a time.
    fn measure(&self);
}
