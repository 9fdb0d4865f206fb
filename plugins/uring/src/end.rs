//! Where the medium ends. A guest may use all of the capacity that it was told of: what is missing below it is an error
//! and never a hole full of zeroes.
//!
//! Nothing keeps others from cutting an image that is in use. A read finds out, for it comes to the end too early. A
//! write would not: it makes a file longer again, and what lies between reads as zeroes from then on. So the first
//! change of each `submit` looks at a file's length (`Image::look_at_end`), and so does each that goes on later, after
//! it has waited or was done in part. All requests beyond the lowest end that was found fail, whatever becomes of the
//! file, until the medium is measured again: then the guest is told of the capacity that there is.
//!
//! A write that the kernel has already begun, or queued for one of its threads, is beyond reach. So is one to a file
//! whose length only another machine or process knows, except by system calls, which may wait for it anyway.
use std::sync::atomic::{AtomicU64, Ordering};

/// No request has come to an end too early.
pub(crate) const NOTHING_LOST: u64 = u64::MAX;

/// The end of a medium. All sizes are in bytes.
#[derive(Debug)]
pub(crate) struct MediumEnd {
    /// The capacity that the host was told of last.
    told: AtomicU64,
    /// The lowest end below it that a request has come to since then, or the capacity if it has become less.
    lost_from: AtomicU64,
}

impl MediumEnd {
    pub(crate) fn new(capacity: u64) -> Self {
        MediumEnd { told: AtomicU64::new(capacity), lost_from: AtomicU64::new(NOTHING_LOST) }
    }

    /// The host is told of this capacity. What was lost before is forgotten. If it is less than before, requests beyond
    /// it fail as they did: the workers hear of it later, and until then let them pass.
    pub(crate) fn tell(&self, capacity: u64) {
        let (before, lost_from) = (self.told(), self.lost_from());
        let is_kept = capacity == before && lost_from == capacity;
        if capacity < before || is_kept {
            self.lost_from.store(capacity, Ordering::Relaxed);
            self.told.store(capacity, Ordering::Relaxed);
        } else {
            self.told.store(capacity, Ordering::Relaxed);
            self.lost_from.store(NOTHING_LOST, Ordering::Relaxed);
        }
    }

    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Requests beyond this byte fail.
    #[inline(always)]
    pub(crate) fn lost_from(&self) -> u64 {
        self.lost_from.load(Ordering::Relaxed)
    }

    /// The medium was found to end at this byte. Returns whether that is news: it is too early, and nobody knew.
    pub(crate) fn found_at(&self, end: u64) -> bool {
        let told = self.told();
        end < told && self.lost_from.fetch_min(end, Ordering::Relaxed) >= told
    }
}
