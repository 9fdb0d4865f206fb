//! Adding and removing exports.
use super::pending::Pending;
use crate::{
    action::{Action, carry_out},
    device::Place,
    export::{ExportError, ExportSpec},
    host::Host,
};
use pollux_core::transport::vhost_user::{Server, socket::Listener};
use std::time::Duration;
use tracing::info;

impl Host {
    /// Serves a device that is neither served nor attached yet. `[any thread]` It only waits for the lock on the
    /// socket's folder, for a moment.
    ///
    /// # Errors
    /// The device does not exist or is not free, or the socket cannot be made: the device then stays as it was.
    pub fn add_export(&self, device: &str, spec: ExportSpec) -> Result<(), ExportError> {
        let model = self.shared.lock().begin_change(device, Action::new("being put on its socket"))?;
        let pending = Pending::new(&self.shared, device);
        self.shared.leave_cpus();
        let (listener, any_file) = match spec {
            ExportSpec::Inherited { listener, any_file } => (listener, any_file),
            ExportSpec::Made(socket) => match Listener::bind(&socket) {
                Ok(listener) => (listener, socket.any_file),
                Err(cause) => {
                    pending.settle(Place::Idle(model));
                    return Err(ExportError::Socket { device: device.into(), cause });
                }
            },
        };
        let place = listener.path().display().to_string();
        let server = Server::start(model, listener, any_file);
        let server = server.map_err(|cause| ExportError::Server { device: device.into(), cause })?;
        pending.settle(Place::Exported(server));
        info!("{device}: serving on {place}");
        Ok(())
    }

    /// Drains and flushes the device, closes its connections and removes the socket, if that was made for it. The
    /// device stays, and can be served again. `[any thread]` It waits for all requests, no longer than `patience`.
    ///
    /// # Errors
    /// The device does not exist or is not served, or it takes longer; it then continues, and the device is free at its
    /// end.
    pub fn remove_export(&self, device: &str, patience: Duration) -> Result<(), ExportError> {
        let action = Action::new("being drained");
        let server = self.shared.lock().take_server(device, action)?;
        let pending = Pending::new(&self.shared, device);
        let drain = move || {
            pending.settle(Place::Idle(server.into_model()));
            Ok::<(), ExportError>(())
        };
        let drained = carry_out(device, action, patience, drain);
        drained.map_err(|cause| ExportError::Unfinished { device: device.into(), cause })?
    }
}
