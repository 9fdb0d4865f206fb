//! Waiting for a file descriptor.
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

/// Waits until `file` can be read, at most for `timeout`. Returns whether it can.
pub(crate) fn readable(file: &impl AsRawFd, timeout: Duration) -> io::Result<bool> {
    Ok(poll(file.as_raw_fd(), libc::POLLIN, timeout)? & libc::POLLIN != 0)
}

/// Whether the other end of the socket was closed.
pub(crate) fn hung_up(socket: &impl AsRawFd) -> io::Result<bool> {
    let events = poll(socket.as_raw_fd(), libc::POLLRDHUP, Duration::ZERO)?;
    Ok(events & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0)
}

fn poll(fd: RawFd, events: libc::c_short, timeout: Duration) -> io::Result<libc::c_short> {
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let milliseconds = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one entry, which outlives the call.
    match unsafe { libc::poll(&mut entry, 1, milliseconds) } {
        0.. => Ok(entry.revents),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
    }
}
