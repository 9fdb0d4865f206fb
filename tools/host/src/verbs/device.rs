//! Adding, refreshing and removing devices.
use super::pending::Pending;
use crate::{
    action::{Action, carry_out},
    device::{DeviceError, DeviceSpec, HostedDevice, Place, open_model},
    host::Host,
};
use pollux_core::transport::{DeviceHandle, HandleError};
use std::time::Duration;

impl Host {
    /// Opens the backend's medium and makes the device in front of it, which is neither served nor attached yet. `[any
    /// thread]` It waits for the plugin, no longer than `patience`.
    ///
    /// # Errors
    /// Something that it refers to does not exist or does not suit it, or the medium cannot be opened.
    pub fn add_device(&self, spec: DeviceSpec, patience: Duration) -> Result<(), DeviceError> {
        let (name, action) = (spec.name.clone(), Action::new("being opened"));
        let (backend, workers) = {
            let mut objects = self.shared.lock();
            let found = objects.check_new_device(&spec)?;
            objects.devices.push(HostedDevice { spec: spec.clone(), place: Place::Changing(action) });
            found
        };
        // Threads that backends start, or that the kernel makes for them, stay on the CPUs where they were opened.
        self.shared.leave_cpus();
        let stats = self.shared.stats.clone();
        let pending = Pending::new(&self.shared, &name);
        let open = move || {
            let model = open_model(&spec, &backend, workers, &stats)?;
            pending.settle(Place::Idle(model));
            Ok(())
        };
        let opened = carry_out(&name, action, patience, open);
        opened.map_err(|cause| DeviceError::Unfinished { device: name, cause })?
    }

    /// Closes the device's medium and forgets it. `[any thread]` It waits for the plugin, no longer than `patience`.
    ///
    /// # Errors
    /// There is none of that name, it is served or attached, or something else is being done to it.
    pub fn remove_device(&self, name: &str, patience: Duration) -> Result<(), DeviceError> {
        let action = Action::new("being closed");
        let model = self.shared.lock().begin_change(name, action)?;
        let pending = Pending::new(&self.shared, name);
        let close = move || {
            drop(model);
            drop(pending);
            Ok::<(), DeviceError>(())
        };
        let closed = carry_out(name, action, patience, close);
        closed.map_err(|cause| DeviceError::Unfinished { device: name.into(), cause })?
    }

    /// Asks the plugin what the device's medium is like now, and tells the driver if that has changed. `[any thread]`
    /// The medium is asked on a thread of its own, which this does not wait for, unless the device is neither served
    /// nor attached: then it waits no longer than `patience`.
    ///
    /// # Errors
    /// There is none of that name, or something else is being done to it.
    pub fn refresh_device(&self, name: &str, patience: Duration) -> Result<(), DeviceError> {
        let mut objects = self.shared.lock();
        if let Some(handle) = objects.device(name)?.handle() {
            handle.refresh();
            return Ok(());
        }
        let action = Action::new("being measured again");
        let mut model = objects.begin_change(name, action)?;
        drop(objects);
        let pending = Pending::new(&self.shared, name);
        let measure = move || {
            if let Some(measure) = model.measure() {
                measure.measure();
            }
            model.refresh();
            pending.settle(Place::Idle(model));
            Ok::<(), DeviceError>(())
        };
        let measured = carry_out(name, action, patience, measure);
        measured.map_err(|cause| DeviceError::Unfinished { device: name.into(), cause })?
    }

    /// Measures again the medium of every device that is served or attached, each on its own thread. `[any thread]` It
    /// does not wait.
    pub fn refresh(&self) {
        let handles: Vec<_> = self.shared.lock().devices.iter().filter_map(HostedDevice::handle).collect();
        handles.iter().for_each(DeviceHandle::refresh);
    }

    /// Drains the device's queues, and takes no request until it is resumed: nothing touches the guest's memory
    /// meanwhile. `[any thread]` It waits for all requests in flight, no longer than `patience`; after that, the pause
    /// continues by itself.
    ///
    /// # Errors
    /// There is none of that name, it is neither served nor attached, or it takes longer.
    pub fn pause_device(&self, name: &str, patience: Duration) -> Result<(), DeviceError> {
        self.handle_device(name, "being paused", patience, DeviceHandle::pause)
    }

    /// Lets the device continue where it was paused. `[any thread]` As [`pause_device`](Self::pause_device).
    ///
    /// # Errors
    /// As those of a pause; or a queue cannot start again: its guest is told that the device needs a reset.
    pub fn resume_device(&self, name: &str, patience: Duration) -> Result<(), DeviceError> {
        self.handle_device(name, "being resumed", patience, DeviceHandle::resume)
    }

    fn handle_device(
        &self,
        name: &str,
        doing: &'static str,
        patience: Duration,
        verb: fn(&DeviceHandle) -> Result<(), HandleError>,
    ) -> Result<(), DeviceError> {
        let handle = match self.shared.lock().device(name)? {
            HostedDevice { place: Place::Changing(action), .. } => return Err(DeviceError::busy(name, *action)),
            device => device.handle().ok_or_else(|| DeviceError::Unreached(name.into()))?,
        };
        let done = carry_out(name, Action::new(doing), patience, move || verb(&handle));
        Ok(done.map_err(|cause| DeviceError::Unfinished { device: name.into(), cause })??)
    }
}
