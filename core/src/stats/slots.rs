//! Which records of a segment are in use, according to its writer, whatever the file says.
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which records of one kind are in use.
#[derive(Debug)]
pub(super) struct Slots {
    used: Mutex<Vec<bool>>,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Slots { used: Mutex::new(vec![false; capacity]) }
    }

    /// Takes the first that is free. `None`: all are in use.
    pub(super) fn take(&self) -> Option<usize> {
        let mut used = self.lock();
        let index = used.iter().position(|used| !used)?;
        used[index] = true;
        Some(index)
    }

    /// Gives one back.
    pub(super) fn give_back(&self, index: usize) {
        self.lock()[index] = false;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<bool>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
