//! Event descriptors from the front end. A worker reads and writes them, so they must be eventfds.
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    fs::{File, read_link},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
};
use vmm_sys_util::eventfd::EventFd;

/// Makes an event from a descriptor.
///
/// # Errors
/// It is not an eventfd: a worker could be made to wait on it for ever.
pub(super) fn event(file: File) -> Result<EventFd, String> {
    let link = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    // Without /proc, this cannot be known.
    if let Ok(target) = link
        && target.as_os_str() != "anon_inode:[eventfd]"
    {
        return Err(format!("its file descriptor is not an eventfd but {}", target.display()));
    }
    // A full counter must not stop a worker: a write then fails, and the driver has been told anyway.
    fcntl_getfl(&file)
        .and_then(|flags| fcntl_setfl(&file, flags | OFlags::NONBLOCK))
        .map_err(|error| format!("its eventfd cannot be used: {error}"))?;
    // SAFETY: the descriptor is open, and ours alone from here on.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}
