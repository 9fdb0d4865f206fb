//! A ring's queue in the order of writes (`write_order`), where the image has one.
use super::RingQueue;
use crate::{
    image::Image,
    protocol::Protocol,
    ring::Ring,
    write_order::{Hold, Turns},
};
use io_uring::{cqueue, squeue};
use pollux_abi::block::Completions;
use std::{io, sync::Arc};

/// The queue's part.
#[derive(Debug)]
pub(super) struct Ordered {
    turns: Arc<Turns>,
    /// Slots that wait for their turn.
    waiting: Vec<u32>,
    /// Slots in flight that are only counted.
    counted: u32,
}

impl Ordered {
    pub(super) fn of<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
        image: &Image,
        ring: &Ring<S, C>,
        depth: u32,
    ) -> io::Result<Option<Self>> {
        if image.write_order.is_none() {
            return Ok(None);
        }
        let (turns, waiting) = (Turns::of_worker(ring.wake_fd())?, Vec::with_capacity(depth as usize));
        Ok(Some(Ordered { turns, waiting, counted: 0 }))
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the worker must not sleep.
    pub(super) fn has_turns(&self) -> bool {
        self.waits() && !self.turns.is_empty()
    }

    pub(super) fn idle(&self) -> usize {
        self.waiting.len()
    }
}

impl<P: Protocol> RingQueue<P> {
    /// Begins a new slot as soon as the order allows it.
    #[cold]
    pub(super) fn begin_in_order(&mut self, index: u32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_mut().expect("the slot was just filled");
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order)
            && let Some(change) = self.rules.change(&slot.request, slot.operation)
        {
            let (hold, is_granted) = order.enter(&ordered.turns, index, change);
            slot.hold = hold;
            ordered.counted += u32::from(hold == Hold::Counted);
            if !is_granted {
                ordered.waiting.push(index);
                return;
            }
        }
        self.begin(index, done);
    }

    /// A slot has ended.
    #[cold]
    pub(super) fn leave_order(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots end");
        let hold = std::mem::take(&mut slot.hold);
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order) {
            ordered.counted -= u32::from(hold == Hold::Counted);
            order.leave(&ordered.turns, index, hold);
        }
    }

    /// Begins the slots whose turn has come.
    #[cold]
    pub(super) fn take_turns(&mut self, done: &mut Completions) {
        let Some(ordered) = &mut self.ordered else { return };
        let granted = ordered.turns.take();
        ordered.waiting.retain(|index| !granted.contains(index));
        for index in granted {
            self.begin_later(index, done);
        }
    }

    /// The queue is given up: what waits never begins.
    pub(super) fn stop_waiting(&mut self) {
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order) {
            for index in ordered.waiting.drain(..) {
                order.leave(&ordered.turns, index, Hold::InLine);
                self.free.push(index);
            }
        }
    }

    /// The kernel has let go of everything.
    pub(super) fn abandon_order(&mut self) {
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order) {
            order.abandon(&ordered.turns, std::mem::take(&mut ordered.counted));
        }
    }
}
