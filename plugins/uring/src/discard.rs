//! Which way of discarding a medium knows.
use crate::geometry::{Geometry, queue_limit};
use io_uring::{IoUring, opcode::UringCmd16, types::Fd};
use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

/// `BLOCK_URING_CMD_DISCARD`, which is `_IO(0x12, 0)` (linux/blkdev.h, Linux 6.12).
pub(crate) const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

/// How a range is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiscardMethod {
    /// The medium cannot discard.
    None,
    /// `fallocate(2)` punches a hole. A block device then reads as zeroes too.
    PunchHole,
    /// `BLKDISCARD`, or the asynchronous form of it.
    Command,
}

impl DiscardMethod {
    /// Finds out without changing the medium. With `probe`, nothing is even tried on a file.
    pub(crate) fn of(file: &File, geometry: &Geometry, is_sync: bool, probe: bool) -> Self {
        if geometry.is_block_device {
            return Self::of_block_device(file, is_sync, probe);
        }
        // A hole beyond the end changes nothing but the file's time stamps.
        if probe || punches_holes(file, geometry.capacity) { DiscardMethod::PunchHole } else { DiscardMethod::None }
    }

    fn of_block_device(file: &File, is_sync: bool, probe: bool) -> Self {
        let Ok(metadata) = file.metadata() else { return DiscardMethod::None };
        let has = |limit| queue_limit(metadata.rdev(), limit).unwrap_or(0) > 0;
        if !has("discard_max_bytes") {
            return DiscardMethod::None;
        }
        if probe || is_sync || has_discard_command(file) {
            return DiscardMethod::Command;
        }
        // On a block device the kernel makes a hole with the device's own "write zeroes" and never by writing.
        if has("write_zeroes_max_bytes") { DiscardMethod::PunchHole } else { DiscardMethod::None }
    }
}

fn punches_holes(file: &File, capacity: u64) -> bool {
    let Ok(offset) = i64::try_from(capacity) else { return false };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, offset, 65536)
}

fn fallocate(file: &File, mode: i32, offset: i64, length: i64) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) == 0 }
}

/// Whether the kernel knows the command. A range of no bytes is refused with EINVAL by a kernel that does, and with
/// EOPNOTSUPP by one that does not.
fn has_discard_command(file: &File) -> bool {
    let Ok(mut ring) = IoUring::new(1) else { return false };
    let entry = UringCmd16::new(Fd(file.as_raw_fd()), BLOCK_URING_CMD_DISCARD).addr(Some(0)).build();
    // SAFETY: the entry points to no memory, and the file outlives the ring.
    let pushed = unsafe { ring.submission().push(&entry) }.is_ok();
    if !pushed || ring.submit_and_wait(1).is_err() {
        return false;
    }
    ring.completion().next().is_some_and(|completion| completion.result() == -libc::EINVAL)
}
