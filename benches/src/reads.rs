//! Random reads of 4 KiB from a file: by the plugin `uring`, its queue called as a device calls it, and by a bare loop
//! that does the same reads and nothing else.
use crate::backend::{BLOCK_BYTES, backend, started_reads};
use io_uring::{IoUring, opcode, types::Fixed};
use pollux_abi::block_v1::BlockRequest;
use pollux_core::{memory::GuestMemory, plugin::BackendQueue};
use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Depths that are compared.
pub const DEPTHS: [usize; 3] = [1, 8, 32];
const FILE_BYTES: u64 = 16 << 20;

/// A file and the way to its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name in a table.
    pub name: &'static str,
    /// The file is on tmpfs.
    pub in_memory: bool,
    /// Past the page cache.
    pub direct: bool,
    /// The loops look for the end of reads again and again: their instructions say nothing, and they make fewer reads.
    pub waits: bool,
    /// Of the plugin.
    pub engine: &'static str,
    /// The bare loop makes one `pread` a read.
    pub bare_pread: bool,
    /// More options of the plugin.
    pub options: &'static str,
}

const CASE: Case = Case {
    name: "",
    in_memory: false,
    direct: false,
    waits: false,
    engine: "io_uring",
    bare_pread: false,
    options: "",
};

/// All that is compared.
pub const CASES: [Case; 6] = [
    Case { name: "tmpfs, pread", in_memory: true, engine: "auto", bare_pread: true, ..CASE },
    Case { name: "tmpfs, io_uring", in_memory: true, waits: true, ..CASE },
    Case { name: "page cache, io_uring", ..CASE },
    Case { name: "page cache, pread", engine: "sync", bare_pread: true, ..CASE },
    Case { name: "direct, io_uring", direct: true, waits: true, ..CASE },
    Case { name: "direct, registered", direct: true, waits: true, options: r#", "register_memory": true"#, ..CASE },
];

/// A file to be read, full of data, in a folder that goes with it.
#[derive(Debug)]
pub struct Medium {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Medium {
    /// On tmpfs or in `place`.
    ///
    /// # Errors
    /// It cannot be made; or (`direct`) the file system takes no direct I/O.
    pub fn new(case: &Case, place: &Path) -> io::Result<Self> {
        let folder = tempfile::tempdir_in(if case.in_memory { Path::new("/dev/shm") } else { place })?;
        let path = folder.path().join("disk.img");
        fs::write(&path, vec![7; FILE_BYTES as usize])?;
        File::open(&path)?.sync_all()?;
        File::options().read(true).custom_flags(flags(case)).open(&path)?;
        Ok(Medium { _folder: folder, path })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn flags(case: &Case) -> i32 {
    if case.direct { libc::O_DIRECT } else { 0 }
}

/// A small generator of repeatable offsets (a linear congruential one).
#[derive(Debug)]
struct Offsets(u64);

impl Offsets {
    #[inline]
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % (FILE_BYTES / BLOCK_BYTES) * BLOCK_BYTES
    }
}

/// Page-aligned memory that is never given back.
fn memory(depth: usize) -> *mut u8 {
    let length = (depth + 1) * BLOCK_BYTES as usize;
    let memory = vec![0_u8; length].leak();
    memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(BLOCK_BYTES as usize))
}

/// The plugin's queue and `depth` reads, a round at a time.
#[derive(Debug)]
pub struct Plugin {
    queue: BackendQueue,
    requests: Vec<BlockRequest>,
    offsets: Offsets,
    _guest: GuestMemory,
}

impl Plugin {
    /// Of the file at `path`.
    pub fn new(case: Case, path: &Path, depth: usize) -> Self {
        let Case { direct, engine, options, .. } = case;
        let options =
            format!(r#"{{"path": {path:?}, "direct": {direct}, "engine": "{engine}", "lock": false{options}}}"#);
        let backend = backend("uring", &options);
        let (queue, requests, guest) = started_reads(&backend, depth);
        Plugin { queue, requests, offsets: Offsets(1), _guest: guest }
    }

    /// Reads so often, `depth` at a time.
    pub fn run(&mut self, reads: u64) {
        for _ in 0..reads / self.requests.len() as u64 {
            for (slot, request) in self.requests.iter_mut().enumerate() {
                request.token = slot as u64;
                request.offset = self.offsets.next();
            }
            self.device_turn();
        }
    }

    /// What is counted. A symbol of its own, for callgrind to find.
    #[inline(never)]
    fn device_turn(&mut self) {
        assert_eq!(self.queue.submit(&mut self.requests).expect("submit"), self.requests.len());
        self.check();
        while self.queue.in_flight() > 0 {
            self.queue.poll().expect("poll");
            self.check();
        }
    }

    fn check(&self) {
        for index in 0..self.queue.completed() {
            assert_eq!(self.queue.completion(index).result, 0);
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.queue.stop().expect("the queue stops");
    }
}

/// A loop that does the same reads and nothing else.
pub struct Bare {
    file: File,
    /// None: it makes one `pread` a read.
    ring: Option<IoUring>,
    memory: *mut u8,
    depth: usize,
    offsets: Offsets,
}

impl Bare {
    /// Of the file at `path`.
    pub fn new(case: Case, path: &Path, depth: usize) -> Self {
        let file = File::options().read(true).custom_flags(flags(&case)).open(path).expect("the file");
        let ring = (!case.bare_pread).then(|| {
            let mut builder = IoUring::builder();
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
            let ring: IoUring = builder.build(depth.next_power_of_two() as u32).expect("a ring");
            ring.submitter().register_files(&[file.as_raw_fd()]).expect("a registered file");
            ring
        });
        Bare { file, ring, memory: memory(depth), depth, offsets: Offsets(1) }
    }

    /// Reads so often, `depth` at a time.
    pub fn run(&mut self, reads: u64) {
        for _ in 0..reads / self.depth as u64 {
            if self.ring.is_some() { self.device_turn() } else { self.device_turn_of_preads() }
        }
    }

    #[inline(never)]
    fn device_turn(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let (submitter, mut submission, mut completion) = ring.split();
        for slot in 0..self.depth {
            let base = self.memory.wrapping_add(slot * BLOCK_BYTES as usize);
            let read = opcode::Read::new(Fixed(0), base, BLOCK_BYTES as u32).offset(self.offsets.next());
            // SAFETY: the memory is the loop's own and never given back.
            unsafe { submission.push(&read.build().user_data(slot as u64)) }.expect("room in the ring");
        }
        submission.sync();
        let mut left = self.depth;
        while left > 0 {
            if !submission.is_empty() || submission.taskrun() {
                submitter.submit().expect("submit");
                submission.sync();
            }
            completion.sync();
            for entry in &mut completion {
                assert_eq!(entry.result(), BLOCK_BYTES as i32);
                left -= 1;
            }
        }
    }

    #[inline(never)]
    fn device_turn_of_preads(&mut self) {
        for slot in 0..self.depth {
            let base = self.memory.wrapping_add(slot * BLOCK_BYTES as usize);
            let offset = self.offsets.next() as i64;
            // SAFETY: the memory is the loop's own, and has room for a block in each slot.
            let read = unsafe { libc::pread(self.file.as_raw_fd(), base.cast(), BLOCK_BYTES as usize, offset) };
            assert_eq!(read, BLOCK_BYTES as isize);
        }
    }
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Bare").field("depth", &self.depth).finish_non_exhaustive()
    }
}
