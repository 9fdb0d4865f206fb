//! The lock that keeps other processes, and other disks of this one, off a medium.
//!
//! It is an open file description lock (`F_OFD_SETLK`): it belongs to the descriptor and not to the process, so that
//! two instances in one process exclude each other too. QEMU's image locks are of the same kind, but all of them are
//! shared ones: a writer here and QEMU keep each other off, and QEMU does not write to what a reader here has open. But
//! a reader here is not kept off by a QEMU that is writing: its lock looks like that of another reader.
//!
//! The lock has a descriptor of its own, since an io_uring keeps the files that were registered with it open for a
//! moment after it was closed: the medium would still be locked when the next instance opens it.
//!
//! That of a process which was killed is gone with it, though, while the kernel may still be doing its last writes: one
//! of them could come after a newer write of the next process, to the same block. So a writer holds a second lock by
//! the descriptor that its requests go through, which the kernel keeps open until the last of them is done. It is on a
//! byte of its own, far behind the end of any file; a clean close takes it off.
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

/// Bytes that the first lock covers: all but the last one.
const MEDIUM: (i64, i64) = (0, i64::MAX - 1);
/// The byte of the second lock: start and length.
const REQUESTS: (i64, i64) = (i64::MAX - 1, 1);
/// How long a writer waits for the last requests of a process that was killed.
const REQUESTS_PATIENCE: Duration = Duration::from_secs(60);

/// A lock on a medium, released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    /// The descriptor that requests go through, locked as well.
    requests: Option<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.requests {
            // Whatever keeps the file open after this has nothing in flight any more.
            let _ = set_lock(file, libc::F_UNLCK, REQUESTS);
        }
    }
}

impl Lock {
    /// Locks `path`: for itself alone if `writable`, otherwise together with other readers.
    pub(crate) fn take(path: &Path, writable: bool) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(|error| cannot_open(path, writable, error))?;
        let kind = if writable { libc::F_WRLCK } else { libc::F_RDLCK };
        match lock_patiently(&file, kind, MEDIUM, CLAIM_PATIENCE) {
            Ok(()) => Ok(Lock { _file: file, requests: None }),
            Err(error) if is_held(&error) => Err(Error::new(format!(
                "{} is in use by {}; stop that first, give each its own image, or write lock = false if sharing is \
                 meant",
                path.display(),
                holders(&file)
            ))),
            Err(error) => Err(cannot_lock(path, error)),
        }
    }

    /// Locks the descriptor that requests go through, once those of a process that was killed have ended. If that takes
    /// long, `say` is told what is waited for.
    pub(crate) fn cover(&mut self, file: &File, path: &Path, say: impl FnOnce(String)) -> Result<(), Error> {
        let (shown, patience) = (path.display(), REQUESTS_PATIENCE.as_secs());
        let failed = |error| cannot_lock(path, error);
        let file = file.try_clone().map_err(failed)?;
        let mut result = lock_patiently(&file, libc::F_WRLCK, REQUESTS, CLAIM_PATIENCE);
        if result.as_ref().is_err_and(is_held) {
            let what = "the kernel is still doing requests of a process that has ended";
            say(format!("{shown}: {what}; waiting for them, {patience} s at most (not with lock = false)"));
            result = lock_patiently(&file, libc::F_WRLCK, REQUESTS, REQUESTS_PATIENCE);
        }
        match result {
            Ok(()) => self.requests = Some(file),
            Err(error) if is_held(&error) => {
                return Err(Error::new(format!(
                    "the kernel has been doing requests of a process that has ended to {shown} for {patience} s, or a \
                     program holds its lock there ({}); look at the device behind it, or write lock = false if nothing \
                     writes to it any more",
                    holders(&file)
                )));
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }
}

fn cannot_lock(path: &Path, error: io::Error) -> Error {
    let shown = path.display();
    Error::from_io(format_args!("cannot lock {shown} (write lock = false if its file system has no locks)"), error)
}

/// Locks `file`. A lock that is held now may be free in a moment: a child that its holder has just forked has it, too,
/// until it executes its own program.
fn lock_patiently(file: &File, kind: libc::c_int, range: (i64, i64), patience: Duration) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match set_lock(file, kind, range) {
            Err(error) if is_held(&error) && start.elapsed() < patience => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn is_held(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// Sets a lock on a range: its first byte, and how many.
fn set_lock(file: &File, kind: libc::c_int, range: (i64, i64)) -> io::Result<()> {
    // SAFETY: an all-zero flock is a value of the type.
    let mut lock: libc::flock = unsafe { zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = range;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_writer_waits_for_the_requests_of_one_that_was_killed() {
        let medium = tempfile::NamedTempFile::new().expect("a file");
        let open = || OpenOptions::new().read(true).write(true).open(medium.path()).expect("opens");
        // What the kernel keeps open for the last request of a process that has no lock any more.
        let in_flight = open();
        set_lock(&in_flight, libc::F_WRLCK, REQUESTS).expect("a lock");
        let path = medium.path().to_owned();
        let (say, said) = mpsc::channel();
        let next = thread::spawn(move || {
            let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
            let mut lock = Lock::take(&path, true).expect("its holder is gone");
            lock.cover(&file, &path, |line| say.send(line).expect("heard")).map(|()| (lock, file))
        });
        let line = said.recv_timeout(Duration::from_secs(60)).expect("it says what it waits for");
        assert!(line.contains("waiting for them, 60 s at most (not with lock = false)"), "{line}");
        assert!(!next.is_finished(), "a request is in flight");
        drop(in_flight);
        let (lock, file) = next.join().expect("no panic").expect("nothing is in flight");
        // A clean close lets go, whoever still has the file open.
        drop(lock);
        let mut again = Lock::take(medium.path(), true).expect("a lock");
        let waits = |line| panic!("{line}");
        again.cover(&open(), medium.path(), waits).expect("nothing is in flight");
        drop(file);
    }
}
