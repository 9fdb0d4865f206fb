//! A real backend for the tests: qemu-storage-daemon, where it is installed.
//!
//! Each test file uses a part of this.
#![allow(dead_code)]

use pollux_loadgen::{FrontEndOptions, LoadLimits};
use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const PROGRAM: &str = "qemu-storage-daemon";
/// How long a test waits for a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with sockets and images.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// `None`, with the reason printed: there is no backend to test with.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let found =
            Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status().is_ok_and(|end| end.success());
        if !found {
            eprintln!("SKIPPED: {test}: {PROGRAM} is not installed (Debian: qemu-utils)");
            return None;
        }
        Some(Place { folder: tempfile::tempdir().expect("a folder") })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image of zeroes.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).and_then(|file| file.set_len(bytes)).expect("an image");
        path
    }

    /// A backend that serves a device of no data.
    pub(crate) fn null(&self, socket: &str, more: &str) -> Backend {
        self.start(socket, "driver=null-co,node-name=n,size=67108864,read-zeroes=off", more)
    }

    /// A backend that serves an image.
    pub(crate) fn file(&self, socket: &str, image: &Path, more: &str) -> Backend {
        self.start(socket, &format!("driver=file,node-name=n,filename={}", image.display()), more)
    }

    fn start(&self, socket: &str, block: &str, more: &str) -> Backend {
        let socket = self.path(socket);
        let _ = fs::remove_file(&socket);
        let export = format!(
            "type=vhost-user-blk,id=e,addr.type=unix,addr.path={},node-name=n,num-queues=4,iothread=io,{more}",
            socket.display()
        );
        let child = Command::new(PROGRAM)
            .args(["--object", "iothread,id=io", "--blockdev", block, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .expect("the backend starts");
        let mut backend = Backend { child, socket };
        backend.wait_until_it_listens();
        backend
    }
}

/// A backend, ended with the test.
pub(crate) struct Backend {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Backend {
    fn wait_until_it_listens(&mut self) {
        let start = Instant::now();
        // It takes one front end at a time; this one goes at once.
        while UnixStream::connect(&self.socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "the backend listens");
            assert!(self.child.try_wait().expect("a child").is_none(), "the backend runs");
            thread::yield_now();
        }
    }

    /// Ends it without a chance to finish anything.
    pub(crate) fn kill(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the backend ends");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A front end of one queue, as most tests need it.
pub(crate) fn options() -> FrontEndOptions {
    FrontEndOptions { depth: 16, patience: PATIENCE, ..FrontEndOptions::default() }
}

/// Some requests, and patience for slow machines.
pub(crate) fn limits(requests: u64) -> LoadLimits {
    LoadLimits { depth: 16, requests: Some(requests), patience: PATIENCE, ..LoadLimits::default() }
}
