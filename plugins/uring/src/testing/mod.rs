//! Drives a backend through its `block/1` table as a host does, and checks what every backend must do.
//!
//! It knows no backend: the `mem` plugin's tests include this file too.
mod model;

pub(crate) use model::check_against_model;
use pollux_abi::{
    block::{Block, BlockInfo, BlockV1, Segment, table},
    block_v1::*,
    host_v1::{HostV1, POLLUX_LOG_TRACE},
    text::{Text, TextBuffer},
};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ffi::c_void,
    fs,
    marker::PhantomData,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    ptr::{null, null_mut},
    slice,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// An instance of the backend `B`, opened through its table.
pub(crate) struct Instance<B> {
    table: BlockV1,
    instance: *mut c_void,
    log: Box<Mutex<Vec<String>>>,
    _host: Box<HostV1>,
    backend: PhantomData<B>,
}

// SAFETY: only `[control]` calls go through an instance, and the tests make them on one thread.
unsafe impl<B> Sync for Instance<B> {}

unsafe extern "C" fn log(context: *mut c_void, level: u32, _target: Text, message: Text) {
    // SAFETY: the context is the instance's log, and the text lives during the call.
    let (log, message) = unsafe { (&*context.cast::<Mutex<Vec<String>>>(), message.as_str()) };
    log.lock().expect("nobody panics with this lock").push(format!("{level} {message}"));
}

unsafe extern "C" fn changed(_context: *mut c_void) {}

impl<B: Block> Instance<B> {
    pub(crate) fn open(options: &str) -> Result<Self, String> {
        Self::open_with(options, 0)
    }

    pub(crate) fn open_with(options: &str, flags: u32) -> Result<Self, String> {
        let table = table::<B>();
        let lines = Box::new(Mutex::new(Vec::new()));
        let host = Box::new(HostV1 {
            struct_size: size_of::<HostV1>() as u32,
            log_level: POLLUX_LOG_TRACE,
            context: (&raw const *lines).cast_mut().cast(),
            log,
            changed,
            reserved: [0; 4],
        });
        let arguments = BlockOpen {
            host: &raw const *host,
            name: Text::new("disk0"),
            options: Text::new(options),
            flags,
            reserved0: 0,
            reserved: [0; 4],
        };
        let mut instance = null_mut();
        with_reason(|error| {
            // SAFETY: the arguments are as block_v1 wants them.
            unsafe { (table.open)(&raw const arguments, &raw mut instance, error) }
        })?;
        Ok(Instance { table, instance, log: lines, _host: host, backend: PhantomData })
    }

    pub(crate) fn info(&self) -> BlockInfo {
        let mut info = BlockInfo::new(0);
        // SAFETY: the instance is open.
        assert_eq!(unsafe { (self.table.describe)(self.instance, &raw mut info) }, 0);
        info
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("nobody panics with this lock").join("\n")
    }

    pub(crate) fn statistics(&self) -> serde_json::Value {
        let mut room = [0; 4096];
        let mut text = TextBuffer::new(&mut room);
        // SAFETY: the instance is open.
        assert_eq!(unsafe { (self.table.statistics)(self.instance, &raw mut text) }, 0);
        serde_json::from_slice(&room[..text.length]).expect("statistics are JSON")
    }

    /// Announces memory as a region of a guest's.
    pub(crate) fn add_memory(&self, memory: &Memory) {
        let region = memory.region();
        // SAFETY: the tests keep the memory until they remove it or the instance is closed.
        with_reason(|error| unsafe { (self.table.memory_add)(self.instance, &raw const region, error) })
            .expect("no error");
    }

    pub(crate) fn remove_memory(&self, memory: &Memory) {
        let region = memory.region();
        // SAFETY: it was added.
        unsafe { (self.table.memory_remove)(self.instance, &raw const region) }
    }

