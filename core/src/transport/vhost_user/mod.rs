//! virtio over vhost-user: another program's guest reaches a device over a UNIX socket.
//!
//! | module | holds |
//! |---|---|
//! | [`socket`] | the listening socket: made with its owner and mode, or inherited |
//! | [`socket_activation`] | the sockets that a service manager has opened for this process |
pub mod socket;
#[allow(unsafe_code)] // descriptors that are ours by the environment's word
pub mod socket_activation;

use crate::device::DeviceModel;
use socket::Listener;
use std::io;

/// One device served on one socket.
///
/// A stand-in until there is a server: connections are taken up by the kernel and never answered.
pub struct Server {
    model: Box<dyn DeviceModel>,
    listener: Option<Listener>,
}

impl Server {
    /// Serves `model` on `listener` until dropped or stopped.
    ///
    /// # Errors
    /// Its thread cannot be started.
    pub fn start(model: Box<dyn DeviceModel>, listener: Listener) -> io::Result<Server> {
        Ok(Server { model, listener: Some(listener) })
    }

    /// Drains and flushes the device, closes all connections, removes the socket. Also done by drop.
    pub fn stop(&mut self) {
        self.model.deactivate();
        self.listener = None;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
