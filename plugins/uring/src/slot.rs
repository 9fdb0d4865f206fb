//! One request in flight: the steps it takes, the entry of each step, and what follows its result.
//!
//! A request is done in one step or in several, one after the other: the rest of a short transfer, the next chunk of a
//! bounced one, another way of writing zeroes when the file system does not know the first.
use crate::{
    bounce::{self, BouncePool, CHUNK_SIZE, ZEROES_SIZE},
    discard::BLOCK_URING_CMD_DISCARD,
    image::{Counters, MAXIMUM_SEGMENTS},
    ring::MEDIUM,
};
use io_uring::{opcode, squeue, types::FsyncFlags};
use pollux_abi::block::{EIO, Operation, Request};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Most bytes of one entry with one segment. Entries with several may hold more; the kernel shortens them.
const MAXIMUM_ENTRY: usize = 1 << 30;

/// How long the kernel may answer nothing but "not now" before the request fails.
const RETRY_TIME: Duration = Duration::from_secs(5);

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What the kernel is asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read or write, straight between the medium and the segments.
    Transfer,
    /// Read or write through this chunk.
    Bounce(u32),
    /// Discard, or zeroes, by a hole.
    PunchHole,
    /// Zeroes that keep their blocks.
    ZeroRange,
    /// Zeroes that are written.
    WriteZeroes,
    /// Discard by the command of block devices.
    DiscardCommand,
    /// `fdatasync`: a flush, or the end of zeroes that must be durable.
    Sync,
}

/// What follows a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Queue the slot's entry again: its step or progress has changed.
    Push,
    /// The request has ended with 0 or a negative errno.
    Complete(i32),
}

/// One request in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) request: Request,
    pub(crate) operation: Operation,
    pub(crate) step: Step,
    /// Bytes that are done.
    progress: u64,
    /// Since when the kernel has answered nothing but "not now".
    refused_since: Option<Instant>,
}

impl Slot {
    pub(crate) fn new(request: Request, operation: Operation, step: Step) -> Self {
        Slot { request, operation, step, progress: 0, refused_since: None }
    }