    pub(crate) fn open_queue(&self, index: u32, depth: u32) -> Result<Queue, String> {
        let mut handle = BlockQueueHandle { queue: null_mut(), wake_fd: 0, reserved0: 0, reserved: [0; 2] };
        with_reason(|error| {
            // SAFETY: the instance is open.
            unsafe { (self.table.queue_open)(self.instance, index, depth, &raw mut handle, error) }
        })?;
        let none = BlockCompletion { token: 0, result: 0, reserved: 0 };
        let room = vec![none; depth as usize].into();
        Ok(Queue { table: self.table, handle, room, done: Vec::new(), started: false, next_token: 1 << 40 })
    }

    /// A queue that the calling thread owns.
    pub(crate) fn queue(&self, depth: u32) -> Queue {
        let mut queue = self.open_queue(0, depth).expect("queue_open");
        queue.start().expect("queue_start");
        queue
    }
}

impl<B> Drop for Instance<B> {
    fn drop(&mut self) {
        // SAFETY: the tests drop queues before their instance.
        unsafe { (self.table.close)(self.instance) }
    }
}

fn with_reason(call: impl FnOnce(*mut TextBuffer) -> i32) -> Result<(), String> {
    let mut room = [0; 4096];
    let mut error = TextBuffer::new(&mut room);
    match call(&raw mut error) {
        0 => Ok(()),
        result => {
            assert!(result < 0, "a failure is a negative errno, not {result}");
            let length = error.length;
            Err(String::from_utf8(room[..length].to_vec()).expect("the reason is UTF-8"))
        }
    }
}

/// Copies of all descriptors by which this process has the file at `path` open, as a child has them that was just
/// forked.
pub(crate) fn copies_of_descriptors(path: &Path) -> Vec<OwnedFd> {
    let path = path.canonicalize().expect("a path");
    let descriptors = fs::read_dir("/proc/self/fd").expect("a folder").map(|entry| entry.expect("an entry"));
    let of_the_file = descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path));
    let numbers = of_the_file.map(|entry| entry.file_name().to_str().expect("UTF-8").parse().expect("a number"));
    // SAFETY: the test's own instances keep these descriptors open meanwhile.
    numbers.map(|number| unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().expect("a copy")).collect()
}

/// A queue of an instance.
pub(crate) struct Queue {
    table: BlockV1,
    handle: BlockQueueHandle,
    room: Box<[BlockCompletion]>,
    /// Completions that nobody has taken yet.
    pub(crate) done: Vec<BlockCompletion>,
    started: bool,
    next_token: u64,
}

// SAFETY: a queue's calls come from one thread at a time, whichever owns it.
unsafe impl Send for Queue {}

impl Queue {
    pub(crate) fn start(&mut self) -> Result<(), String> {
        // SAFETY: the queue is open.
        with_reason(|error| unsafe { (self.table.queue_start)(self.handle.queue, error) })?;
        self.started = true;
        Ok(())
    }

    pub(crate) fn wake_fd(&self) -> i32 {
        self.handle.wake_fd
    }

    pub(crate) fn submit(&mut self, requests: &[BlockRequest]) -> usize {
        let (queue, submit) = (self.handle.queue, self.table.submit);
        // SAFETY: the queue is started on this thread; the tests keep the segments alive.
        let accepted = self.collect(|done| unsafe { submit(queue, requests.as_ptr(), requests.len() as u32, done) });
        usize::try_from(accepted).expect("the queue has not failed")
    }

    pub(crate) fn poll(&mut self) {
        let (queue, poll) = (self.handle.queue, self.table.poll);
        // SAFETY: the queue is started on this thread.
        let result = self.collect(|done| unsafe { poll(queue, done) });
        assert_eq!(result, 0, "the queue has not failed");
    }

    fn collect(&mut self, call: impl FnOnce(*mut BlockCompletions) -> i32) -> i32 {
        let mut completions =
            BlockCompletions { entries: self.room.as_mut_ptr(), capacity: self.room.len() as u32, count: 0 };
        let result = call(&raw mut completions);
        self.done.extend_from_slice(&self.room[..completions.count as usize]);
        result
    }

