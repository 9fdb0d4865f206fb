//! A ring's queue in the order of writes (`write_order`), where the image has one.
use crate::{
    image::Image,
    ring::Ring,
    slot::Slot,
    write_order::{Change, Hold, Turns, WriteOrder},
};
use io_uring::{cqueue, squeue};
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

    /// Asks permission to make a slot's change, and returns whether it may begin. If not, it is among
    /// [`granted`](Self::granted) when its turn has come.
    pub(super) fn enter(&mut self, order: &WriteOrder, index: u32, slot: &mut Slot, change: Change) -> bool {
        let (hold, is_granted) = order.enter(&self.turns, index, change);
        slot.hold = hold;
        self.counted += u32::from(hold == Hold::Counted);
        if !is_granted {
            self.waiting.push(index);
        }
        is_granted
    }

    /// A slot has ended.
    pub(super) fn leave(&mut self, order: &WriteOrder, index: u32, slot: &mut Slot) {
        let hold = std::mem::take(&mut slot.hold);
        self.counted -= u32::from(hold == Hold::Counted);
        order.leave(&self.turns, index, hold);
    }

    /// The slots whose turn has come.
    pub(super) fn granted(&mut self) -> Vec<u32> {
        let granted = self.turns.take();
        self.waiting.retain(|index| !granted.contains(index));
        granted
    }

    /// The queue is given up: what waits never begins, and its slots are free.
    pub(super) fn stop_waiting(&mut self, order: &WriteOrder, free: &mut Vec<u32>) {
        for index in self.waiting.drain(..) {
            order.leave(&self.turns, index, Hold::InLine);
            free.push(index);
        }
    }

    /// The kernel has let go of everything.
    pub(super) fn abandon(&mut self, order: &WriteOrder) {
        order.abandon(&self.turns, std::mem::take(&mut self.counted));
    }
}
