//! How a driver breaks its ring.
use std::collections::TryReserveError;

/// How a driver broke its ring. The device needs a reset then (virtio 1.3, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The size is zero, no power of two or too great.
    #[error("a queue size of {0} is not a power of two from 1 to 32768")]
    Size(u16),
    /// The size of a packed ring is zero or too great.
    #[error("a queue size of {0} is not from 1 to 32768")]
    PackedSize(u16),
    /// The position at which a packed ring should continue is outside of it.
    #[error("a base of {0:#x} is not in a ring of {1}")]
    Base(u32, u16),
    /// A part of the ring is not in guest memory, or not aligned.
    #[error("the {0} of the queue is not in guest memory or not aligned")]
    Placement(&'static str),
    /// The region for requests in flight is of another layout, or of a queue of another size.
    #[error("the in-flight region is of a layout or a queue size that is not this queue's: {0}")]
    Inflight(u16),
    /// The region for requests in flight has invalid contents.
    #[error("the in-flight region is damaged")]
    InflightDamaged,
    /// The region for requests in flight ends before the queue's part of it, or was made for a smaller queue.
    #[error("the in-flight region has no room for a queue of {0} entries")]
    InflightRoom(u16),
    /// The available index ran ahead by more than the size of the ring.
    #[error("the available index jumped by {0} entries in a queue of {1}")]
    AvailableIndex(u16, u16),
    /// More descriptors were made available than the ring has.
    #[error("more descriptors are available than the ring of {0} has")]
    Overrun(u16),
    /// The buffer ID is none of those that a ring of this size needs.
    #[error("buffer ID {0} is not below the size of the ring, {1}")]
    BufferId(u16, u16),
    /// The head, or a next field, names no descriptor.
    #[error("descriptor {0} does not exist in a table of {1}")]
    DescriptorIndex(u16, u16),
    /// A head is made available while it is in use.
    #[error("descriptor chain {0} was made available twice")]
    InUse(u16),
    /// The chain is longer than its table: it has a loop.
    #[error("the descriptor chain that starts at {0} has a loop")]
    Loop(u16),
    /// A buffer is not in guest memory.
    #[error("a descriptor points to guest address {0:#x}, length {1}, which is not in guest memory")]
    Address(u64, u32),
    /// An indirect table of a bad length, or one inside another, or with a next flag.
    #[error("the indirect descriptor table of chain {0} is malformed")]
    Indirect(u16),
    /// A buffer to read comes after one to write (virtio 1.3, 2.7.4.2).
    #[error("the descriptor chain that starts at {0} has a readable buffer after a writable one")]
    Order(u16),
    /// The chain has more buffers than the device said it takes.
    #[error("the descriptor chain that starts at {0} has more segments than the device takes")]
    TooLong(u16),
    /// The chain lacks what the device type requires.
    #[error("the descriptor chain that starts at {0} has no room for {1}")]
    Short(u16, &'static str),
    /// There is no memory for a queue of this size: not the driver's fault.
    #[error("there is no memory for a queue of this size: choose a smaller one")]
    Memory,
}

impl From<TryReserveError> for RingError {
    fn from(_: TryReserveError) -> Self {
        RingError::Memory
    }
}
