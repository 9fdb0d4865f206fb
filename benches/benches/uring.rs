//! What the plugin `uring` costs above the calls to the kernel that it makes: its queue, called as a device calls it, and a bare
//! loop that does the same reads, in turns.
//!
//! `cargo bench --bench uring` prints nanoseconds per read of both, the ratio of each round, and instructions in user space, which
//! callgrind counts and a noisy machine does not change. Files lie in the folder that `POLLUX_BENCH_FOLDER` names (the temporary
//! one if it is not set) and in /dev/shm. Direct reads are compared only where the folder's file system takes them.
#![allow(missing_docs)]
use io_uring::{IoUring, opcode, types::Fixed};
use pollux_abi::block_v1::{BlockRequest, Segment};
use pollux_benches::{BLOCK_BYTES, backend, callgrind, median};
use pollux_core::{memory::GuestMemory, plugin::BackendQueue};
use std::{
    env, fs,
    fs::File,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::Instant,
};

/// Reads of each measurement.
const READS: u64 = 40_000;
/// Reads of the shorter run under callgrind.
const COUNTED_READS: u64 = 3200;
const ROUNDS: usize = 9;
const DEPTHS: [usize; 3] = [1, 8, 32];
const FILE_BYTES: u64 = 16 << 20;
const O_DIRECT: i32 = 0o40000;

/// A file and the way to its bytes.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    in_memory: bool,
    direct: bool,
    /// The loops look for the end of reads again and again: their instructions say nothing, and they make fewer reads.
    waits: bool,
    /// Of the plugin.
    engine: &'static str,
    /// The bare loop makes one `pread` a read.
    bare_pread: bool,
    /// More options of the plugin.
    options: &'static str,
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

const CASES: [Case; 6] = [
    Case { name: "tmpfs, pread", in_memory: true, engine: "auto", bare_pread: true, ..CASE },
    Case { name: "tmpfs, io_uring", in_memory: true, waits: true, ..CASE },
    Case { name: "page cache, io_uring", ..CASE },
    Case { name: "page cache, pread", engine: "sync", bare_pread: true, ..CASE },
    Case { name: "direct, io_uring", direct: true, waits: true, ..CASE },
    Case { name: "direct, registered", direct: true, waits: true, options: r#", "register_memory": true"#, ..CASE },
];

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        let number = |index: usize| arguments[at + index].parse::<u64>().expect("a number");
        let (case, depth) = (CASES[number(1) as usize], number(2) as usize);
        let file = Path::new(&arguments[at + 5]);
        match number(3) {
            0 => Bare::new(case, file, depth).run(number(4)),
            _ => Plugin::new(case, file, depth).run(number(4)),
        };
        return;
    }
    let is_test = !arguments.iter().any(|argument| argument == "--bench");
    let reads = if is_test { 64 } else { READS };
    println!(
        "4 KiB random reads; nanoseconds per read are medians of {ROUNDS} rounds in turns; the ratio's spread is all of them"
    );
    println!(
        "{:<22} {:>5} {:>9} {:>9} {:>22} {:>12} {:>12}",
        "", "depth", "bare ns", "plugin ns", "ratio", "bare instr.", "plugin instr."
    );
    for (index, case) in CASES.iter().enumerate() {
        let folder = folder(case.in_memory);
        let path = folder.path().join("disk.img");
        fs::write(&path, vec![7; FILE_BYTES as usize]).expect("a file");
        File::open(&path).expect("the file").sync_all().expect("on disk");
        if File::options().read(true).custom_flags(if case.direct { O_DIRECT } else { 0 }).open(&path).is_err() {
            println!("{:<22} skipped: {} takes no direct I/O", case.name, path.display());
            continue;
        }
        for depth in DEPTHS {
            compare(index, depth, &path, if case.waits { reads / 8 } else { reads }, is_test);
        }
    }
}

fn folder(in_memory: bool) -> tempfile::TempDir {
    let place = match env::var_os("POLLUX_BENCH_FOLDER") {
        _ if in_memory => PathBuf::from("/dev/shm"),
        Some(place) => place.into(),
        None => env::temp_dir(),
    };
    tempfile::tempdir_in(place).expect("a folder")
}

