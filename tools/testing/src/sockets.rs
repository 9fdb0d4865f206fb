//! Sockets of processes that have ended.
use rustix::net::{Shutdown, shutdown};
use std::{os::unix::net::UnixListener, path::Path};

/// Makes a socket at `path` that nobody listens on, as a process that was killed leaves it.
pub fn leave_behind(path: &Path) {
    let listener = UnixListener::bind(path).expect("a socket");
    // A child that another test has just forked has a copy of it for a moment, which would go on listening.
    shutdown(&listener, Shutdown::Both).expect("it listens");
}
