//! One call to the kernel: an entry of a ring, or the system call that does the same at once.
use crate::{
    discard::BLOCK_URING_CMD_DISCARD,
    geometry::end_of,
    ring::{MEDIUM, SYNC_FILE},
};
use io_uring::{opcode, squeue, types::FsyncFlags};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// Reads or writes.
    Transfer(Transfer),
    /// `fallocate(2)`.
    Allocate { mode: i32, offset: u64, length: u64 },
    /// The discard of block devices.
    Discard { offset: u64, length: u64 },
    /// `fdatasync(2)`.
    Sync,
}

/// A read or write of at most `length` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) is_write: bool,
    /// A write completes when it is durable.
    pub(crate) is_durable: bool,
    pub(crate) memory: Memory,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// Where the bytes of a transfer are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Memory {
    /// In one piece.
    Piece(*mut u8),
    /// In so many segments.
    Segments(*const libc::iovec, u32),
}

impl Call {
    /// The entry of a ring. `buffer` is the place of the registered memory that a transfer's piece lies in.
    #[inline(always)]
    pub(crate) fn entry(&self, buffer: Option<u16>) -> squeue::Entry {
        match *self {
            Call::Transfer(transfer) => transfer.entry(buffer),
            Call::Allocate { mode, offset, length } => {
                opcode::Fallocate::new(MEDIUM, length).offset(offset).mode(mode).build()
            }
            Call::Discard { offset, length } => {
                let mut command = [0; 16];
                command[..8].copy_from_slice(&length.to_ne_bytes());
                opcode::UringCmd16::new(MEDIUM, BLOCK_URING_CMD_DISCARD).addr(Some(offset)).cmd(command).build()
            }
            Call::Sync => opcode::Fsync::new(SYNC_FILE).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    /// Whether it would write beyond the present end of the file.
    pub(crate) fn is_beyond_end(&self, file: &File) -> bool {
        let Call::Transfer(transfer @ Transfer { is_write: true, .. }) = self else { return false };
        end_of(file).is_ok_and(|end| transfer.offset + u64::from(transfer.length) > end)
    }

    /// Makes the system call. Returns what an entry's completion has: bytes, 0, or a negative errno.
    ///
    /// # Safety
    /// The memory of a transfer must be valid.
    #[inline(always)]
    pub(crate) unsafe fn perform(&self, file: &impl AsRawFd) -> i32 {
        let file = file.as_raw_fd();
        match *self {
            // SAFETY: the caller vouches for the memory.
            Call::Transfer(transfer) => unsafe { transfer.perform(file, 0) },
            Call::Allocate { mode, offset, length } => {
                // SAFETY: no memory is passed.
                answer(unsafe { libc::fallocate(file, mode, offset as i64, length as i64) } as isize)
            }
            Call::Discard { offset, length } => {
                let range = [offset, length];
                // SAFETY: the request reads two numbers of 64 bits.
                answer(unsafe { libc::ioctl(file, BLKDISCARD, range.as_ptr()) } as isize)
            }
            // SAFETY: no memory is passed.
            Call::Sync => answer(unsafe { libc::fdatasync(file) } as isize),
        }
    }
}

/// `_IO(0x12, 119)` (linux/fs.h).
const BLKDISCARD: libc::Ioctl = 0x1277;

impl Transfer {
    #[inline(always)]
    fn entry(&self, buffer: Option<u16>) -> squeue::Entry {
        let (offset, flags, length) = (self.offset, self.flags(), self.length);
        if let (Some(buffer), Memory::Piece(base)) = (buffer, self.memory) {
            return match self.is_write {
                false => opcode::ReadFixed::new(MEDIUM, base, length, buffer).offset(offset).build(),
                true => opcode::WriteFixed::new(MEDIUM, base, length, buffer).offset(offset).rw_flags(flags).build(),
            };
        }
        match (self.memory, self.is_write) {
            (Memory::Piece(base), false) => opcode::Read::new(MEDIUM, base, self.length).offset(offset).build(),
            (Memory::Piece(base), true) => {
                opcode::Write::new(MEDIUM, base, self.length).offset(offset).rw_flags(flags).build()
            }
            (Memory::Segments(vector, count), false) => {
                opcode::Readv::new(MEDIUM, vector, count).offset(offset).build()
            }
            (Memory::Segments(vector, count), true) => {
                opcode::Writev::new(MEDIUM, vector, count).offset(offset).rw_flags(flags).build()
            }
        }
    }

    /// Makes the system call, with more flags of `preadv2(2)`. The plain calls cost less than those with flags.
    ///
    /// # Safety
    /// The memory must be valid.
    #[inline(always)]
    pub(crate) unsafe fn perform(&self, file: RawFd, more_flags: i32) -> i32 {
        let (offset, flags, length) = (self.offset as i64, self.flags() | more_flags, self.length as usize);
        let piece;
        let (vector, count) = match self.memory {
            Memory::Piece(base) if flags == 0 => {
                // SAFETY: the caller vouches for the memory.
                return answer(unsafe {
                    if self.is_write {
                        libc::pwrite(file, base.cast(), length, offset)
                    } else {
                        libc::pread(file, base.cast(), length, offset)
                    }
                });
            }
            Memory::Piece(base) => {
                piece = libc::iovec { iov_base: base.cast(), iov_len: length };
                (&raw const piece, 1)
            }
            Memory::Segments(vector, count) => (vector, count as i32),
        };
        // SAFETY: as above.
        answer(unsafe {
            if self.is_write {
                libc::pwritev2(file, vector, count, offset, flags)
            } else {
                libc::preadv2(file, vector, count, offset, flags)
            }
        })
    }

    fn flags(&self) -> i32 {
        if self.is_durable { libc::RWF_DSYNC } else { 0 }
    }
}

/// What a completion would say.
#[inline]
fn answer(result: isize) -> i32 {
    if result >= 0 {
        return result.min(i32::MAX as isize) as i32;
    }
    -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
