//! The safe traits that the author of a block backend implements, and the guard between them and the host.
//!
//! The guard catches every panic of the author's code: the call then fails, the host completes what was in flight with
//! an I/O error and tells the guest that the device needs a reset. Nothing else is disturbed.
use crate::{
    block_v1::*,
    guard::{Guarded, guard, guard_with_reason},
    host::Host,
    options,
    plugin::Provides,
    text::TextBuffer,
};
pub use crate::{
    block_v1::{BlockInfo, BlockV1},
    error::{EINVAL, EIO, ENOTSUP, EROFS, Error},
    memory_region::MemoryRegion,
    segment::Segment,
};
use serde::de::DeserializeOwned;
use std::{ffi::c_void, os::fd::RawFd};

/// What `open` may know about its instance.
#[derive(Clone, Debug)]
pub struct OpenContext {
    /// The host's services for this instance.
    pub host: Host,
    /// The instance's name in the configuration, such as `disk0`.
    pub name: String,
    /// Never write.
    pub read_only: bool,
    /// The instance is only described and closed again: take no lock and change nothing.
    pub probe: bool,
}

/// A block backend: one opened medium. `[control]` calls, one at a time.
pub trait Block: Send + Sync + Sized + 'static {
    /// The `options` of the configuration. Derive `serde::Deserialize` and `deny_unknown_fields`.
    type Options: DeserializeOwned;
    /// A queue of this backend.
    type Queue: BlockQueue;

    /// Opens the medium that `options` names.
    fn open(options: Self::Options, context: &OpenContext) -> Result<Self, Error>;
    /// What the medium is like.
    fn info(&self) -> BlockInfo;
    /// Makes queue `index` for at most `depth` requests in flight.
    fn open_queue(&self, index: u32, depth: u32) -> Result<Self::Queue, Error>;
    /// The plugin's own counters, as a JSON object.
    fn statistics(&self) -> String {
        "{}".into()
    }
    /// A region of guest memory is there to be registered. May come while queues run.
    fn memory_added(&self, _region: &MemoryRegion) -> Result<(), Error> {
        Ok(())
    }
    /// A region goes away. No request in flight points into it.
    fn memory_removed(&self, _region: &MemoryRegion) {}
}

