//! Exports: the sockets that devices are served on over vhost-user. A device has one, whose name is the device's.
use crate::{action::Unfinished, device::DeviceError};
use pollux_core::transport::vhost_user::socket::{Listener, SocketError, SocketSpec};
use std::io;

/// Why a device cannot be served, or not stopped from being served.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no such device, or it is not free.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is nothing to serve it on.
    #[error("{device}: {cause}")]
    Socket {
        /// The device.
        device: String,
        /// Why.
        cause: SocketError,
    },
    /// No server could be started. The device is closed.
    #[error("{device}: cannot start to serve it: {cause}")]
    Server {
        /// The device.
        device: String,
        /// Why.
        cause: io::Error,
    },
    /// It is not served.
    #[error("{0}: it is not served on a socket")]
    NotServed(String),
    /// It has not ended.
    #[error("{device}: {cause}")]
    Unfinished {
        /// The device.
        device: String,
        /// Why.
        cause: Unfinished,
    },
}

/// The socket of an export.
#[derive(Debug)]
pub enum ExportSpec {
    /// One that is made now, and removed with the export.
    Made(SocketSpec),
    /// One that a service manager has opened.
    Inherited {
        /// The socket.
        listener: Listener,
        /// Whether front ends may share any file: see [`SocketSpec::any_file`].
        any_file: bool,
    },
}
