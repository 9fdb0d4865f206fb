//! One request in flight: the steps it takes, the call of each step, and what follows its result.
//!
//! A request is done in one step or in several, one after the other: the rest of a short transfer, the next chunk of a
//! bounced one, another way of writing zeroes when the file system does not know the first. A bounced write of a part
//! of a unit reads the unit first.
use crate::{
    bounce::{self, BouncePool, CHUNK_SIZE, NO_CHUNK, ZEROES_SIZE},
    call::{Call, Memory, Transfer},
    counters::Counters,
    image::MAXIMUM_SEGMENTS,
    rules::Rules,
    step::Step,
    write_order::Hold,
};
use pollux_abi::block::{EIO, Operation, Request};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// Most bytes of one call with one segment. Calls with several may hold more; the kernel shortens them.
const MAXIMUM_PIECE: usize = 1 << 30;

/// How long the kernel may answer nothing but "not now" before the request fails.
const RETRY_TIME: Duration = Duration::from_secs(5);

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// What follows a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Make the slot's call again: its step or progress has changed.
    Push,
    /// The kernel could not make the call for want of a thread or memory, and said so by this negative errno. It can be
    /// made in another way; if there is none, the request has ended.
    Defer(i32),
    /// The request has ended with 0 or a negative errno.
    Complete(i32),
    /// The medium ends at this byte, where data should be: the request has failed.
    EndOfMedium(u64),
}

/// One request in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) request: Request,
    pub(crate) operation: Operation,
    pub(crate) step: Step,
    /// Bytes that are done.
    progress: u64,
    /// Bytes that the transfer under way is to move at most.
    pub(crate) asked: u32,
    /// Since when the kernel has answered nothing but "not now".
    refused_since: Option<Instant>,
    /// A call of it was made in another way than by the ring.
    pub(crate) is_deferred: bool,
    /// Bytes of the chunk that are the medium's, for a write of a part of them.
    filled: u32,
    pub(crate) chunk: u32,
    pub(crate) hold: Hold,
}

/// What of a bounced request passes through the chunk at a time.
struct Piece {
    /// First byte on the medium, and bytes: whole units.
    offset: u64,
    length: usize,
    /// What of that is the request's.
    skip: usize,
    wanted: usize,
}

impl Slot {
    #[inline(always)]
    pub(crate) fn new(request: Request, operation: Operation, step: Step) -> Self {
        Slot {
            request,
            operation,
            step,
            progress: 0,
            asked: 0,
            refused_since: None,
            is_deferred: false,
            filled: 0,
            chunk: NO_CHUNK,
            hold: Hold::None,
        }
    }

    /// Whether it cannot go on without a chunk.
    #[inline(always)]
    pub(crate) fn needs_chunk(&self) -> bool {
        matches!(self.step, Step::Bounce) && self.chunk == NO_CHUNK
    }

    /// The call of the current step.
    #[inline(always)]
    pub(crate) fn call(&mut self, rules: &Rules, pool: &BouncePool) -> Call {
        // What nearly all requests are is kept short.
        if let (Step::Transfer, 0, [segment]) = (self.step, self.progress, self.request.segments())
            && segment.length <= MAXIMUM_PIECE
        {
            let is_write = self.operation != Operation::Read;
            self.asked = segment.length as u32;
            return Call::Transfer(Transfer {
                is_write,
                is_durable: is_write && self.request.is_fua(),
                memory: Memory::Piece(segment.base),
                offset: self.request.offset(),
                length: self.asked,
            });
        }
        self.next_call(rules, pool)
    }

    fn next_call(&mut self, rules: &Rules, pool: &BouncePool) -> Call {
        let offset = self.request.offset() + self.progress;
        let length = self.request.length() - self.progress;
        let call = match self.step {
            Step::Transfer | Step::TransferThenSync => Call::Transfer(self.transfer(offset)),
            Step::Bounce => Call::Transfer(self.bounce(rules, pool.chunk(self.chunk))),
            Step::PunchHole | Step::DiscardCommand if self.operation == Operation::Discard => {
                let (offset, length) = rules.discarded(&self.request);
                match self.step {
                    Step::PunchHole => Call::Allocate { mode: PUNCH_HOLE, offset, length },
                    _ => Call::Discard { offset, length },
                }
            }
            Step::PunchHole => Call::Allocate { mode: PUNCH_HOLE, offset, length },
            Step::ZeroRange => Call::Allocate { mode: ZERO_RANGE, offset, length },
            Step::WriteZeroes => Call::Transfer(Transfer {
                is_write: true,
                is_durable: false,
                memory: Memory::Piece(pool.zeroes().cast_mut()),
                offset,
                length: length.min(rules.longest_transfer.min(ZEROES_SIZE as u32).into()) as u32,
            }),
            Step::DiscardCommand => Call::Discard { offset, length },
            Step::Sync => Call::Sync,
        };
        if let Call::Transfer(transfer) = &call {
            self.asked = transfer.length;
        }
        call
    }

