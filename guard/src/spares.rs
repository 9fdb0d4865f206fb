//! Mappings that are there to be given up. A process may have only so many (`vm.max_map_count`), and to replace a part
//! of one takes one more: the guard must work when there are no more.
use std::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

/// How many there are. A repair takes two at most: one part of a mapping is replaced, and one may remain on each side.
const COUNT: usize = 16;
/// Any size does.
const BYTES: usize = 4096;

static SPARES: [AtomicPtr<libc::c_void>; COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; COUNT];

/// Makes those that are missing, as far as it goes. Not for the handler.
pub(crate) fn top_up() {
    for spare in SPARES.iter().filter(|spare| spare.load(Ordering::Relaxed).is_null()) {
        // Shared, so that the kernel does not take several for one.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let new = unsafe { libc::mmap(ptr::null_mut(), BYTES, libc::PROT_NONE, flags, -1, 0) };
        if new == libc::MAP_FAILED {
            return;
        }
        // Partner: the swap in `give_up_one`.
        if spare.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: ours, and nobody has seen it.
            unsafe { libc::munmap(new, BYTES) };
        }
    }
}

/// Unmaps one of them. `false`: there is none left. Async-signal-safe.
pub(crate) fn give_up_one() -> bool {
    SPARES.iter().any(|spare| {
        // Partner: the exchange in `top_up`.
        let spare = spare.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: a mapping of ours that nobody uses, and that nobody else has got from the list.
        !spare.is_null() && unsafe { libc::munmap(spare, BYTES) } == 0
    })
}
