//! Queries the plugins' own counters now and then.
//!
//! A plugin may take its time over an answer, or never give one: a medium that hangs is a normal state. If a query
//! takes longer than [`PATIENCE`], its thread is abandoned to it, and another thread queries the other plugins. So
//! there is one of these threads for each plugin that hangs, and one more.
use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};
use tracing::warn;

/// How often each plugin is queried.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take before another thread queries the others.
const PATIENCE: Duration = Duration::from_millis(200);

/// Something that can be queried.
pub(super) trait Source: Send + Sync + 'static {
    /// Queries it once, on a control thread. It does not wait for other control calls, which may hang.
    fn sample(&self);
}

/// Queries `source` soon, and then at intervals, until it is dropped.
pub(super) fn add(source: Weak<dyn Source>) {
    static SAMPLER: OnceLock<&Sampler> = OnceLock::new();
    SAMPLER.get_or_init(Sampler::start).add(source);
}

struct Sampler {
    sources: Mutex<Sources>,
    added: Condvar,
}

#[derive(Default)]
struct Sources {
    list: Vec<Arc<Entry>>,
    /// Sources that have not been queried yet.
    fresh: Vec<Arc<Entry>>,
}

struct Entry {
    source: Weak<dyn Source>,
    /// A thread is querying it.
    is_asked: AtomicBool,
}

impl Sampler {
    /// For as long as the process lives.
    fn start() -> &'static Self {
        let sampler: &Sampler = Box::leak(Box::new(Sampler { sources: Mutex::default(), added: Condvar::new() }));
        let started = thread::Builder::new().name("counters".into()).spawn(move || {
            let (mut next_round, mut free) = (Instant::now() + INTERVAL, None);
            loop {
                ask(&mut free, sampler.due(&mut next_round));
            }
        });
        if let Err(error) = started {
            warn!("cannot start the thread that asks plugins for their own counters, which are not shown: {error}");
        }
        sampler
    }

    fn add(&self, source: Weak<dyn Source>) {
        self.lock().fresh.push(Arc::new(Entry { source, is_asked: AtomicBool::new(false) }));
        self.added.notify_one();
    }

    /// Waits until it is time for queries, and returns the sources to query: fresh ones at once, all of them once per
    /// interval.
    fn due(&self, next_round: &mut Instant) -> Vec<Arc<Entry>> {
        let left = next_round.saturating_duration_since(Instant::now());
        let waited = self.added.wait_timeout_while(self.lock(), left, |sources| sources.fresh.is_empty());
        let (mut sources, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let fresh = mem::take(&mut sources.fresh);
        sources.list.extend_from_slice(&fresh);
        if Instant::now() < *next_round {
            return fresh;
        }
        *next_round = Instant::now() + INTERVAL;
        sources.list.retain(|entry| entry.source.strong_count() > 0);
        // Relaxed: whether it is seen in this round or the next makes no difference.
        sources.list.iter().filter(|entry| !entry.is_asked.load(Ordering::Relaxed)).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries to be queried at one time, and which of them is next.
struct Round {
    entries: Vec<Arc<Entry>>,
    next: AtomicUsize,
}

impl Round {
    /// Queries those that no other thread has begun to query, and reports each answer.
    fn ask(&self, answered: &Sender<()>) {
        while let Some(entry) = self.entries.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            entry.is_asked.store(true, Ordering::Relaxed);
            if let Some(source) = entry.source.upgrade() {
                source.sample();
            }
            entry.is_asked.store(false, Ordering::Relaxed);
            let _ = answered.send(());
        }
    }
}

/// A thread that queries plugins, for as long as this exists. It is kept from round to round: when a thread ends, its
/// stack is unmapped, for which the kernel interrupts every CPU that the process runs on, including those of workers
/// and of the guest.
struct Asker(Sender<(Arc<Round>, Sender<()>)>);

impl Asker {
    /// `None`: no thread can be started.
    fn start() -> Option<Self> {
        let (rounds, given) = mpsc::channel::<(Arc<Round>, Sender<()>)>();
        let asking = move || given.iter().for_each(|(round, answered)| round.ask(&answered));
        thread::Builder::new().name("counters ask".into()).spawn(asking).ok()?;
        Some(Asker(rounds))
    }
}

/// Queries each of them once. `free` is a thread that waits for a round, if there is one.
fn ask(free: &mut Option<Asker>, entries: Vec<Arc<Entry>>) {
    let (answered, answers) = mpsc::channel();
    let count = entries.len();
    let round = Arc::new(Round { entries, next: AtomicUsize::new(0) });
    let mut seen = 0;
    while seen < count {
        // No thread can be started: the next round may succeed.
        let Some(asker) = free.take().or_else(Asker::start) else { return };
        if asker.0.send((round.clone(), answered.clone())).is_err() {
            continue;
        }
        loop {
            let answer = answers.recv_timeout(PATIENCE);
            seen += 1;
            if answer.is_err() {
                // The one that hangs is abandoned; its thread ends once it has answered.
                break;
            }
            if seen == count {
                *free = Some(asker);
                return;
            }
        }
    }
}
