//! What a task at rest waits for.
use std::sync::atomic::{AtomicU16, Ordering};

/// A word of 16 bits in memory, and the value that it has while there is nothing to do: the index of a ring's available
/// entries, or the flags of its next descriptor.
///
/// Checking it costs one load. It tells only that the task should be polled.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    word: *const u16,
    idle: u16,
}

static NOTHING: AtomicU16 = AtomicU16::new(0);

impl Watch {
    /// For a task that is not at rest.
    pub(crate) const NONE: Watch = Watch { word: NOTHING.as_ptr(), idle: 0 };

    /// For a task that waits for no change in memory, only for its deadline or a sign.
    pub fn nothing() -> Self {
        Self::NONE
    }

    /// For a task whose next turn does nothing while `word` is `idle`.
    ///
    /// # Safety
    /// `word` is aligned and can be read until the task is next polled, changed, stopped or dropped. All writers, in
    /// this process or another, write it as a whole.
    pub unsafe fn new(word: *const u16, idle: u16) -> Self {
        Watch { word, idle }
    }

    /// Whether the task should be polled.
    #[inline(always)]
    pub(crate) fn has_changed(&self) -> bool {
        // Relaxed: the task's own read of the word has the barrier needed for the data behind it. SAFETY: the caller of
        // the constructor promised that the word can be read for as long as the task rests.
        unsafe { AtomicU16::from_ptr(self.word.cast_mut()) }.load(Ordering::Relaxed) != self.idle
    }
}
