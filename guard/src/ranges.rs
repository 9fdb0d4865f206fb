//! The ranges that are guarded, as the handler finds them.
use libc::c_int;
use std::{
    ptr,
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

pub(crate) const SLOTS: usize = 64;

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
    /// Whether a registration has it. Partners: the exchange in `claim`, the store when a registration is dropped.
    pub(crate) claimed: AtomicBool,
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
    pub(crate) fn set(&self, range: Range) {
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
pub(crate) fn claim() -> &'static Slot {
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
