//! `block/1`: the frozen interface of a block backend.
//!
//! Who calls what, and when:
//!
//! ```text
//! [control]          open → describe → memory_add … → queue_open (once per queue)
//! [worker]           queue_start → { submit, poll, arm }… → queue_stop
//! [control]          queue_close → memory_remove … → close
//! ```
//!
//! * `[control]` calls of one instance never overlap each other. They may block.
//! * `[worker]` calls of one queue come from one thread, the worker that owns it. `submit`, `poll` and `arm` never
//!   block.
//! * `memory_add` and `memory_remove` may come while queues run; a region is removed only after the last request that
//!   points into it has completed.
//! * `poll` is called only while requests are in flight or were refused. A queue with nothing in flight must take at
//!   least one request.
//! * Requests in flight have no order among each other, on one queue or on several; they may complete in any, and those
//!   of earlier calls may complete within `submit`.
//! * `queue_stop` comes with no request in flight, unless the queue has failed. Nothing is called on a queue that
//!   failed but `queue_stop` and `queue_close`. After a `queue_start` that failed comes `queue_close` alone.
//! * A request cannot be cancelled: a guest's reset waits until all have completed.
//! * Functions return 0, or a negative errno with the reason in `error`, which is never null.
use crate::{
    host_v1::HostV1,
    plugin::InterfaceTable,
    text::{Text, TextBuffer},
};
pub use crate::{memory_region::MemoryRegion, segment::Segment};
use abi_stable::StableAbi;
use std::ffi::c_void;

/// Read `length` bytes at `offset` into the segments.
pub const POLLUX_BLOCK_READ: u32 = 0;
/// Write `length` bytes from the segments to `offset`.
pub const POLLUX_BLOCK_WRITE: u32 = 1;
/// Make all writes durable that completed before this request was submitted, whichever queue of the instance they went
/// through.
pub const POLLUX_BLOCK_FLUSH: u32 = 2;
/// The range's content is no longer needed. Reads of it may return anything until it is written again.
pub const POLLUX_BLOCK_DISCARD: u32 = 3;
/// Make the range read as zeroes.
pub const POLLUX_BLOCK_WRITE_ZEROES: u32 = 4;

/// On writes and write-zeroes: the data is durable when the request completes (force unit access). Every backend that
/// takes writes must heed it, also one that offers no flush.
pub const POLLUX_BLOCK_FUA: u32 = 1;
/// On write-zeroes: the backend may deallocate the range.
pub const POLLUX_BLOCK_UNMAP: u32 = 2;

/// In [`BlockInfo::flags`]: writes fail with EROFS.
pub const POLLUX_BLOCK_INFO_READ_ONLY: u32 = 1;
/// In [`BlockInfo::flags`]: completed writes may be lost with the power until a flush. For the operator's information:
/// the host flushes in any case.
pub const POLLUX_BLOCK_INFO_VOLATILE_CACHE: u32 = 2;

/// In [`BlockOpen::flags`]: never write, even if the file would allow it.
pub const POLLUX_BLOCK_OPEN_READ_ONLY: u32 = 1;
/// In [`BlockOpen::flags`]: the instance is only described and closed again. Take no lock and change nothing.
pub const POLLUX_BLOCK_OPEN_PROBE: u32 = 2;

/// One request: 64 bytes. The host has checked it: the operation is one that the backend offers, the range lies within
/// the capacity and on logical blocks and within the limits of [`BlockInfo`], and the segments' lengths add up to
/// `length`. Segments may have any address and any length: a backend that needs them aligned copies where they are
/// not.
///
/// The record itself is valid only during the call: copy what is needed later. A request that was not taken comes
/// again, with another token.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BlockRequest {
    /// `POLLUX_BLOCK_READ` and so on.
    pub operation: u32,
    /// `POLLUX_BLOCK_FUA`, `POLLUX_BLOCK_UNMAP`.
    pub flags: u32,
    /// Names the request in its completion. Unique among those in flight.
    pub token: u64,
    /// First byte on the medium.
    pub offset: u64,
    /// Length in bytes; 0 for a flush.
    pub length: u64,
    /// The data of a read or write, valid until the request completes (the array as well as the memory).
    pub segments: *const Segment,
    /// Number of segments.
    pub segment_count: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// The end of one request: 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BlockCompletion {
    /// The request's token.
    pub token: u64,
    /// 0, or a negative errno: EIO, ENOSPC, EROFS, …
    pub result: i32,
    /// Zero.
    pub reserved: u32,
}

/// Where a queue puts completions: valid during the call. The host provides room for every request in flight, so it
/// never runs full.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct BlockCompletions {
    /// The first entry.
    pub entries: *mut BlockCompletion,
    /// Number of entries there is room for.
    pub capacity: u32,
    /// Entries filled. The callee appends and adds.
    pub count: u32,
}

/// What a backend is like. All sizes are in bytes; 0 stands for "no limit" or "unknown" unless said otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BlockInfo {
    /// Size of the medium. A rest beyond a whole logical block is not offered to the guest.
    pub capacity: u64,
    /// With `identity_object`, names the medium (such as `st_dev` and `st_ino`), so that the host notices that two
    /// devices write to the same one. Both 0: none.
    pub identity_device: u64,
    /// See `identity_device`.
    pub identity_object: u64,
    /// Longest discard; 0, or at least a logical block.
    pub maximum_discard: u64,
    /// Longest write-zeroes; 0, or at least a logical block.
    pub maximum_write_zeroes: u64,
    /// Unit of addressing: a power of two, at least 512.
    pub logical_block_size: u32,
    /// Unit that is written without reading first: a power of two multiple of the logical block.
    pub physical_block_size: u32,
    /// Smallest transfer without a penalty.
    pub minimum_io_size: u32,
    /// Best transfer size.
    pub optimal_io_size: u32,
    /// Bit `1 << operation` for each operation offered.
    pub operations: u32,
    /// `POLLUX_BLOCK_INFO_READ_ONLY`, `POLLUX_BLOCK_INFO_VOLATILE_CACHE`.
    pub flags: u32,
    /// Longest read or write; 0, or at least 4096 and a logical block.
    pub maximum_transfer: u32,
    /// Most segments of one request.
    pub maximum_segments: u32,
    /// Preferred alignment of discards; a multiple of the logical block.
    pub discard_alignment: u32,
    /// Most queues; 0 for any number.
    pub maximum_queues: u32,
    /// Zero.
    pub reserved: [u64; 8],
}

