//! Which mappings are guarded.
use crate::{
    handler::install,
    pages::page_size_of,
    ranges::{Range, Slot, claim},
    spares,
};
use libc::c_int;
use std::{
    fs::File,
    io,
    sync::atomic::{Ordering, fence},
};

/// The guard of one range, which ends when this is dropped: before the range is unmapped, or else the handler would
/// find it where the kernel has put something new.
#[derive(Debug)]
pub struct Registration {
    slot: &'static Slot,
}

impl Registration {
    /// Guards a mapping of `length` bytes of `file` at `start`, made with `protection` as for mmap(2).
    ///
    /// # Errors
    /// The handler cannot be installed, or the file does not say what its pages are.
    ///
    /// # Safety
    /// The range is such a mapping, which is the caller's alone to unmap and stays until this is dropped. From the page
    /// that an access does not find up to its end, it may be replaced by zeroed private memory at any time.
    pub unsafe fn new(file: &File, start: *const u8, length: usize, protection: c_int) -> io::Result<Self> {
        let page_size = page_size_of(file)? as usize;
        let end = (start.addr() + length).next_multiple_of(page_size);
        Self::of_range(Range { start: start.addr(), end, page_size, protection })
    }

    fn of_range(range: Range) -> io::Result<Self> {
        install()?;
        spares::top_up();
        let slot = claim();
        slot.damaged.store(false, Ordering::Relaxed);
        slot.set(range);
        Ok(Registration { slot })
    }

    /// Says what the caller has found out by other means: the file has lost pages of the range.
    pub fn set_damaged(&self) {
        self.slot.damaged.store(true, Ordering::Release);
    }

    /// Whether pages of the range were lost.
    #[inline]
    pub fn is_damaged(&self) -> bool {
        // Orders the caller's reads of the memory before the look at the flag. Partner: the swap in `repair`, which
        // comes before the memory changes.
        fence(Ordering::Acquire);
        self.slot.damaged.load(Ordering::Acquire)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.slot.set(Range { start: 0, end: 0, page_size: 1, protection: 0 });
        // Partner: the exchange in `claim`.
        self.slot.claimed.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::{SLOTS, find};
    use std::ptr;

    #[test]
    fn finds_each_of_many_ranges_and_reuses_their_slots() {
        // Addresses that nothing is mapped at: far above what a process has.
        let range = |index: usize| Range {
            start: (1 << 60) + index * 0x2000,
            end: (1 << 60) + index * 0x2000 + 0x1000,
            page_size: 0x1000,
            protection: libc::PROT_READ,
        };
        let count = 3 * SLOTS;
        let slots = |registrations: &[Registration]| -> Vec<usize> {
            let mut slots: Vec<_> = registrations.iter().map(|one| ptr::from_ref(one.slot).addr()).collect();
            slots.sort_unstable();
            slots.dedup();
            slots
        };
        let register = || (0..count).map(|index| Registration::of_range(range(index)).expect("registration")).collect();
        let first: Vec<Registration> = register();
        let first_slots = slots(&first);
        assert_eq!(first_slots.len(), count, "each has its own slot");
        for (index, registration) in first.iter().enumerate() {
            let (slot, found) = find(range(index).start + 0xfff).expect("registered");
            assert!(ptr::eq(slot, registration.slot));
            assert_eq!((found.start, found.end), (range(index).start, range(index).end));
            assert!(find(range(index).end).is_none(), "a hole");
        }
        drop(first);
        assert!((0..count).all(|index| find(range(index).start).is_none()), "gone when dropped");
        let second: Vec<Registration> = register();
        assert_eq!(slots(&second), first_slots, "the same slots again: the table does not grow");
    }
}