    /// Polls until `count` completions are there, and takes them.
    pub(crate) fn wait(&mut self, count: usize) -> Vec<BlockCompletion> {
        let begin = Instant::now();
        while self.done.len() < count {
            assert!(begin.elapsed() < DEADLINE, "{} of {count} completions came", self.done.len());
            self.poll();
        }
        self.done.drain(..).collect()
    }

    pub(crate) fn arm(&mut self, armed: bool) -> bool {
        // SAFETY: the queue is started on this thread.
        match unsafe { (self.table.arm)(self.handle.queue, armed as u32) } {
            0 => false,
            1 => true,
            result => panic!("arm returned {result}"),
        }
    }

    /// Sleeps on the wake fd; false if nothing came within `timeout`.
    pub(crate) fn sleep(&self, timeout: Duration) -> bool {
        let mut wake = libc::pollfd { fd: self.wake_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry is passed.
        unsafe { libc::poll(&raw mut wake, 1, timeout.as_millis() as i32) == 1 }
    }

    /// Does one request and returns its result. Nothing else may be in flight.
    pub(crate) fn run(&mut self, mut request: BlockRequest) -> i32 {
        request.token = self.next_token;
        self.next_token += 1;
        assert_eq!(self.submit(&[request]), 1);
        let done = self.wait(1);
        assert_eq!((done.len(), done[0].token), (1, request.token), "a request completes once");
        done[0].result
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> i32 {
        let memory = Memory::holding(data);
        self.run(transfer(POLLUX_BLOCK_WRITE, offset, &[memory.segment(0, data.len())]))
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let memory = Memory::new(length);
        let result = self.run(transfer(POLLUX_BLOCK_READ, offset, &[memory.segment(0, length)]));
        assert_eq!(result, 0, "read of {length} bytes at {offset}");
        memory.bytes().to_vec()
    }

    /// The worker gives the queue back, whatever is in flight. Returns what the backend does.
    pub(crate) fn stop(&mut self) -> i32 {
        if !std::mem::take(&mut self.started) {
            return 0;
        }
        // SAFETY: the queue is started on this thread.
        unsafe { (self.table.queue_stop)(self.handle.queue) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: the queue is stopped, and closed once.
        unsafe { (self.table.queue_close)(self.handle.queue) }
    }
}

/// Memory as a guest has it: page-aligned, and never seen as a Rust slice while requests are in flight.
pub(crate) struct Memory {
    base: *mut u8,
    layout: Layout,
}

// SAFETY: plain memory of its owner's.
unsafe impl Send for Memory {}

impl Memory {
    pub(crate) fn new(length: usize) -> Self {
        let layout = Layout::from_size_align(length.max(1), 4096).expect("a layout");
        // SAFETY: the layout has a size.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null());
        Memory { base, layout }
    }

    pub(crate) fn holding(data: &[u8]) -> Self {
        let mut memory = Self::new(data.len());
        memory.bytes_mut()[..data.len()].copy_from_slice(data);
        memory
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is initialised, and no request is in flight.
        unsafe { slice::from_raw_parts(self.base, self.layout.size()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { slice::from_raw_parts_mut(self.base, self.layout.size()) }
    }

    /// Maps new pages, full of zeroes, in the place of those that there are.
    pub(crate) fn replace_pages(&mut self) {
        let (length, protection) = (self.layout.size(), libc::PROT_READ | libc::PROT_WRITE);
        assert!(length.is_multiple_of(4096));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the pages are whole ones of this memory, which nobody else uses.
        let base = unsafe { libc::mmap(self.base.cast(), length, protection, flags, -1, 0) };
        assert_eq!(base, self.base.cast());
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    /// The memory as a region of a guest's.
    pub(crate) fn region(&self) -> MemoryRegion {
        MemoryRegion {
            guest_address: 0,
            base: self.base,
            length: self.layout.size(),
            file: -1,
            flags: 0,
            file_offset: 0,
            page_size: 4096,
            reserved: [0; 2],
        }
    }

    pub(crate) fn segment(&self, offset: usize, length: usize) -> Segment {
        assert!(offset + length <= self.layout.size());
        Segment { base: self.base.wrapping_add(offset), length }
    }

    /// Segments of the lengths given, each `gap` bytes after the one before, from `start` on.
    pub(crate) fn segments(&self, start: usize, gap: usize, lengths: &[usize]) -> Vec<Segment> {
        let mut offset = start;
        let mut segments = Vec::new();
        for &length in lengths {
            segments.push(self.segment(offset, length));
            offset += length + gap;
        }
        segments
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.base, self.layout) }
    }
}

/// A request without data.
pub(crate) fn request(operation: u32, offset: u64, length: u64, flags: u32) -> BlockRequest {
    BlockRequest {
        operation,
        flags,
        token: 0,
        offset,
        length,
        segments: null(),
        segment_count: 0,
        reserved0: 0,
        reserved: [0; 2],
    }
}

/// A read or write. The segments must outlive it.
pub(crate) fn transfer(operation: u32, offset: u64, segments: &[Segment]) -> BlockRequest {
    BlockRequest {
        segments: segments.as_ptr(),
        segment_count: segments.len() as u32,
        ..request(operation, offset, segments.iter().map(|segment| segment.length as u64).sum(), 0)
    }
}

/// A small generator of repeatable numbers (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// Writes and reads back with every kind of segment split: aligned, odd, empty segments, odd addresses.
pub(crate) fn check_segment_splits(queue: &mut Queue, block: usize) {
    let mut random = Random(7);
    let lengths = [block, 2 * block, 8 * block, 64 * block, 600 * block];
    for (round, &length) in lengths.iter().cycle().take(2 * lengths.len()).enumerate() {
        let offset = (round * 3 * block) as u64;
        // Odd rounds begin at odd addresses.
        let start = if round % 2 == 0 { 0 } else { 1 + round };
        for lengths in splits(length, block) {
            for gap in [0, 1, 512] {
                let room = start + length + lengths.len() * gap;
                let data = random.bytes(room);
                let source = Memory::holding(&data);
                let segments = source.segments(start, gap, &lengths);
                assert_eq!(queue.run(transfer(POLLUX_BLOCK_WRITE, offset, &segments)), 0, "{lengths:?}");
                let expected = gathered(&data, start, gap, &lengths);
                assert!(queue.read(offset, length) == expected, "write of {lengths:?}, gap {gap}, at {offset}");
                let target = Memory::new(room);
                let segments = target.segments(start, gap, &lengths);
                assert_eq!(queue.run(transfer(POLLUX_BLOCK_READ, offset, &segments)), 0, "{lengths:?}");
                let found = gathered(target.bytes(), start, gap, &lengths);
                assert!(found == expected, "read of {lengths:?}, gap {gap}, at {offset}");
                let mut outside = target.bytes().to_vec();
                let mut at = start;
                for length in &lengths {
                    outside[at..at + length].fill(0);
                    at += length + gap;
                }
                assert!(outside.iter().all(|&byte| byte == 0), "read of {lengths:?} touched bytes between segments");
            }
        }
    }
}

fn splits(length: usize, block: usize) -> Vec<Vec<usize>> {
    let mut splits = vec![
        vec![length],
        vec![1, length - 1],
        vec![length - 1, 1],
        vec![0, length, 0],
        vec![length / 2 - 1, 0, 2, length - length / 2 - 1],
        vec![511, length - 511],
    ];
    if length > block {
        splits.push(vec![block, length - block]);
        splits.push(vec![block - 1, 1, length - block]);
    }
    if length / block <= 1024 {
        splits.push(vec![block; length / block]);
    }
    splits
}

fn gathered(bytes: &[u8], start: usize, gap: usize, lengths: &[usize]) -> Vec<u8> {
    let mut at = start;
    let mut result = Vec::new();
    for length in lengths {
        result.extend_from_slice(&bytes[at..at + length]);
        at += length + gap;
    }
    result
}