/// Measures both in turns, and prints a row.
fn compare(index: usize, depth: usize, path: &Path, reads: u64, is_test: bool) {
    let case = CASES[index];
    let (mut bare, mut plugin) = (Bare::new(case, path, depth), Plugin::new(case, path, depth));
    let per_read = |run: &mut dyn FnMut(u64)| {
        let begin = Instant::now();
        run(reads);
        begin.elapsed().as_nanos() as f64 / reads as f64
    };
    let (mut bares, mut plugins, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if is_test { 1 } else { ROUNDS } {
        let (first, second) = (per_read(&mut |reads| bare.run(reads)), per_read(&mut |reads| plugin.run(reads)));
        bares.push(first);
        plugins.push(second);
        ratios.push(second / first);
    }
    ratios.sort_by(f64::total_cmp);
    let spread = format!("{:.2} ({:.2} to {:.2})", ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1]);
    drop((bare, plugin));
    let counted = [0, 1].map(|which| if is_test { None } else { instructions(index, depth, which, path) });
    let [bare_count, plugin_count] = counted.map(|count| count.map_or("-".to_owned(), |count| format!("{count:.0}")));
    let (bare, plugin) = (median(&mut bares), median(&mut plugins));
    println!("{:<22} {depth:>5} {bare:>9.0} {plugin:>9.0} {spread:>22} {bare_count:>12} {plugin_count:>12}", case.name);
}

/// A small generator of repeatable offsets (a linear congruential one).
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
struct Plugin {
    queue: BackendQueue,
    requests: Vec<BlockRequest>,
    offsets: Offsets,
    _guest: GuestMemory,
}

impl Plugin {
    fn new(case: Case, path: &Path, depth: usize) -> Self {
        let Case { direct, engine, options, .. } = case;
        let options =
            format!(r#"{{"path": {path:?}, "direct": {direct}, "engine": "{engine}", "lock": false{options}}}"#);
        let backend = backend("uring", &options);
        let guest = GuestMemory::create(&[(0, depth as u64 * BLOCK_BYTES)], None).expect("guest memory");
        backend.add_memory(&guest).expect("the memory is announced");
        let memory = guest.regions()[0].base;
        let mut queue = backend.open_queue(0, depth as u32).expect("a queue");
        queue.start().expect("the queue starts");
        let requests = (0..depth)
            .map(|slot| {
                let base = memory.wrapping_add(slot * BLOCK_BYTES as usize);
                let segment: &[Segment] = vec![Segment { base, length: BLOCK_BYTES as usize }].leak();
                BlockRequest {
                    operation: 0,
                    flags: 0,
                    token: slot as u64,
                    offset: 0,
                    length: BLOCK_BYTES,
                    segments: segment.as_ptr(),
                    segment_count: 1,
                    reserved0: 0,
                    reserved: [0; 2],
                }
            })
            .collect();
        Plugin { queue, requests, offsets: Offsets(1), _guest: guest }
    }

    fn run(&mut self, reads: u64) {
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
struct Bare {
    file: File,
    /// None: it makes one `pread` a read.
    ring: Option<IoUring>,
    memory: *mut u8,
    depth: usize,
    offsets: Offsets,
}

impl Bare {
    fn new(case: Case, path: &Path, depth: usize) -> Self {
        let flags = if case.direct { O_DIRECT } else { 0 };
        let file = File::options().read(true).custom_flags(flags).open(path).expect("the file");
        let ring = (!case.bare_pread).then(|| {
            let mut builder = IoUring::builder();
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
            let ring: IoUring = builder.build(depth.next_power_of_two() as u32).expect("a ring");
            ring.submitter().register_files(&[file.as_raw_fd()]).expect("a registered file");
            ring
        });
        Bare { file, ring, memory: memory(depth), depth, offsets: Offsets(1) }
    }

    fn run(&mut self, reads: u64) {
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

/// Instructions in user space of one read; `None` where callgrind does not run.
fn instructions(index: usize, depth: usize, which: u64, path: &Path) -> Option<f64> {
    if CASES[index].waits {
        return None;
    }
    let arguments = |reads: u64| {
        let numbers = [index as u64, depth as u64, which, reads].map(|number| number.to_string().into());
        numbers.into_iter().chain([path.into()]).collect()
    };
    callgrind::per_round("device_turn", COUNTED_READS, arguments).inspect_err(|why| println!("{why}")).ok()
}
