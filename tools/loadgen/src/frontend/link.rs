//! The connection: messages with names, and an end to patience.
use super::Error;
use crate::wait;
use std::{
    fs, io,
    net::Shutdown,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};
use vhost::vhost_user::{self, Frontend};

/// A connection to a backend.
pub(super) struct Link {
    path: PathBuf,
    patience: Duration,
    frontend: Frontend,
    stream: UnixStream,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Link").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn connect(path: &Path, queues: u16, patience: Duration) -> Result<Self, Error> {
        let owned = || path.to_owned();
        let stream = UnixStream::connect(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => Error::NoSocket { path: owned() },
            io::ErrorKind::ConnectionRefused if is_socket(path) => Error::NobodyListens { path: owned() },
            io::ErrorKind::ConnectionRefused => Error::NotASocket { path: owned() },
            _ => Error::Connect { path: owned(), cause },
        })?;
        let copy = stream.try_clone().map_err(|cause| Error::System { what: "copy a file descriptor", cause })?;
        Ok(Link { path: owned(), patience, frontend: Frontend::from_stream(copy, queues.into()), stream })
    }

    /// Sends a message by `send`. A backend that does not answer in time is left.
    pub(super) fn say<T>(
        &mut self,
        message: &'static str,
        send: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, Error> {
        let (finished, expired) = mpsc::channel::<()>();
        let Link { frontend, stream, patience, path } = self;
        let (patience, stream) = (*patience, &*stream);
        let (result, silent) = thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let silent = expired.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
                if silent {
                    // Ends the read that waits for an answer.
                    let _ = stream.shutdown(Shutdown::Both);
                }
                silent
            });
            let result = send(frontend);
            drop(finished);
            (result, watch.join().unwrap_or(false))
        });
        let path = path.clone();
        match result {
            Ok(value) => Ok(value),
            Err(_) if silent => Err(Error::Silent { path, message, patience }),
            Err(vhost::Error::VhostUserProtocol(cause)) if is_closed(&cause) => Err(Error::Closed { path, message }),
            Err(vhost::Error::VhostUserProtocol(cause)) => {
                Err(Error::Message { path, message, cause: cause.to_string() })
            }
            Err(cause) => Err(Error::Message { path, message, cause: cause.to_string() }),
        }
    }

    /// Whether the backend is still there.
    pub(super) fn is_alive(&self) -> bool {
        !wait::hung_up(&self.stream).unwrap_or(true)
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn is_closed(error: &vhost_user::Error) -> bool {
    use vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
    matches!(error, Disconnected | PartialMessage | SocketBroken(_))
}
