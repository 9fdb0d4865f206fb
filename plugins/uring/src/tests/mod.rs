//! What a host sees of the backend, through its `block/1` table.
use crate::{
    Options, Uring,
    image::Image,
    opening,
    protocol::Files,
    ring::SetUp,
    ring_queue::RingQueue,
    testing::{Instance, Queue},
};
use pollux_abi::block::{Block, BlockInfo, Error, OpenContext};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tempfile::TempDir;

mod background;
mod device;
mod end;
mod flush;
mod format;
mod nvme;
mod open;
mod parts;
mod registered;
mod short_of_threads;
mod sync;
mod transfer;
mod worker;

/// A folder with an image of `size` bytes, and the options that open it.
struct Fixture {
    folder: TempDir,
    path: PathBuf,
}

impl Fixture {
    fn new(size: u64) -> Self {
        Self::within(tempfile::tempdir().expect("a folder"), size)
    }

    /// With data on the disk, so that direct reads take their time.
    fn filled(size: usize) -> Self {
        let fixture = Self::new(0);
        std::fs::write(&fixture.path, vec![3; size]).expect("written");
        File::open(&fixture.path).expect("it opens").sync_all().expect("synced");
        fixture
    }

    /// On a tmpfs, which lacks FALLOC_FL_ZERO_RANGE.
    fn on_tmpfs(size: u64) -> Self {
        Self::within(tempfile::tempdir_in("/dev/shm").expect("a folder"), size)
    }

    fn within(folder: TempDir, size: u64) -> Self {
        let path = folder.path().join("disk.img");
        File::create(&path).expect("created").set_len(size).expect("resized");
        Fixture { folder, path }
    }

    fn options(&self, direct: bool) -> String {
        options(&self.path, direct)
    }

    fn open_with(&self, direct: bool, engine: &str) -> Instance<Uring> {
        Instance::open(&with_engine(&self.path, direct, engine)).expect("it opens")
    }

    fn open(&self, direct: bool) -> Instance<Uring> {
        Instance::open(&self.options(direct)).expect("it opens")
    }
}

fn options(path: &Path, direct: bool) -> String {
    format!(r#"{{"path": {path:?}, "direct": {direct}}}"#)
}

fn with_engine(path: &Path, direct: bool, engine: &str) -> String {
    format!(r#"{{"path": {path:?}, "direct": {direct}, "engine": "{engine}"}}"#)
}

/// The backend on an older kernel: ring `SetUp::ALL[SET_UP]` and no better one.
struct Older<const SET_UP: usize>(Arc<Image>);

impl<const SET_UP: usize> Block for Older<SET_UP> {
    type Options = Options;
    type Queue = RingQueue<Files>;

    fn open(options: Options, context: &OpenContext) -> Result<Self, Error> {
        Ok(Older(Arc::new(opening::open(&options, context)?)))
    }
    fn info(&self) -> BlockInfo {
        self.0.info()
    }
    fn open_queue(&self, _index: u32, depth: u32) -> Result<RingQueue<Files>, Error> {
        RingQueue::open_with(self.0.clone(), depth, SetUp::ALL[SET_UP], Files::default())
            .map_err(|error| Error::from_io("", error))
    }
}

fn is_root() -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::geteuid() == 0 }
}

/// Runs a command of the system; `None`, with the reason printed, if it fails.
fn system(command: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(command).args(arguments).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(output) => {
            println!("{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
            None
        }
        Err(error) => {
            println!("{command}: {error}");
            None
        }
    }
}

/// Bytes of the file system that the file takes.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().expect("metadata").blocks() * 512
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn checked(queue: &mut Queue, request: pollux_abi::block_v1::BlockRequest) {
    assert_eq!(queue.run(request), 0, "{request:?}");
}
