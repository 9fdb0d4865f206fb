//! Room for the segments of long chains: a pool for the requests in flight, however large the ring is.
//!
//! A ring of 32768 entries, each with room for the longest chain, would take 134 MB a queue, and the front end chooses
//! the size. So there are at most [`ROOMS_MAX`]. A queue takes no more chains at once than there are rooms left; the
//! others stay in the ring until requests end. None fails because of this.
use super::slot::{Inline, Overflow};
use crate::{fallible, queue::BATCH, ring::RingError};
use std::{
    alloc::{Layout, alloc_zeroed},
    ptr,
};

/// Most requests in flight that have more segments than [`Inline`] holds. Full batches are taken up to 256 of them.
const ROOMS_MAX: usize = 256 + BATCH;

/// The rooms of one queue.
#[derive(Debug)]
pub(super) struct Rooms {
    /// The memory is zeroed and untouched until a long chain comes.
    overflow: Box<[Overflow]>,
    /// The rooms that are free.
    free: Vec<u16>,
    /// The last of those, in `overflow`: where the next chain's segments go if it is a long one.
    next: *mut Overflow,
    /// Which room the request of each head has, if it is a long one.
    by_head: Box<[u16]>,
    /// Whether fewer than a full batch are free.
    are_few: bool,
}

impl Rooms {
    /// Rooms for a ring of `size` entries.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn new(size: usize) -> Result<Self, RingError> {
        // Enough for a ring of up to 256 entries to always have room for a full batch.
        let count = ROOMS_MAX.min(size + BATCH);
        let mut free = fallible::with_capacity(count)?;
        free.extend(0..count as u16);
        // SAFETY: all zeroes are a null pointer and a length of 0, for each segment.
        let overflow = unsafe { zeroed(count) }.ok_or(RingError::Memory)?;
        let by_head = fallible::filled(0, size)?;
        let mut rooms = Rooms { overflow, free, next: ptr::null_mut(), by_head, are_few: false };
        rooms.note_free();
        Ok(rooms)
    }

    /// Whether fewer chains than a full batch can be taken.
    #[inline(always)]
    pub(super) fn are_few(&self) -> bool {
        self.are_few
    }

    /// How many chains can be taken from the ring at once: each of them may turn out to be a long one. 0: requests must
    /// end first.
    pub(super) fn batch(&self) -> usize {
        self.free.len().min(BATCH)
    }

    /// Room for the next chain, if it is a long one.
    #[inline(always)]
    pub(super) fn next(&mut self) -> &mut Overflow {
        // SAFETY: `note_free` took it from our own box, and no other references into it exist while `self` is borrowed.
        unsafe { &mut *self.next }
    }

    /// The room returned by [`next`](Self::next) belongs to chain `head` from now on.
    #[cold]
    pub(super) fn take(&mut self, head: u16) {
        let room = self.free.pop().expect("no more chains are taken at once than there are rooms");
        self.by_head[usize::from(head)] = room;
        self.note_free();
    }

    /// The request of chain `head` has ended. Its room is as it was until the next chain is taken.
    #[cold]
    pub(super) fn give_back(&mut self, head: u16) {
        self.free.push(self.by_head[usize::from(head)]);
        self.note_free();
    }

    /// The room that chain `head` has, or had last.
    pub(super) fn of(&self, head: u16) -> &Overflow {
        &self.overflow[usize::from(self.by_head[usize::from(head)])]
    }

    /// The room that chain `head` has.
    pub(super) fn of_mut(&mut self, head: u16) -> &mut Overflow {
        &mut self.overflow[usize::from(self.by_head[usize::from(head)])]
    }

    fn note_free(&mut self) {
        let next = self.free.last().copied().unwrap_or(0);
        self.next = &raw mut self.overflow[usize::from(next)];
        self.are_few = self.free.len() < BATCH;
    }
}

/// Room for the segments that most requests have, for each of `count` heads.
///
/// # Errors
/// There is no memory for it.
pub(super) fn inline_rooms(count: usize) -> Result<Box<[Inline]>, RingError> {
    // SAFETY: all zeroes are a null pointer and a length of 0, for each segment.
    unsafe { zeroed(count) }.ok_or(RingError::Memory)
}

/// Memory that costs nothing before it is touched. `None`: it cannot be allocated.
///
/// # Safety
/// All zeroes must be a value of `T`.
unsafe fn zeroed<T>(count: usize) -> Option<Box<[T]>> {
    let layout = Layout::array::<T>(count).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout has a size.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: allocated as a box of this slice would be, and the caller vouches for the zeroes.
    Some(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(memory.cast(), count)) })
}
