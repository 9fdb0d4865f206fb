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
    is_settled: bool,
}

impl Pending {
    pub(crate) fn new(shared: &Arc<Shared>, name: &str) -> Self {
        Pending { shared: shared.clone(), name: name.into(), is_settled: false }
    }

    /// It is somewhere.
    pub(crate) fn settle(mut self, place: Place) {
        self.put(place);
    }

    /// From here on it is somebody else's to change.
    fn put(&mut self, place: Place) {
        self.is_settled = true;
        let mut objects = self.shared.lock();
        match objects.device_mut(&self.name) {
            Ok(device) => device.place = place,
            Err(_) => error!("{}: the device was lost; please report this", self.name),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_settled {
            let has_ended =
                |device: &HostedDevice| device.spec.name == self.name && matches!(device.place, Place::Changing(_));
            self.shared.lock().devices.retain(|device| !has_ended(device));
        }
        self.shared.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceSpec, Host, Plugins, action::Action, device::BlkSpec, device::DeviceKind};
    use pollux_core::{plugin::PluginPath, queue::QueueOptions, stats::StatsSegment};
    use std::path::Path;

    /// A host with one device, to which something is being done.
    fn changing(name: &str) -> Host {
        let stats = StatsSegment::anonymous(1).expect("statistics");
        let host = Host::new(&Plugins::new(&PluginPath::default(), Path::new("/")), stats);
        let kind = DeviceKind::Blk(BlkSpec { block: "disk".into(), serial: String::new() });
        let spec = DeviceSpec { name: name.into(), workers: Vec::new(), queues: QueueOptions::default(), kind };
        let place = Place::Changing(Action::new("being opened"));
        host.shared.lock().devices.push(HostedDevice { spec, place });
        host
    }

    #[test]
    fn what_does_not_end_up_anywhere_is_forgotten() {
        let host = changing("blk0");
        drop(Pending::new(&host.shared, "blk0"));
        assert!(host.describe().devices.is_empty());
    }

    #[test]
    fn a_device_that_the_next_verb_has_taken_at_once_stays() {
        let host = changing("blk0");
        let mut pending = Pending::new(&host.shared, "blk0");
        // It is put somewhere, and taken from there before this one has come to its end.
        pending.put(Place::Changing(Action::new("being drained")));
        drop(pending);
        assert_eq!(host.describe().devices.len(), 1);
        // Nobody is at work on it, whom the host would wait for.
        host.shared.lock().devices.clear();
    }
}
