//! The lock that keeps other processes, and other disks of this one, off a medium.
//!
//! It is an open file description lock (`F_OFD_SETLK`): it belongs to the descriptor and not to the process, so that two
//! instances in one process exclude each other too. QEMU's image locks are of the same kind, but all of them are shared
//! ones: a writer here and QEMU keep each other off, and QEMU does not write to what a reader here has open. But a reader
//! here is not kept off by a QEMU that is writing: its lock looks like that of another reader.
//!
//! The lock has a descriptor of its own, since an io_uring keeps the files that were registered with it open for a
//! moment after it was closed: the medium would still be locked when the next instance opens it.
use crate::image::{CLAIM_PATIENCE, cannot_open};
use pollux_abi::block::Error;
use std::{
    fs::{self, File, OpenOptions},
    io,
    mem::zeroed,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// A lock on a medium, released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks `path`: for itself alone if `writable`, otherwise together with other readers.
    pub(crate) fn take(path: &Path, writable: bool) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(|error| cannot_open(path, writable, error))?;
        match lock_patiently(&file, writable) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(error) if is_held(&error) => Err(Error::new(format!(
                "{} is in use by {}; stop that first, give each its own image, or write lock = false if sharing is \
                 meant",
                path.display(),
                holders(&file)
            ))),
            Err(error) => Err(Error::from_io(
                format_args!("cannot lock {} (write lock = false if its file system has no locks)", path.display()),
                error,
            )),
        }
    }
}

/// Locks `file`. A lock that is held now may be free in a moment: a child that its holder has just forked has it, too,
/// until it executes its own program.
fn lock_patiently(file: &File, writable: bool) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match set_lock(file, writable) {
            Err(error) if is_held(&error) && start.elapsed() < CLAIM_PATIENCE => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn is_held(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn set_lock(file: &File, writable: bool) -> io::Result<()> {
    // SAFETY: an all-zero flock is a value of the type: a range from 0 to the end of the file.
    let mut lock: libc::flock = unsafe { zeroed() };
    lock.l_type = if writable { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the lock lives during the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Names the processes that hold locks on `file`, as far as /proc shows them: the kernel itself does not tell the owner
/// of such a lock.
fn holders(file: &File) -> String {
    let Ok(metadata) = file.metadata() else { return "another process".into() };
    let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let place = format!(" {major:02x}:{minor:02x}:{} ", metadata.ino());
    let mut names = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let descriptors = fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten();
        let holds = descriptors
            .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
            .any(|text| text.lines().any(|line| line.starts_with("lock:") && line.contains(&place)));
        if holds && id == std::process::id() {
            names.push("another disk of this process".to_owned());
        } else if holds {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            names.push(format!("process {id} ({})", command.trim()));
        }
    }
    if names.is_empty() { "another process".into() } else { names.join(", ") }
}
