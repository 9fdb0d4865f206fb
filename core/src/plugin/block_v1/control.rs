//! Keeps the control calls of an instance apart, as the contract wants.
use super::{
    super::{announced::AnnouncedMemory, sampler::Source},
    statistics::Statistics,
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long other control calls wait for an answer to `statistics`. Nobody needs that answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a lock that somebody holds is tried.
const INTERVAL: Duration = Duration::from_micros(200);

/// The lock of an instance's control calls.
#[derive(Debug, Default)]
pub(super) struct Control {
    controlled: Mutex<Controlled>,
    /// The call that is being made is `statistics`.
    is_asked: AtomicBool,
}

/// What control calls share.
#[derive(Debug, Default)]
pub(super) struct Controlled {
    /// What the plugin knows of the guest's memory.
    pub(super) memory: AnnouncedMemory,
    /// If it is to be asked what it counts.
    statistics: Option<Statistics>,
}

impl Control {
    /// Waits until no other control call is made, for as long as that takes. `None`: it is `statistics`, and the plugin
    /// does not answer.
    pub(super) fn lock(&self) -> Option<MutexGuard<'_, Controlled>> {
        let mut asked_since = None;
        loop {
            if let Some(controlled) = self.try_lock() {
                return Some(controlled);
            }
            // Relaxed: a moment earlier or later makes no difference.
            if !self.is_asked.load(Ordering::Relaxed) {
                asked_since = None;
            } else if asked_since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                return None;
            }
            thread::sleep(INTERVAL);
        }
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Controlled>> {
        match self.controlled.try_lock() {
            Ok(controlled) => Some(controlled),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Ends the questions for what the plugin counts, with a last one. `false`: it does not answer.
    pub(super) fn end_statistics(self: &Arc<Self>) -> bool {
        match self.lock() {
            None => return false,
            Some(controlled) if controlled.statistics.is_none() => return true,
            Some(_) => {}
        }
        // On a thread of its own, which may be lost. Without one, what was answered before is the last word.
        let control = self.clone();
        let last = thread::Builder::new().name("counters end".into()).spawn(move || control.sample()).ok();
        let start = Instant::now();
        while last.as_ref().is_some_and(|last| !JoinHandle::is_finished(last)) {
            if start.elapsed() >= PATIENCE {
                return false;
            }
            thread::sleep(INTERVAL);
        }
        self.lock().map(|mut controlled| controlled.statistics = None).is_some()
    }
}

impl Controlled {
    /// Has the plugin asked from now on.
    pub(super) fn begin_statistics(&mut self, statistics: Statistics) {
        self.statistics = Some(statistics);
    }
}

impl Source for Control {
    fn sample(&self) {
        // Another control call may hang; the next round is soon.
        let Some(mut controlled) = self.try_lock() else { return };
        let Some(statistics) = &mut controlled.statistics else { return };
        self.is_asked.store(true, Ordering::Relaxed);
        statistics.ask();
        self.is_asked.store(false, Ordering::Relaxed);
    }
}
