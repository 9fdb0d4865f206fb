//! Serialises the control calls of an instance, as the contract requires.
use super::{announced::AnnouncedMemory, sampler::Source, statistics::Statistics};
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
/// How often to retry a lock that is held.
const INTERVAL: Duration = Duration::from_micros(200);

/// The lock of an instance's control calls.
#[derive(Debug, Default)]
pub(super) struct Control {
    controlled: Mutex<Controlled>,
    /// The call in progress is `statistics`.
    is_asked: AtomicBool,
}

/// What control calls share.
#[derive(Debug, Default)]
pub(super) struct Controlled {
    /// Which memory of the guest the plugin knows.
    pub(super) memory: AnnouncedMemory,
    /// How to query its counters, if that is wanted.
    statistics: Option<Statistics>,
}

impl Control {
    /// Waits until no other control call is in progress, for as long as that takes. `None`: the call is `statistics`,
    /// and the plugin does not answer.
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

    /// Ends the queries of the plugin's counters with a last one. `false`: the plugin does not answer.
    pub(super) fn end_statistics(self: &Arc<Self>) -> bool {
        match self.lock() {
            None => return false,
            Some(controlled) if controlled.statistics.is_none() => return true,
            Some(_) => {}
        }
        // On a thread of its own, which may never return. Without a thread, the previous answer stays the last one.
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
    /// Starts the queries.
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
