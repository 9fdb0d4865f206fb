//! The ranges that are guarded, as the handler finds them.
use crate::{handler::install, pages::page_size_of, spares};
use libc::c_int;
use std::{
    fs::File,
    io, ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
};

/// A mapping's range as the handler needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// First address; a multiple of the page size.
    pub(crate) start: usize,
    /// First address after it; a multiple of the page size.
    pub(crate) end: usize,
    /// Size in bytes of the file's pages, a power of two.
    pub(crate) page_size: usize,
    /// As for mmap(2).
    pub(crate) protection: c_int,
}

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

const SLOTS: usize = 64;

/// Some slots, and where more are. Chunks are appended when slots run out, and stay: the handler may be in any of them.
#[derive(Debug)]
struct Chunk {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Chunk>,
}

static TABLE: Chunk = Chunk::new();

impl Chunk {
    const fn new() -> Self {
        Chunk { slots: [const { Slot::new() }; SLOTS], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // Partner: the exchange in `append`.
        let next = self.next.load(Ordering::Acquire);
        // SAFETY: null, or a box that was leaked whole before its address was stored.
        unsafe { next.as_ref() }
    }

    /// The chunk after this one, which is made if there is none.
    fn append(&self) -> &'static Chunk {
        if let Some(next) = self.next() {
            return next;
        }
        let new = Box::into_raw(Box::new(Chunk::new()));
        // Partner: the load in `next`.
        match self.next.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: ours, and leaked from here on.
            Ok(_) => unsafe { &*new },
            Err(theirs) => {
                // SAFETY: nobody has seen the new one, and theirs is leaked.
                unsafe {
                    drop(Box::from_raw(new));
                    &*theirs
                }
            }
        }
    }
}

/// One range, or none: then start and end are equal.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Whether a registration has it.
    claimed: AtomicBool,
    /// Whether pages of the range were lost.
    pub(crate) damaged: AtomicBool,
    /// Odd while the fields below change.
    sequence: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
    page_size: AtomicUsize,
    protection: AtomicI32,
}

impl Slot {
    const fn new() -> Self {
        Slot {
            claimed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            sequence: AtomicU64::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page_size: AtomicUsize::new(1),
            protection: AtomicI32::new(0),
        }
    }

    /// Writes the range. Only whoever has claimed the slot may.
    fn set(&self, range: Range) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence + 1, Ordering::Relaxed);
        // Partner: the acquire fence in `get`: a reader that saw a field of ours sees the odd number as well.
        fence(Ordering::Release);
        self.start.store(range.start, Ordering::Relaxed);
        self.end.store(range.end, Ordering::Relaxed);
        self.page_size.store(range.page_size, Ordering::Relaxed);
        self.protection.store(range.protection, Ordering::Relaxed);
        // Partner: the first load in `get`: a reader that saw this number sees the fields.
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// Reads the range; `None` if it changes meanwhile.
    fn get(&self) -> Option<Range> {
        // Partner: the last store in `set`.
        let sequence = self.sequence.load(Ordering::Acquire);
        let range = Range {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            page_size: self.page_size.load(Ordering::Relaxed),
            protection: self.protection.load(Ordering::Relaxed),
        };
        // Partner: the fence in `set`.
        fence(Ordering::Acquire);
        let is_whole = sequence & 1 == 0 && self.sequence.load(Ordering::Relaxed) == sequence;
        is_whole.then_some(range)
    }
}

/// A free slot, which is the caller's now.
fn claim() -> &'static Slot {
    let mut chunk = &TABLE;
    loop {
        for slot in &chunk.slots {
            // Partner: the store when a registration is dropped, after which the slot is as it was left.
            if slot.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return slot;
            }
        }
        chunk = chunk.append();
    }
}

/// The range that has `address`.
pub(crate) fn find(address: usize) -> Option<(&'static Slot, Range)> {
    let mut chunk = Some(&TABLE);
    while let Some(Chunk { slots, .. }) = chunk {
        for slot in slots {
            if let Some(range) = slot.get()
                && (range.start..range.end).contains(&address)
            {
                return Some((slot, range));
            }
        }
        chunk = chunk.and_then(Chunk::next);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn passes_a_slot_by_that_is_being_changed() {
        let slot = Slot::new();
        slot.set(Range { start: 0x1000, end: 0x2000, page_size: 0x1000, protection: 0 });
        assert!(slot.get().is_some());
        slot.sequence.fetch_add(1, Ordering::Relaxed);
        assert!(slot.get().is_none());
    }

    #[test]
    fn never_reads_half_of_one_range_and_half_of_another() {
        let slot = Slot::new();
        let ranges = [(0x1000, 0x2000), (0x7000, 0x9000)];
        let set = |(start, end)| slot.set(Range { start, end, page_size: end - start, protection: end as c_int });
        set(ranges[0]);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..1_000_000 {
                    set(ranges[turn % 2]);
                }
                is_done.store(true, Ordering::Release);
            });
            while !is_done.load(Ordering::Acquire) {
                if let Some(Range { start, end, page_size, protection }) = slot.get() {
                    assert!(ranges.contains(&(start, end)), "{start:#x} to {end:#x}");
                    assert_eq!((page_size, protection), (end - start, end as c_int));
                }
            }
        });
        assert!(slot.get().is_some());
    }
}
