//! Why a front end, or a load on it, cannot go on.
use pollux_core::memory::MemoryError;
use pollux_driver::slots::RingError;
use std::{io, path::PathBuf, time::Duration};

/// Why a backend cannot be measured. Every message names the socket and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("{}: no such socket; start the backend first, or correct the path", .path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{}: this is not a socket; give the path that a vhost-user-blk backend listens on", .path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// There is a socket, and nobody listens.
    #[error("{}: nobody listens on this socket; its backend has ended, start it again", .path.display())]
    NobodyListens {
        /// The socket.
        path: PathBuf,
    },
    /// Connecting failed otherwise.
    #[error("{}: cannot connect: {cause}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The backend does not answer.
    #[error(
        "{}: no answer to {message} within {patience:?}; most backends serve one front end at a time: end the other \
         one, or check that this is a vhost-user-blk backend", .path.display()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What was sent.
        message: &'static str,
        /// How long was waited.
        patience: Duration,
    },
    /// It was told to stop.
    #[error("stopped before its time")]
    Stopped,
    /// The backend went away while it was set up.
    #[error("{}: the backend closed the connection at {message}; its own log should say why", .path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
        /// What was sent.
        message: &'static str,
    },
    /// The backend refused a message, or answered nonsense.
    #[error("{}: {message} failed: {cause}; the backend's own log should say why", .path.display())]
    Message {
        /// The socket.
        path: PathBuf,
        /// What was sent.
        message: &'static str,
        /// The protocol's error.
        cause: String,
    },
    /// The backend lacks what this front end cannot do without.
    #[error("{}: the backend does not offer {feature}; {hint}", .path.display())]
    Feature {
        /// The socket.
        path: PathBuf,
        /// Its name in the specification.
        feature: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// More queues than there are.
    #[error(
        "{}: {asked} queues asked for, and the backend has {offered}; ask for fewer, or start it with \
         more", .path.display()
    )]
    Queues {
        /// The socket.
        path: PathBuf,
        /// How many are wanted.
        asked: u16,
        /// How many there are.
        offered: u64,
    },
    /// The depth does not fit the queue.
    #[error(
        "a depth of {depth} needs a queue of {needed} descriptors{why}; give --queue-size {needed}, or a lower depth"
    )]
    Depth {
        /// Requests in flight.
        depth: u16,
        /// Descriptors that they need.
        needed: u32,
        /// Why so many.
        why: &'static str,
    },
    /// No queue is as deep.
    #[error(
        "a depth of {0} is more than a queue of 32768 descriptors can have in flight; use a lower depth and more queues"
    )]
    TooDeep(u64),
    /// After a reconnect, the backend is another one.
    #[error("{}: the backend came back with {what} changed: {before} before, {after} now", .path.display())]
    Changed {
        /// The socket.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As it was.
        before: String,
        /// As it is.
        after: String,
    },
    /// A device without any blocks.
    #[error(
        "{}: the device has no blocks in the range asked for (capacity {capacity} bytes, offset {offset}, block size \
         {block})", .path.display()
    )]
    Empty {
        /// The socket.
        path: PathBuf,
        /// Bytes of the device.
        capacity: u64,
        /// Start of the range.
        offset: u64,
        /// Bytes of a block.
        block: u32,
    },
    /// The range is not on the device.
    #[error(
        "{}: the range of {size} bytes at offset {offset} ends beyond the device, which has {capacity} bytes; \
         lower --offset or --size", .path.display()
    )]
    Range {
        /// The socket.
        path: PathBuf,
        /// Start of the range.
        offset: u64,
        /// Its length.
        size: u64,
        /// Bytes of the device.
        capacity: u64,
    },
    /// Blocks do not fit those of the device.
    #[error("{}: {what} of {bytes} bytes is not a multiple of {block} bytes, {why}", .path.display())]
    Alignment {
        /// The socket.
        path: PathBuf,
        /// Block size or offset.
        what: &'static str,
        /// Its value.
        bytes: u64,
        /// What it must be a multiple of.
        block: u32,
        /// And the reason of that.
        why: &'static str,
    },
    /// Flushes for a device that takes none.
    #[error(
        "{}: the device takes no flushes (it offers no VIRTIO_BLK_F_FLUSH); leave --flush-every out", .path.display()
    )]
    NoFlush {
        /// The socket.
        path: PathBuf,
    },
    /// Blocks are longer than the device takes.
    #[error("{}: the device takes at most {limit} bytes in one buffer; use a --block-size up to that", .path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// VIRTIO_BLK_F_SIZE_MAX.
        limit: u32,
    },
    /// Writes to a device that is read-only.
    #[error(
        "{}: the device is read-only; use --rw read or randread, or start the backend with a writable \
         device", .path.display()
    )]
    ReadOnly {
        /// The socket.
        path: PathBuf,
    },
    /// Each queue needs as many blocks as requests.
    #[error(
        "{}: {blocks} blocks for each queue are too few for a depth of {depth} with --verify, which has one request \
         for a block at a time; lower --depth or --queues, or raise --size", .path.display()
    )]
    TooFewBlocks {
        /// The socket.
        path: PathBuf,
        /// Blocks of a queue.
        blocks: u64,
        /// Requests in flight.
        depth: u16,
    },
    /// To remember so many blocks takes too much memory.
    #[error("{}: --verify remembers every block, and {blocks} are too many; give a smaller --size", .path.display())]
    TooManyBlocks {
        /// The socket.
        path: PathBuf,
        /// Blocks of the range.
        blocks: u64,
    },
    /// The connection was lost under load.
    #[error(
        "{}: the backend closed the connection with {in_flight} requests in flight; its own log should say \
         why", .path.display()
    )]
    Lost {
        /// The socket.
        path: PathBuf,
        /// Requests that it had.
        in_flight: u64,
    },
    /// Nothing comes back any more.
    #[error(
        "{}: queue {queue}: no completion for {patience:?} with {in_flight} requests in flight; the backend hangs, or \
         has missed a kick", .path.display()
    )]
    Stalled {
        /// The socket.
        path: PathBuf,
        /// The queue.
        queue: usize,
        /// Requests that the backend has.
        in_flight: u16,
        /// How long was waited.
        patience: Duration,
    },
    /// The backend broke a ring.
    #[error("{}: queue {queue}: the backend broke the ring: {cause}", .path.display())]
    Ring {
        /// The socket.
        path: PathBuf,
        /// The queue.
        queue: usize,
        /// How.
        cause: RingError,
    },
    /// The CPU cannot be used.
    #[error("cannot run on CPU {0}; this process may use CPUs {1}")]
    Cpu(usize, String),
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The system refuses something small.
    #[error("cannot {what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        cause: io::Error,
    },
}

impl Error {
    /// Whether what was asked for is wrong, given the device, and nothing has failed.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Error::NotASocket { .. }
                | Error::Queues { .. }
                | Error::Depth { .. }
                | Error::TooDeep(_)
                | Error::Empty { .. }
                | Error::Range { .. }
                | Error::Alignment { .. }
                | Error::TooLong { .. }
                | Error::ReadOnly { .. }
                | Error::NoFlush { .. }
                | Error::TooFewBlocks { .. }
                | Error::TooManyBlocks { .. }
                | Error::Cpu(..)
        )
    }
}