    /// The entry of the current step.
    pub(crate) fn entry(&self, pool: &BouncePool) -> squeue::Entry {
        let offset = self.request.offset() + self.progress;
        let rest = self.request.length() - self.progress;
        match self.step {
            Step::Transfer => self.transfer(offset),
            Step::Bounce(chunk) => self.bounce(offset, rest, pool.chunk(chunk)),
            Step::PunchHole => opcode::Fallocate::new(MEDIUM, rest).offset(offset).mode(PUNCH_HOLE).build(),
            Step::ZeroRange => opcode::Fallocate::new(MEDIUM, rest).offset(offset).mode(ZERO_RANGE).build(),
            Step::WriteZeroes => {
                let length = rest.min(ZEROES_SIZE as u64) as u32;
                opcode::Write::new(MEDIUM, pool.zeroes(), length).offset(offset).build()
            }
            Step::DiscardCommand => {
                let mut command = [0; 16];
                command[..8].copy_from_slice(&rest.to_ne_bytes());
                opcode::UringCmd16::new(MEDIUM, BLOCK_URING_CMD_DISCARD).addr(Some(offset)).cmd(command).build()
            }
            Step::Sync => opcode::Fsync::new(MEDIUM).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    /// The rest of the segments as they are. Within a segment only that segment's rest is moved, so that no array of the
    /// plugin's own is needed.
    fn transfer(&self, offset: u64) -> squeue::Entry {
        let mut segments = self.request.segments();
        let mut skip = self.progress;
        while let [first, rest @ ..] = segments
            && skip >= first.length as u64
        {
            skip -= first.length as u64;
            segments = rest;
        }
        let flags = self.write_flags();
        if let [first, rest @ ..] = segments
            && (skip > 0 || rest.is_empty())
        {
            let base = first.base.wrapping_add(skip as usize);
            let length = (first.length - skip as usize).min(MAXIMUM_ENTRY) as u32;
            return match self.operation {
                Operation::Read => opcode::Read::new(MEDIUM, base, length).offset(offset).build(),
                _ => opcode::Write::new(MEDIUM, base, length).offset(offset).rw_flags(flags).build(),
            };
        }
        let count = segments.len().min(MAXIMUM_SEGMENTS as usize) as u32;
        // A segment is laid out as an iovec is (block_v1).
        let vector = segments.as_ptr().cast::<libc::iovec>();
        match self.operation {
            Operation::Read => opcode::Readv::new(MEDIUM, vector, count).offset(offset).build(),
            _ => opcode::Writev::new(MEDIUM, vector, count).offset(offset).rw_flags(flags).build(),
        }
    }

    fn bounce(&self, offset: u64, rest: u64, chunk: *mut u8) -> squeue::Entry {
        let length = rest.min(CHUNK_SIZE as u64) as usize;
        if self.operation == Operation::Read {
            return opcode::Read::new(MEDIUM, chunk, length as u32).offset(offset).build();
        }
        // SAFETY: the request is in flight, and the chunk has room for CHUNK_SIZE bytes.
        unsafe { bounce::gather(self.request.segments(), self.progress, chunk, length) };
        opcode::Write::new(MEDIUM, chunk, length as u32).offset(offset).rw_flags(self.write_flags()).build()
    }

    fn write_flags(&self) -> i32 {
        if self.request.is_fua() { libc::RWF_DSYNC } else { 0 }
    }

    /// What follows `result`, the kernel's answer to the entry. `unit` is the unit of transfers in bytes.
    pub(crate) fn completed(&mut self, result: i32, unit: u32, pool: &BouncePool, counters: &Counters) -> Next {
        if result >= 0 {
            self.refused_since = None;
            return self.advanced(result as u32, unit, pool, counters);
        }
        match (-result, self.step) {
            (libc::EINTR | libc::EAGAIN, _)
                if self.refused_since.get_or_insert_with(Instant::now).elapsed() < RETRY_TIME =>
            {
                counters.resubmitted.fetch_add(1, Ordering::Relaxed);
                Next::Push
            }
            // The kernel could not drop cached blocks of a device that another program has claimed. A range that is not
            // discarded may be read as it is.
            (libc::EBUSY, Step::PunchHole | Step::DiscardCommand) if self.operation == Operation::Discard => {
                Next::Complete(0)
            }
            (libc::EOPNOTSUPP | libc::EBUSY, Step::PunchHole) if self.operation == Operation::WriteZeroes => {
                self.step = Step::ZeroRange;
                Next::Push
            }
            (libc::EOPNOTSUPP | libc::EBUSY, Step::ZeroRange) => {
                self.step = Step::WriteZeroes;
                counters.zeroes_written.fetch_add(1, Ordering::Relaxed);
                Next::Push
            }
            _ => Next::Complete(result),
        }
    }

    fn advanced(&mut self, moved: u32, unit: u32, pool: &BouncePool, counters: &Counters) -> Next {
        match self.step {
            Step::PunchHole | Step::ZeroRange | Step::DiscardCommand => return self.zeroed(),
            Step::Sync => return Next::Complete(0),
            Step::Transfer | Step::Bounce(_) | Step::WriteZeroes => {}
        }
        if let (Step::Bounce(chunk), Operation::Read) = (self.step, self.operation) {
            let length = (moved as usize).min(CHUNK_SIZE);
            // SAFETY: the request is in flight, and the kernel has filled that much of the chunk.
            unsafe { bounce::scatter(pool.chunk(chunk), self.request.segments(), self.progress, length) };
        }
        self.progress = (self.progress + u64::from(moved)).min(self.request.length());
        if self.progress == self.request.length() {
            return if self.step == Step::WriteZeroes { self.zeroed() } else { Next::Complete(0) };
        }
        // Direct reads end within a unit only where the file ends. It was shorter than at open: nothing is there.
        if self.operation == Operation::Read && (moved == 0 || !moved.is_multiple_of(unit)) {
            // SAFETY: the request is in flight.
            unsafe { bounce::fill_with_zeroes(self.request.segments(), self.progress) };
            return Next::Complete(0);
        }
        if moved == 0 {
            return Next::Complete(-EIO);
        }
        if self.step == Step::Transfer {
            counters.resubmitted.fetch_add(1, Ordering::Relaxed);
        }
        Next::Push
    }

    /// The range is discarded, or reads as zeroes. Allocation has no "force unit access" of its own.
    fn zeroed(&mut self) -> Next {
        if self.operation == Operation::WriteZeroes && self.request.is_fua() {
            self.step = Step::Sync;
            return Next::Push;
        }
        Next::Complete(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::request;
    use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_FLUSH};

    #[test]
    fn not_now_is_taken_for_an_answer_only_after_seconds() {
        let flush = request(POLLUX_BLOCK_FLUSH, 0, 0, 0);
        // SAFETY: a `Request` is a transparent wrapper.
        let flush = unsafe { std::mem::transmute::<BlockRequest, Request>(flush) };
        let mut slot = Slot::new(flush, Operation::Flush, Step::Sync);
        let (pool, counters) = (BouncePool::new(1).unwrap(), Counters::default());
        let answer = |slot: &mut Slot| slot.completed(-libc::EAGAIN, 1, &pool, &counters);
        for _ in 0..5000 {
            assert_eq!(answer(&mut slot), Next::Push);
        }
        let Some(long_ago) = Instant::now().checked_sub(RETRY_TIME) else {
            println!("SKIPPED: this host was started a moment ago");
            return;
        };
        slot.refused_since = Some(long_ago);
        assert_eq!(answer(&mut slot), Next::Complete(-libc::EAGAIN));
    }
}
