//! The lock that keeps other processes, and other disks of this one, off a medium.
//!
//! QEMU's image locks are of the same kind, but all of them are shared ones: a writer here and QEMU keep each other
//! off, and QEMU does not write to what a reader here has open. But a reader here is not kept off by a QEMU that is
//! writing: its lock looks like that of another reader.
//!
//! The lock has a descriptor of its own, since an io_uring keeps the files that were registered with it open for a
//! moment after it was closed: when a process was killed, the next one would find the medium still locked.
//!
//! That of a process which was killed is gone with it, though, while the kernel may still be doing its last writes: one
//! of them could come after a newer write of the next process, to the same block. So a writer holds a second lock by
//! the descriptor that its requests go through, which the kernel keeps open until the last of them is done. It is on a
//! byte of its own, far behind the end of any file; a clean close takes it off, as nothing is in flight any more.
use crate::access::cannot_open;
use pollux_abi::{
    block::Error,
    file_lock::{Access, FileLock, LockError, PATIENCE},
};
use std::{
    fs::{File, OpenOptions},
    ops::Range,
    path::Path,
    time::Duration,
};

/// Bytes that the first lock covers: all but the last one.
const MEDIUM: Range<i64> = 0..i64::MAX - 1;
/// The byte of the second lock.
const REQUESTS: Range<i64> = i64::MAX - 1..i64::MAX;
/// How long a writer waits for the last requests of a process that was killed.
const REQUESTS_PATIENCE: Duration = Duration::from_secs(60);

/// A lock on a medium, released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// On the descriptor that requests go through. Off before the other one, so that the next writer does not meet it.
    requests: Option<FileLock>,
    _medium: FileLock,
}

impl Lock {
    /// Locks `path`: for itself alone if `writable`, otherwise together with other readers.
    pub(crate) fn take(path: &Path, writable: bool) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(|error| cannot_open(path, writable, error))?;
        let access = if writable { Access::Exclusive } else { Access::Shared };
        let medium = FileLock::take(&file, access, MEDIUM, PATIENCE).map_err(|error| error.explain(path))?;
        Ok(Lock { requests: None, _medium: medium })
    }

    /// Locks the descriptor that requests go through, once those of a process that was killed have ended. If that takes
    /// long, `say` is told what is waited for.
    pub(crate) fn cover(&mut self, file: &File, path: &Path, say: impl FnOnce(String)) -> Result<(), Error> {
        let (shown, seconds) = (path.display(), REQUESTS_PATIENCE.as_secs());
        let take = |patience| FileLock::take(file, Access::Exclusive, REQUESTS, patience);
        let mut result = take(PATIENCE);
        if let Err(LockError::Held { .. }) = result {
            let what = "the kernel is still doing requests of a process that has ended";
            say(format!("{shown}: {what}; waiting for them, {seconds} s at most (not with lock = false)"));
            result = take(REQUESTS_PATIENCE);
        }
        self.requests = Some(result.map_err(|error| match error {
            LockError::Held { holders } => Error::new(format!(
                "the kernel has been doing requests of a process that has ended to {shown} for {seconds} s, or a \
                 program holds its lock there ({holders}); look at the device behind it, or write lock = false if \
                 nothing writes to it any more"
            )),
            error => error.explain(path),
        })?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    #[test]
    fn a_writer_waits_for_the_requests_of_one_that_was_killed() {
        let medium = tempfile::NamedTempFile::new().expect("a file");
        let open = || OpenOptions::new().read(true).write(true).open(medium.path()).expect("opens");
        // What the kernel keeps open for the last request of a process that has no lock any more.
        let in_flight = open();
        let its_lock = FileLock::take(&in_flight, Access::Exclusive, REQUESTS, PATIENCE).expect("a lock");
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
        drop((its_lock, in_flight));
        let (lock, file) = next.join().expect("no panic").expect("nothing is in flight");
        // A clean close lets go, whoever still has the file open.
        drop(lock);
        let mut again = Lock::take(medium.path(), true).expect("a lock");
        let waits = |line| panic!("{line}");
        again.cover(&open(), medium.path(), waits).expect("nothing is in flight");
        drop(file);
    }
}