    /// The rest of the segments as they are. Within a segment only that segment's rest is moved, so that no array of
    /// the plugin's own is needed.
    fn transfer(&self, offset: u64) -> Transfer {
        let mut segments = self.request.segments();
        let mut skip = self.progress;
        while let [first, rest @ ..] = segments
            && skip >= first.length as u64
        {
            skip -= first.length as u64;
            segments = rest;
        }
        let (memory, length) = match segments {
            [first, rest @ ..] if skip > 0 || rest.is_empty() => {
                let piece = Memory::Piece(first.base.wrapping_add(skip as usize));
                (piece, (first.length - skip as usize).min(MAXIMUM_PIECE) as u32)
            }
            _ => {
                let count = segments.len().min(MAXIMUM_SEGMENTS as usize) as u32;
                let rest = self.request.length() - self.progress;
                // A segment is laid out as an iovec is (block_v1).
                (Memory::Segments(segments.as_ptr().cast(), count), rest.min(u32::MAX.into()) as u32)
            }
        };
        let is_write = self.operation != Operation::Read;
        let is_durable = is_write && self.step == Step::Transfer && self.request.is_fua();
        Transfer { is_write, is_durable, memory, offset, length }
    }

    fn piece(&self, rules: &Rules) -> Piece {
        let (offset, mask) = (self.request.offset() + self.progress, rules.length_mask);
        let skip = offset as usize & mask;
        let rest = self.request.length() - self.progress;
        let room = rules.longest_transfer.min(CHUNK_SIZE as u32) as usize - skip;
        let wanted = rest.min(room as u64) as usize;
        Piece { offset: offset - skip as u64, length: (skip + wanted + mask) & !mask, skip, wanted }
    }

    /// Whether the medium's bytes come first: the request writes a part of what passes through the chunk.
    fn fills(&self, piece: &Piece) -> bool {
        self.operation != Operation::Read && piece.wanted < piece.length && (self.filled as usize) < piece.length
    }

    fn bounce(&self, rules: &Rules, chunk: *mut u8) -> Transfer {
        let piece = self.piece(rules);
        if self.fills(&piece) {
            let memory = Memory::Piece(chunk.wrapping_add(self.filled as usize));
            let (offset, length) = (piece.offset + u64::from(self.filled), piece.length as u32 - self.filled);
            return Transfer { is_write: false, is_durable: false, memory, offset, length };
        }
        let target = chunk.wrapping_add(piece.skip);
        match self.operation {
            // SAFETY: the request is in flight, and the chunk has room for a piece.
            Operation::Write => unsafe {
                bounce::gather(self.request.segments(), self.progress, target, piece.wanted);
            },
            // SAFETY: the chunk has room for a piece.
            Operation::WriteZeroes => unsafe { target.write_bytes(0, piece.wanted) },
            _ => {}
        }
        let is_durable = self.operation == Operation::Write && self.request.is_fua();
        let (is_write, memory) = (self.operation != Operation::Read, Memory::Piece(chunk));
        Transfer { is_write, is_durable, memory, offset: piece.offset, length: piece.length as u32 }
    }

    /// Whether `result`, the kernel's answer to the call, is the end of a transfer, as nearly all are.
    #[inline(always)]
    pub(crate) fn has_completed(&self, result: i32) -> bool {
        matches!(self.step, Step::Transfer)
            && result >= 0
            && self.progress + u64::from(result as u32) == self.request.length()
    }

    /// What follows `result`, the kernel's answer to the call.
    #[inline]
    pub(crate) fn completed(&mut self, result: i32, rules: &Rules, pool: &BouncePool, counters: &Counters) -> Next {
        if self.has_completed(result) {
            return Next::Complete(0);
        }
        self.completed_otherwise(result, rules, pool, counters)
    }