/// One queue of a backend. `submit`, `poll` and `arm` run on the polling core and must not block.
pub trait BlockQueue: Send + 'static {
    /// The calling thread owns the queue from now on.
    fn start(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// Takes requests in order and returns how many; fewer means "full". A request that completes at once may be
    /// put into `done` right away.
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize;
    /// Puts what has completed into `done`.
    fn poll(&mut self, done: &mut Completions);
    /// A file descriptor that becomes readable when an armed queue has completions.
    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
    /// With `true`: the worker is about to sleep on `wake_fd`; returns whether there are completions already.
    fn arm(&mut self, _armed: bool) -> bool {
        false
    }
    /// The worker gives the queue back. Nothing is in flight, unless the queue has failed: then end what is, since the
    /// guest will use its memory again. Called even after a panic.
    ///
    /// # Errors
    /// Something may still touch the memory of a request. The host keeps queue and memory for ever then.
    fn stop(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl BlockInfo {
    /// A medium of `capacity` bytes with 512-byte blocks, all operations and no limits.
    pub fn new(capacity: u64) -> Self {
        BlockInfo {
            capacity,
            identity_device: 0,
            identity_object: 0,
            logical_block_size: 512,
            physical_block_size: 512,
            minimum_io_size: 0,
            optimal_io_size: 0,
            operations: 0x1f,
            flags: 0,
            maximum_transfer: 0,
            maximum_segments: 0,
            maximum_discard: 0,
            discard_alignment: 0,
            maximum_write_zeroes: 0,
            maximum_queues: 0,
            reserved: [0; 8],
        }
    }

    /// Whether the backend offers `operation`, one of `POLLUX_BLOCK_READ` and so on.
    pub fn offers(&self, operation: u32) -> bool {
        operation < 32 && self.operations & 1 << operation != 0
    }

    /// Whether writes fail.
    pub fn is_read_only(&self) -> bool {
        self.flags & POLLUX_BLOCK_INFO_READ_ONLY != 0
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into the segments.
    Read,
    /// Write from the segments.
    Write,
    /// Make completed writes durable.
    Flush,
    /// Forget a range.
    Discard,
    /// Make a range read as zeroes.
    WriteZeroes,
}

/// One request. It may be copied and kept until it completes; its segments stay valid until then, no longer.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Request(BlockRequest);

// SAFETY: a request travels with its queue, and the segments it points to may be accessed from any thread.
unsafe impl Send for Request {}

impl Request {
    /// Names the request in its completion.
    #[inline]
    pub fn token(&self) -> u64 {
        self.0.token
    }

    /// What is asked for; `None` for an operation that this version of the crate does not know: complete it with
    /// `ENOTSUP`.
    #[inline]
    pub fn operation(&self) -> Option<Operation> {
        Some(match self.0.operation {
            POLLUX_BLOCK_READ => Operation::Read,
            POLLUX_BLOCK_WRITE => Operation::Write,
            POLLUX_BLOCK_FLUSH => Operation::Flush,
            POLLUX_BLOCK_DISCARD => Operation::Discard,
            POLLUX_BLOCK_WRITE_ZEROES => Operation::WriteZeroes,
            _ => return None,
        })
    }

    /// First byte on the medium.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Length in bytes.
    #[inline]
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// Whether the data must be durable when the request completes.
    #[inline]
    pub fn is_fua(&self) -> bool {
        self.0.flags & POLLUX_BLOCK_FUA != 0
    }

    /// Whether write-zeroes may deallocate the range.
    #[inline]
    pub fn may_unmap(&self) -> bool {
        self.0.flags & POLLUX_BLOCK_UNMAP != 0
    }

    /// The data. It lies in guest memory: the guest may change it at any time, so read a byte once and never make a
    /// Rust slice of it. [`copy_to`](Self::copy_to) and its kin do it right.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        if self.0.segment_count == 0 {
            return &[];
        }
        // SAFETY: the host keeps the array valid until the request completes, and a request is not used after that.
        unsafe { std::slice::from_raw_parts(self.0.segments, self.0.segment_count as usize) }
    }

    /// Writes `source` to the segments, for a read. Stops at the end of the shorter one.
    #[inline]
    pub fn copy_from(&self, mut source: &[u8]) {
        for segment in self.segments() {
            let length = segment.length.min(source.len());
            // SAFETY: the host checked the segment; the source cannot overlap it, since no Rust slice covers guest
            // memory.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), segment.base, length) };
            source = &source[length..];
        }
    }

    /// Reads the segments into `target`, for a write. Stops at the end of the shorter one.
    #[inline]
    pub fn copy_to(&self, mut target: &mut [u8]) {
        for segment in self.segments() {
            let length = segment.length.min(target.len());
            // SAFETY: as in `copy_from`.
            unsafe { std::ptr::copy_nonoverlapping(segment.base, target.as_mut_ptr(), length) };
            target = &mut target[length..];
        }
    }
}

/// Where completions go. There is room for every request in flight.
#[repr(transparent)]
#[derive(Debug)]
pub struct Completions(BlockCompletions);

impl Completions {
    /// Completes the request named `token`: 0, or a negative errno such as `-EIO`. Each accepted request completes
    /// once.
    #[inline]
    pub fn complete(&mut self, token: u64, result: i32) {
        assert!(self.0.count < self.0.capacity, "more completions than requests in flight");
        // SAFETY: the host provides `capacity` entries, and `count` is below it.
        unsafe { self.0.entries.add(self.0.count as usize).write(BlockCompletion { token, result, reserved: 0 }) };
        self.0.count += 1;
    }

    /// Completes the request named `token` with success.
    #[inline]
    pub fn success(&mut self, token: u64) {
        self.complete(token, 0);
    }
}

/// The table of `block/1` for the backend `B`.
pub const fn table<B: Block>() -> BlockV1 {
    BlockV1 {
        struct_size: size_of::<BlockV1>() as u32,
        reserved0: 0,
        open: open::<B>,
        close: close::<B>,
        describe: describe::<B>,
        statistics: statistics::<B>,
        memory_add: memory_add::<B>,
        memory_remove: memory_remove::<B>,
        queue_open: queue_open::<B>,
        queue_start: queue_start::<B::Queue>,
        submit: submit::<B::Queue>,
        poll: poll::<B::Queue>,
        arm: arm::<B::Queue>,
        queue_stop: queue_stop::<B::Queue>,
        queue_close: queue_close::<B::Queue>,
    }
}

impl<B: Block> Provides<BlockV1> for B {
    const TABLE: BlockV1 = table::<B>();
}

unsafe extern "C" fn open<B: Block>(
    arguments: *const BlockOpen,
    instance: *mut *mut c_void,
    error: *mut TextBuffer,
) -> i32 {
    guard_with_reason(error, || {
        // SAFETY: the host passes valid arguments (block_v1).
        let arguments = unsafe { &*arguments };
        // SAFETY: the texts live during the call, and the host's table until `close`.
        let (name, options, host) =
            unsafe { (arguments.name.as_str(), arguments.options.as_str(), Host::from_raw(arguments.host)) };
        let options = options::parse(options)?;
        let context = OpenContext {
            host,
            name: name.to_owned(),
            read_only: arguments.flags & POLLUX_BLOCK_OPEN_READ_ONLY != 0,
            probe: arguments.flags & POLLUX_BLOCK_OPEN_PROBE != 0,
        };
        let backend = Box::new(B::open(options, &context)?);
        // SAFETY: the host passes room for the pointer.
        unsafe { instance.write(Box::into_raw(backend).cast()) };
        Ok(())
    })
}

unsafe extern "C" fn close<B: Block>(instance: *mut c_void) {
    // SAFETY: `instance` came from `open`, and the host closes it once.
    guard(|| unsafe {
        drop(Box::from_raw(instance.cast::<B>()));
        0
    });
}

unsafe extern "C" fn describe<B: Block>(instance: *mut c_void, info: *mut BlockInfo) -> i32 {
    // SAFETY: `instance` came from `open`; the host passes room for the answer.
    guard(|| unsafe {
        info.write((*instance.cast::<B>()).info());
        0
    })
}

unsafe extern "C" fn statistics<B: Block>(instance: *mut c_void, text: *mut TextBuffer) -> i32 {
    // SAFETY: `instance` came from `open`; the host passes a buffer.
    guard(|| unsafe {
        (*text).write(&(*instance.cast::<B>()).statistics());
        0
    })
}

unsafe extern "C" fn memory_add<B: Block>(
    instance: *mut c_void,
    region: *const MemoryRegion,
    error: *mut TextBuffer,
) -> i32 {
    // SAFETY: `instance` came from `open`; the region lives during the call.
    guard_with_reason(error, || unsafe { (*instance.cast::<B>()).memory_added(&*region) })
}

unsafe extern "C" fn memory_remove<B: Block>(instance: *mut c_void, region: *const MemoryRegion) {
    // SAFETY: as in `memory_add`.
    guard(|| unsafe {
        (*instance.cast::<B>()).memory_removed(&*region);
        0
    });
}

unsafe extern "C" fn queue_open<B: Block>(
    instance: *mut c_void,
    index: u32,
    depth: u32,
    handle: *mut BlockQueueHandle,
    error: *mut TextBuffer,
) -> i32 {
    guard_with_reason(error, || {
        // SAFETY: `instance` came from `open`.
        let queue = unsafe { (*instance.cast::<B>()).open_queue(index, depth)? };
        let wake_fd = queue.wake_fd().unwrap_or(-1);
        let queue = Box::into_raw(Box::new(Guarded::new(queue))).cast();
        // SAFETY: the host passes room for the handle.
        unsafe { handle.write(BlockQueueHandle { queue, wake_fd, reserved0: 0, reserved: [0; 2] }) };
        Ok(())
    })
}

unsafe extern "C" fn queue_start<Q: BlockQueue>(queue: *mut c_void, error: *mut TextBuffer) -> i32 {
    // SAFETY: `queue` came from `queue_open`, and only its worker calls.
    guard_with_reason(error, || unsafe { (*queue.cast::<Guarded<Q>>()).value.start() })
}

unsafe extern "C" fn submit<Q: BlockQueue>(
    queue: *mut c_void,
    requests: *const BlockRequest,
    count: u32,
    completions: *mut BlockCompletions,
) -> i32 {
    // SAFETY: `queue` came from `queue_open`; `requests` points to `count` requests, of which `Request` is a
    // transparent wrapper, as `Completions` is of the completion buffer.
    unsafe {
        (*queue.cast::<Guarded<Q>>()).call(|queue| {
            let requests = std::slice::from_raw_parts(requests.cast::<Request>(), count as usize);
            queue.submit(requests, &mut *completions.cast::<Completions>()) as i32
        })
    }
}

unsafe extern "C" fn poll<Q: BlockQueue>(queue: *mut c_void, completions: *mut BlockCompletions) -> i32 {
    // SAFETY: as in `submit`.
    unsafe {
        (*queue.cast::<Guarded<Q>>()).call(|queue| {
            queue.poll(&mut *completions.cast::<Completions>());
            0
        })
    }
}

unsafe extern "C" fn arm<Q: BlockQueue>(queue: *mut c_void, armed: u32) -> i32 {
    // SAFETY: as in `submit`.
    unsafe { (*queue.cast::<Guarded<Q>>()).call(|queue| queue.arm(armed != 0) as i32) }
}

unsafe extern "C" fn queue_stop<Q: BlockQueue>(queue: *mut c_void) -> i32 {
    // Even after a panic: what is in flight must be brought to an end, or it would write to memory that the guest uses
    // again.
    // SAFETY: as in `submit`.
    guard(|| unsafe {
        match (*queue.cast::<Guarded<Q>>()).value.stop() {
            Ok(()) => 0,
            Err(error) => {
                log::error!("cannot stop a queue: {error}");
                error.result()
            }
        }
    })
}

unsafe extern "C" fn queue_close<Q: BlockQueue>(queue: *mut c_void) {
    // SAFETY: `queue` came from `queue_open`, and the host closes it once.
    guard(|| unsafe {
        drop(Box::from_raw(queue.cast::<Guarded<Q>>()));
        0
    });
}
