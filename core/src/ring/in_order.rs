//! Use of buffers in the order in which they were made available (VIRTIO_F_IN_ORDER; virtio 1.3, 2.7.9 and 2.8.8).
use super::{
    chain::{Chain, SegmentList},
    config::{QueueConfig, RingStart},
    device_side::Ring,
    error::RingError,
};
use crate::{
    event::Watch,
    fallible,
    memory::{DirtyLog, Translator},
};

/// A ring that can say by one used element that a run of chains has been used.
pub trait UsedRuns: Ring {
    /// Gives chains back that were made available one after the other and are the oldest that the device has, by one
    /// used element: that of the last, of which the device has written `written` bytes. Of all before it the driver
    /// assumes that their writable part was written completely. For a driver that has accepted IN_ORDER.
    fn push_used_run(&mut self, chains: &[u16], written: u32);
}

/// A ring whose chains are given back in the order in which they were made available, whatever order they end in: a
/// completed chain waits for those before it.
///
/// Seen from outside, a waiting chain is in flight: it has not been pushed to the inner ring, so the driver does not
/// see it, a [base](Ring::base) does not count it, and the record of requests in flight still has it. If the process
/// dies, the next one carries it out again, like every request whose completion the driver has not seen.
#[derive(Debug)]
pub struct InOrder<R> {
    ring: R,
    /// By the name of the chain.
    states: Box<[State]>,
    /// The chains in flight, in their order: `count` of them from `oldest` on, around the end.
    order: Box<[u16]>,
    oldest: usize,
    count: usize,
}

/// What is known of a chain.
#[derive(Clone, Copy, Debug)]
struct State {
    phase: Phase,
    /// Bytes that the device has written, once it has ended.
    written: u32,
    /// Bytes that the driver lets it write.
    writable: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The driver's.
    Free,
    /// Not ended yet.
    InFlight,
    /// Ended, and not given back yet.
    Ended,
}

impl<R: UsedRuns> Ring for InOrder<R> {
    fn lay_out(config: &QueueConfig, tables: Translator, event_idx: bool, start: RingStart) -> Result<Self, RingError> {
        let ring = R::lay_out(config, tables, event_idx, start)?;
        let size = usize::from(ring.size());
        let free = State { phase: Phase::Free, written: 0, writable: 0 };
        let (states, order) = (fallible::filled(free, size)?, fallible::filled(0, size)?);
        Ok(InOrder { ring, states, order, oldest: 0, count: 0 })
    }

    fn resume(&mut self) -> Result<(), RingError> {
        self.ring.resume()
    }

    fn check(config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        R::check(config, tables)
    }

    fn adopt(&mut self, config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        self.ring.adopt(config, tables)
    }

    fn set_log(&mut self, log: Option<(DirtyLog, u64)>) -> Option<(DirtyLog, u64)> {
        self.ring.set_log(log)
    }

    fn base(&self) -> u32 {
        self.ring.base()
    }

    fn size(&self) -> u16 {
        self.ring.size()
    }

    /// # Errors
    /// Also if the driver makes a chain available that the device still has, even if it has completed and is waiting.
    #[inline]
    fn pop(&mut self, heads: &mut [u16]) -> Result<usize, RingError> {
        let count = self.ring.pop(heads)?;
        self.append(&heads[..count])?;
        Ok(count)
    }

    #[cold]
    fn pop_recovered(&mut self, heads: &mut [u16]) -> usize {
        // In the order in which they were taken, which is that in which they were made available.
        let count = self.ring.pop_recovered(heads);
        let appended = self.append(&heads[..count]);
        debug_assert!(appended.is_ok(), "recovered chains are taken once, and before all others");
        count
    }

    fn has_recovered_chains(&self) -> bool {
        self.ring.has_recovered_chains()
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.ring.has_available()
    }

    fn watch(&self) -> Option<Watch> {
        self.ring.watch()
    }

    #[inline(always)]
    fn walk(&mut self, head: u16, data: &mut Translator, segments: &mut SegmentList<'_>) -> Result<Chain, RingError> {
        let chain = self.ring.walk(head, data, segments)?;
        self.states[usize::from(head)].writable = chain.writable_bytes;
        Ok(chain)
    }

    #[inline]
    fn push_used(&mut self, head: u16, written: u32) {
        let state = &mut self.states[usize::from(head)];
        debug_assert_eq!(state.phase, Phase::InFlight, "a chain is given back once");
        (state.phase, state.written) = (Phase::Ended, written);
    }

    #[inline]
    fn publish(&mut self) -> bool {
        while self.push_run() {}
        self.ring.publish()
    }

    fn used_count(&self) -> u16 {
        self.ring.used_count()
    }

    #[inline]
    fn needs_signal(&mut self) -> bool {
        self.ring.needs_signal()
    }

    fn disable_kicks(&mut self) {
        self.ring.disable_kicks();
    }

    fn enable_kicks(&mut self) -> bool {
        self.ring.enable_kicks()
    }
}

impl<R: UsedRuns> InOrder<R> {
    /// Notes that chains were taken.
    #[inline]
    fn append(&mut self, heads: &[u16]) -> Result<(), RingError> {
        for &head in heads {
            let state = &mut self.states[usize::from(head)];
            if state.phase != Phase::Free {
                return Err(RingError::InUse(head));
            }
            // If it is never walked, the length that it lets us write is unknown, and no length equals that.
            *state = State { phase: Phase::InFlight, written: 0, writable: u64::MAX };
            // There is room: each chain is in it once, and there are no more than the ring has descriptors.
            let at = self.oldest + self.count;
            let at = if at < self.order.len() { at } else { at - self.order.len() };
            self.order[at] = head;
            self.count += 1;
        }
        Ok(())
    }

    /// Gives back the oldest chains, as many as one used element can stand for. Returns whether there were any.
    #[inline]
    fn push_run(&mut self) -> bool {
        // A run ends where `order` does.
        let end = self.order.len().min(self.oldest + self.count);
        let (mut length, mut written) = (0, 0);
        for &head in &self.order[self.oldest..end] {
            let state = &mut self.states[usize::from(head)];
            if state.phase != Phase::Ended {
                break;
            }
            state.phase = Phase::Free;
            length += 1;
            written = state.written;
            // The driver assumes that skipped chains were written completely (virtio 1.3, 2.7.9 and 2.8.8): one that
            // was not ends the run and gets its element.
            if u64::from(written) != state.writable {
                break;
            }
        }
        if length == 0 {
            return false;
        }
        self.ring.push_used_run(&self.order[self.oldest..self.oldest + length], written);
        self.count -= length;
        self.oldest += length;
        if self.oldest == self.order.len() {
            self.oldest = 0;
        }
        true
    }
}
