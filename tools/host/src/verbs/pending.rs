//! A device on its way from one place to another.
use crate::{
    device::{HostedDevice, Place},
    host::Shared,
};
use std::sync::Arc;
use tracing::error;

/// A device on which an action is in progress. It is forgotten unless it is put somewhere in the end.
pub(crate) struct Pending {
    shared: Arc<Shared>,
    name: String,
}

impl Pending {
    pub(crate) fn new(shared: &Arc<Shared>, name: &str) -> Self {
        Pending { shared: shared.clone(), name: name.into() }
    }

    /// It is somewhere.
    pub(crate) fn settle(self, place: Place) {
        let mut objects = self.shared.lock();
        match objects.device_mut(&self.name) {
            Ok(device) => device.place = place,
            Err(_) => error!("{}: the device was lost; please report this", self.name),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut objects = self.shared.lock();
        let has_ended =
            |device: &HostedDevice| device.spec.name == self.name && matches!(device.place, Place::Changing(_));
        objects.devices.retain(|device| !has_ended(device));
        drop(objects);
        self.shared.notify();
    }
}