    fn completed_otherwise(&mut self, result: i32, rules: &Rules, pool: &BouncePool, counters: &Counters) -> Next {
        if result >= 0 {
            self.refused_since = None;
            return self.advanced(result as u32, rules, pool, counters);
        }
        match (-result, self.step) {
            (libc::EINTR | libc::EAGAIN, _)
                if self.refused_since.get_or_insert_with(Instant::now).elapsed() < RETRY_TIME =>
            {
                counters.resubmitted.fetch_add(1, Ordering::Relaxed);
                Next::Push
            }
            // The threads of io_uring cannot be made. Of a sync, only that says that the kernel has not tried: whatever
            // else it says, it says only once (`sync_turns`).
            (libc::ECANCELED | libc::EAGAIN, _) if !self.is_deferred => self.deferred(result),
            (libc::ENOMEM, step) if step != Step::Sync && !self.is_deferred => self.deferred(result),
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
                self.step = rules.zeroes_written(&self.request);
                counters.zeroes_written.fetch_add(1, Ordering::Relaxed);
                Next::Push
            }
            _ => Next::Complete(result),
        }
    }

    fn deferred(&mut self, result: i32) -> Next {
        self.is_deferred = true;
        self.refused_since = None;
        Next::Defer(result)
    }

    fn advanced(&mut self, moved: u32, rules: &Rules, pool: &BouncePool, counters: &Counters) -> Next {
        match self.step {
            Step::PunchHole | Step::ZeroRange | Step::DiscardCommand => return self.zeroed(),
            Step::Sync => return Next::Complete(0),
            Step::Bounce => return self.bounced(moved as usize, rules, pool, counters),
            Step::Transfer | Step::TransferThenSync | Step::WriteZeroes => {}
        }
        // Direct transfers end within a unit only where the file ends.
        self.moved(moved.into(), moved as usize & rules.length_mask != 0, counters)
    }

    /// A transfer between the medium and the chunk has ended.
    fn bounced(&mut self, moved: usize, rules: &Rules, pool: &BouncePool, counters: &Counters) -> Next {
        let piece = self.piece(rules);
        let is_at_end = moved & rules.length_mask != 0;
        if self.fills(&piece) {
            self.filled += moved as u32;
            if moved == 0 || is_at_end {
                return Next::EndOfMedium(piece.offset + u64::from(self.filled));
            }
            return Next::Push;
        }
        self.filled = 0;
        let useful = moved.saturating_sub(piece.skip).min(piece.wanted);
        if self.operation == Operation::Read {
            let source = pool.chunk(self.chunk).wrapping_add(piece.skip);
            // SAFETY: the request is in flight, and the kernel has filled that much of the chunk.
            unsafe { bounce::scatter(source, self.request.segments(), self.progress, useful) };
        }
        self.moved(useful as u64, is_at_end, counters)
    }

    /// So many bytes of the request are done. The medium ends there if the transfer ended within a unit.
    fn moved(&mut self, bytes: u64, is_at_end: bool, counters: &Counters) -> Next {
        self.progress = (self.progress + bytes).min(self.request.length());
        if self.progress == self.request.length() {
            return match (self.operation, self.step) {
                (Operation::WriteZeroes, _) => self.zeroed(),
                (_, Step::TransferThenSync) => self.then_sync(),
                _ => Next::Complete(0),
            };
        }
        if self.operation == Operation::Read && (bytes == 0 || is_at_end) {
            return Next::EndOfMedium(self.request.offset() + self.progress);
        }
        if bytes == 0 {
            return Next::Complete(-EIO);
        }
        if matches!(self.step, Step::Transfer | Step::TransferThenSync) {
            counters.resubmitted.fetch_add(1, Ordering::Relaxed);
        }
        Next::Push
    }

    /// The range is discarded, or reads as zeroes. Allocation has no "force unit access" of its own.
    fn zeroed(&mut self) -> Next {
        if self.operation == Operation::WriteZeroes && self.request.is_fua() {
            return self.then_sync();
        }
        Next::Complete(0)
    }

    fn then_sync(&mut self) -> Next {
        self.step = Step::Sync;
        self.is_deferred = false;
        Next::Push
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
        let (pool, counters, rules) = (BouncePool::new(1).expect("made"), Counters::default(), Rules::NONE);
        let answer = |slot: &mut Slot| slot.completed(-libc::EAGAIN, &rules, &pool, &counters);
        for _ in 0..5000 {
            assert_eq!(answer(&mut slot), Next::Push);
        }
        let Some(long_ago) = Instant::now().checked_sub(RETRY_TIME) else {
            println!("SKIPPED: this host was started a moment ago");
            return;
        };
        slot.refused_since = Some(long_ago);
        assert_eq!(answer(&mut slot), Next::Defer(-libc::EAGAIN));
        slot.refused_since = Some(long_ago);
        assert_eq!(answer(&mut slot), Next::Complete(-libc::EAGAIN));
    }
}
