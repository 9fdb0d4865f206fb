//! Locks that keep other processes, and other instances in this one, off a file.
//!
//! They are open file description locks (`F_OFD_SETLK`): such a lock belongs to what the file was opened as, not to the
//! process, so that two instances in one process exclude each other too. QEMU's image locks are of the same kind.
//!
//! The kernel would release one with the last descriptor of that description. But a child that any thread of the
//! process has just forked has a copy of every descriptor until it executes its own program. So a [`FileLock`] is
//! released explicitly, which holds for all copies at once, and taken with [`PATIENCE`], as a holder that ends without
//! releasing it, a process that is killed or a program of another kind, may leave such a copy behind for a moment.
use crate::error::Error;
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long a lock that somebody holds is tried for: longer than a process has copies of descriptors that it has
/// closed.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// How often it is tried.
const INTERVAL: Duration = Duration::from_millis(5);

/// All bytes that a file can have.
pub const WHOLE_FILE: Range<i64> = 0..i64::MAX;

/// What the holder of a lock does with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads: others may read, too.
    Shared,
    /// Writes: nobody else has a lock.
    Exclusive,
}

/// A lock on bytes of a file, released when dropped. It keeps a descriptor of the file.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    bytes: Range<i64>,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Somebody else holds one.
    Held {
        /// Those who do, for a message.
        holders: String,
    },
    /// The kernel or the file system refuses.
    Io(io::Error),
}

impl FileLock {
    /// Locks `bytes`, which may lie beyond the end, of an open file. For [`Access::Exclusive`] it must have been opened
    /// for writing. If another holds a lock there, it is tried again for as long as `patience`.
    ///
    /// # Errors
    /// Another holds one, or the file system has no locks.
    pub fn take(file: &File, access: Access, bytes: Range<i64>, patience: Duration) -> Result<FileLock, LockError> {
        let file = file.try_clone().map_err(LockError::Io)?;
        let kind = match access {
            Access::Shared => libc::F_RDLCK,
            Access::Exclusive => libc::F_WRLCK,
        };
        let start = Instant::now();
        loop {
            match set(&file, kind, &bytes) {
                Ok(()) => return Ok(FileLock { file, bytes }),
                Err(error) if !is_held(&error) => return Err(LockError::Io(error)),
                Err(_) if start.elapsed() < patience => thread::sleep(INTERVAL),
                Err(_) => return Err(LockError::Held { holders: holders(&file) }),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // It was set on this file before, so it can be taken off.
        let _ = set(&self.file, libc::F_UNLCK, &self.bytes);
    }
}

impl LockError {
    /// The message for the operator of a plugin whose option `lock` says whether it locks the file at `path`.
    pub fn explain(self, path: &Path) -> Error {
        let shown = path.display();
        match self {
            LockError::Held { holders } => Error::new(format!(
                "{shown} is in use by {holders}; stop that first, give each its own image, or write lock = false if \
                 sharing is meant"
            )),
            LockError::Io(error) => Error::from_io(
                format_args!("cannot lock {shown} (write lock = false if its file system has no locks)"),
                error,
            ),
        }
    }
}

fn is_held(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn set(file: &File, kind: libc::c_int, bytes: &Range<i64>) -> io::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.end - bytes.start,
        // The kernel insists.
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop).map_err(io::Error::from)
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
    use std::{
        env,
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    /// A file of its own for the test, gone with it.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("pollux-{name}-{}", std::process::id()));
            fs::write(&path, [0; 4096]).expect("a file");
            Scratch(path)
        }

        fn open(&self) -> File {
            File::options().read(true).write(true).open(&self.0).expect("it opens")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn take(file: &File, access: Access) -> Result<FileLock, LockError> {
        FileLock::take(file, access, WHOLE_FILE, Duration::ZERO)
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let scratch = Scratch::new("shared");
        let (first, second) = (scratch.open(), scratch.open());
        let reader = take(&first, Access::Shared).expect("free");
        assert!(matches!(take(&second, Access::Exclusive), Err(LockError::Held { .. })));
        drop((take(&second, Access::Shared).expect("readers share"), reader));
        let _writer = take(&first, Access::Exclusive).expect("free");
        let message = take(&second, Access::Shared).expect_err("one writes").explain(&scratch.0).to_string();
        for words in ["pollux-shared", "is in use by another disk of this process", "lock = false"] {
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_child_that_has_a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let scratch = Scratch::new("copied");
        let file = scratch.open();
        let lock = take(&file, Access::Exclusive).expect("free");
        // As its standard error, the child has the very description that is locked; it tells when it is there.
        let mut child = Command::new("sh")
            .args(["-c", "echo there; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file.try_clone().expect("a descriptor"))
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line, "there\n");
        assert!(matches!(take(&scratch.open(), Access::Shared), Err(LockError::Held { .. })));
        drop((lock, file));
        let again = take(&scratch.open(), Access::Exclusive);
        assert!(again.is_ok(), "{again:?}");
        drop(child.stdin.take());
        child.wait().expect("it ends");
    }

    #[test]
    fn a_lock_that_is_released_in_a_moment_is_waited_for() {
        let scratch = Scratch::new("waited");
        let lock = take(&scratch.open(), Access::Exclusive).expect("free");
        let file = scratch.open();
        let next = thread::spawn(move || FileLock::take(&file, Access::Exclusive, WHOLE_FILE, Duration::from_secs(60)));
        drop(lock);
        next.join().expect("no panic").expect("it is released");
    }
}
