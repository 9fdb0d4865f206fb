//! The steps in which a request is done.

/// What the kernel is asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read or write, straight between the medium and the segments.
    Transfer,
    /// A write that must be durable, on a medium where each queue syncs by itself (`sync_turns`).
    TransferThenSync,
    /// Read or write through a chunk. Of zeroes too, where they are written to parts of units.
    Bounce,
    /// Discard, or zeroes, by a hole.
    PunchHole,
    /// Zeroes that keep their blocks.
    ZeroRange,
    /// Zeroes that are written.
    WriteZeroes,
    /// Discard by the command of block devices.
    DiscardCommand,
    /// `fdatasync`: a flush, or the end of a write or of zeroes that must be durable.
    Sync,
}
