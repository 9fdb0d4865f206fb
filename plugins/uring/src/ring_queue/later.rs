//! What happens to a slot after its acceptance: its turn in the order of writes, the next call, bounce memory that it
//! has waited for, the call of another thread.
use super::{RingQueue, ordered::Ordered};
use crate::{call::Call, protocol::Protocol, slot::Next, step::Step};
use pollux_abi::block::{Completions, EIO};
use std::sync::atomic::Ordering;

impl<P: Protocol> RingQueue<P> {
    /// Begins a new slot as soon as the order of writes allows it.
    #[cold]
    pub(super) fn begin_in_order(&mut self, index: u32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_mut().expect("the slot was just filled");
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order)
            && let Some(change) = self.rules.change(&slot.request, slot.operation)
            && !ordered.enter(order, index, slot, change)
        {
            return;
        }
        self.begin(index, done);
    }

    /// A slot has ended, and with it its place in the order of writes.
    #[cold]
    pub(super) fn leave_order(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots end");
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order) {
            ordered.leave(order, index, slot);
        }
    }

    /// Begins the slots whose turn has come.
    #[cold]
    pub(super) fn take_turns(&mut self, done: &mut Completions) {
        for index in self.ordered.as_mut().map(Ordered::granted).unwrap_or_default() {
            self.begin_later(index, done);
        }
    }

    /// What follows a result that is not the whole of a transfer.
    #[inline(never)]
    pub(super) fn go_on(&mut self, index: u32, next: Next, done: &mut Completions) {
        let step = self.slots[index as usize].as_ref().expect("only filled slots go on").step;
        match (next, step) {
            (Next::Push, Step::Sync | Step::Bounce) => {
                self.begin_later(index, done);
            }
            (Next::Push, _) => {
                if self.may_go_on(index, done) {
                    self.push(index);
                }
            }
            (Next::Defer(result), _) => self.defer(index, result, done),
            (Next::Complete(result), _) => self.end(index, result, done),
            (Next::EndOfMedium(byte), _) => self.miss(index, byte, done),
        }
    }

    /// The medium ends at this byte, where a slot's data should be.
    #[cold]
    fn miss(&mut self, index: u32, byte: u64, done: &mut Completions) {
        self.image.ended_at(byte);
        self.finish(index, -EIO, done);
    }

    /// Begins a slot that had something to wait for, or has done a part. Returns false if it has ended instead.
    #[cold]
    pub(super) fn begin_later(&mut self, index: u32, done: &mut Completions) -> bool {
        let may_begin = self.may_go_on(index, done);
        if may_begin {
            self.begin(index, done);
        }
        may_begin
    }

    /// Checks whether what a slot changes is still there, some time after it was accepted. If not, the slot ends.
    #[cold]
    fn may_go_on(&mut self, index: u32, done: &mut Completions) -> bool {
        let slot = self.slots[index as usize].as_ref().expect("only filled slots go on");
        let is_sync = matches!(slot.step, Step::Sync);
        if is_sync || !self.rules.must_end(slot.operation, &slot.request, &self.image, &self.sync_file) {
            return true;
        }
        self.finish(index, -EIO, done);
        false
    }

    /// Gives the chunk that is free to the first slot that waits for one and does not end at once.
    #[cold]
    pub(super) fn pass_on(&mut self, done: &mut Completions) {
        while let Some(next) = self.waiting.pop_front() {
            if self.begin_later(next, done) {
                return;
            }
        }
    }

    /// Has the call of a slot made by the image's own thread, after `result` has said that the kernel has none for it.
    #[cold]
    fn defer(&mut self, index: u32, result: i32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots are deferred");
        let Some(thread) = &self.image.fallback else {
            return self.end(index, result, done);
        };
        let call = slot.call(&self.rules, &self.pool);
        let file = if matches!(call, Call::Sync) { &self.sync_file } else { &self.image.file };
        self.image.counters.deferred.fetch_add(1, Ordering::Relaxed);
        self.deferred.in_flight += 1;
        // SAFETY: as in `push`; `drain` withdraws the call or waits for it.
        unsafe { thread.make(call, index, file.clone(), self.deferred.results.clone()) };
    }

    #[cold]
    pub(super) fn reap_deferred(&mut self, done: &mut Completions) {
        for (index, result) in self.deferred.results.take() {
            self.deferred.in_flight -= 1;
            let slot = self.slots[index as usize].as_mut().expect("only filled slots complete");
            let next = slot.completed(result, &self.rules, &self.pool, &self.image.counters);
            match next {
                Next::Push if slot.is_deferred && !slot.needs_chunk() => {
                    if self.may_go_on(index, done) {
                        self.defer(index, result, done);
                    }
                }
                Next::Push => {
                    // The ring's turn again, which may refuse again.
                    slot.is_deferred = false;
                    self.begin_later(index, done);
                }
                Next::Defer(result) | Next::Complete(result) => self.end(index, result, done),
                Next::EndOfMedium(byte) => self.miss(index, byte, done),
            }
        }
        // What has gone back to the ring waits for no other turn.
        if self.ring.wants_enter() {
            self.ring.enter();
        }
    }
}
