//! A number that one thread counts and others read.
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer: a plain load and store, no locked instruction.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Counter(pub(super) AtomicU64);

impl Counter {
    /// Adds to the value. Only the owner of the record may call this.
    #[inline(always)]
    pub fn add(&self, amount: u64) {
        // Relaxed: readers need each number whole, but no order among numbers.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// The value.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the value. Only the owner of the record may call this.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}