/// How to open an instance.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct BlockOpen {
    /// Services for this instance: log lines carry its name. Valid until `close` returns.
    pub host: *const HostV1,
    /// The instance's name in the configuration, such as `disk0`.
    pub name: Text,
    /// The `options` of the configuration as a JSON object.
    pub options: Text,
    /// `POLLUX_BLOCK_OPEN_READ_ONLY`, `POLLUX_BLOCK_OPEN_PROBE`.
    pub flags: u32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 4],
}

/// What `queue_open` answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BlockQueueHandle {
    /// The first argument of the queue's functions.
    pub queue: *mut c_void,
    /// A file descriptor that becomes readable when an armed queue has completions, or -1. The plugin's; valid until
    /// `queue_close`. The host only waits on it and never reads it: the plugin makes it unreadable again, in `arm`
    /// with 0 or in `poll`.
    pub wake_fd: i32,
    /// Zero.
    pub reserved0: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// The functions of `block/1`. None may be null.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct BlockV1 {
    /// Size of this structure in bytes.
    pub struct_size: u32,
    /// Zero.
    pub reserved0: u32,
    /// Opens an instance. `[control]`
    pub open:
        unsafe extern "C" fn(arguments: *const BlockOpen, instance: *mut *mut c_void, error: *mut TextBuffer) -> i32,
    /// Closes it. All queues are closed before. `[control]`
    pub close: unsafe extern "C" fn(instance: *mut c_void),
    /// Fills `info`. May be called at any time. `[control]`
    pub describe: unsafe extern "C" fn(instance: *mut c_void, info: *mut BlockInfo) -> i32,
    /// Fills `text` with a JSON object of the plugin's own counters. A `length` beyond the capacity says that it was
    /// cut. `[control]`
    pub statistics: unsafe extern "C" fn(instance: *mut c_void, text: *mut TextBuffer) -> i32,
    /// Announces a region of guest memory, so that the plugin may register or map it for DMA. Memory that another
    /// process may take pages out of, such as that of a vhost-user front end, is not announced. `[control]`
    pub memory_add:
        unsafe extern "C" fn(instance: *mut c_void, region: *const MemoryRegion, error: *mut TextBuffer) -> i32,
    /// Takes a region back. `[control]`
    pub memory_remove: unsafe extern "C" fn(instance: *mut c_void, region: *const MemoryRegion),
    /// Makes queue `index` for at most `depth` requests in flight. `[control]`
    pub queue_open: unsafe extern "C" fn(
        instance: *mut c_void,
        index: u32,
        depth: u32,
        handle: *mut BlockQueueHandle,
        error: *mut TextBuffer,
    ) -> i32,
    /// The calling thread owns the queue from now on. Called once for each `queue_open`. `[worker]`
    pub queue_start: unsafe extern "C" fn(queue: *mut c_void, error: *mut TextBuffer) -> i32,
    /// Takes requests in order, at most `count`, and returns how many it accepted: fewer means "full, offer the rest
    /// later". Requests that complete at once may be added to `completions` right away. Negative: the queue has
    /// failed. `[worker, started]`
    pub submit: unsafe extern "C" fn(
        queue: *mut c_void,
        requests: *const BlockRequest,
        count: u32,
        completions: *mut BlockCompletions,
    ) -> i32,
    /// Adds what has completed to `completions`. Returns 0, or a negative errno: the queue has failed. `[worker,
    /// started]`
    pub poll: unsafe extern "C" fn(queue: *mut c_void, completions: *mut BlockCompletions) -> i32,
    /// With `armed` 1: the worker is about to sleep on `wake_fd`, so make it readable at the next completion; returns
    /// 1 if there is one already and the worker must not sleep, or 0. Both a 1 and a wake-up may be needless, but
    /// neither may be missing. With 0: the worker polls again. Called only if there is a `wake_fd`. `[worker,
    /// started]`
    pub arm: unsafe extern "C" fn(queue: *mut c_void, armed: u32) -> i32,
    /// The worker gives the queue back. If the queue has failed, this first brings to an end what is in flight:
    /// returning 0 says that nothing touches the memory of any request any more, since the guest will use it again.
    /// Negative: that cannot be said; the host then keeps the queue and the memory for ever. `[worker, started]`
    pub queue_stop: unsafe extern "C" fn(queue: *mut c_void) -> i32,
    /// Frees the queue. `[control]`
    pub queue_close: unsafe extern "C" fn(queue: *mut c_void),
}

impl BlockV1 {
    /// The interface's name in a plugin's list.
    pub const NAME: &'static str = "block/1";
}

impl InterfaceTable for BlockV1 {
    const NAME: &'static str = BlockV1::NAME;
}

const _: () = {
    assert!(size_of::<BlockRequest>() == 64);
    assert!(size_of::<BlockCompletion>() == 16);
    assert!(size_of::<BlockInfo>() == 144);
    assert!(size_of::<BlockQueueHandle>() == 32);
    assert!(size_of::<BlockV1>() == 112);
};
