//! The record of a worker.
use super::{
    counter::Counter,
    header::TableOf,
    record::{Name, Record, Words},
};
use std::sync::atomic::AtomicU64;

/// What is counted for one worker. Written only by its thread.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct WorkerStats {
    name: Name,
    /// Number of its thread; 0 before it has started.
    pub thread: Counter,
    /// CPU that it is pinned to, plus 1; 0: none.
    pub cpu: Counter,
    /// Idle policy: 0 spin, 1 adaptive, 2 interrupt.
    pub policy: Counter,
    /// 1 once its thread has ended.
    pub ended: Counter,
    /// Tasks that it has.
    pub tasks: Counter,
    /// Tasks at rest: polled only once in several turns.
    pub resting: Counter,
    /// The worker that it belongs to.
    life: AtomicU64,
    /// Wake-ups by deadlines of tasks.
    pub wakes_by_deadline: Counter,
    /// Turns.
    pub turns: Counter,
    /// Turns without work.
    pub empty_turns: Counter,
    /// Ticks spent in sampled turns that had work.
    pub busy_ticks: Counter,
    /// Ticks spent in sampled turns that had none.
    pub idle_ticks: Counter,
    /// Times that it slept.
    pub sleeps: Counter,
    /// Ticks slept.
    pub slept_ticks: Counter,
    /// Times that it wanted to sleep and found work, or a task that cannot be waited for.
    pub sleeps_refused: Counter,
    /// Wake-ups by kicks of drivers.
    pub wakes_by_kick: Counter,
    /// Wake-ups by backends.
    pub wakes_by_backend: Counter,
    /// Wake-ups by commands.
    pub wakes_by_command: Counter,
    /// Commands taken.
    pub commands: Counter,
    /// Ticks that it would poll without work before it sleeps, if it is adaptive.
    pub spin_ticks: Counter,
    /// At its end: nanoseconds on a CPU.
    pub run_ns: Counter,
    /// At its end: nanoseconds ready, and not on a CPU.
    pub stolen_ns: Counter,
    /// At its end: voluntary context switches.
    pub switches_voluntary: Counter,
    /// At its end: involuntary context switches.
    pub switches_involuntary: Counter,
}

impl WorkerStats {
    pub(super) fn describe(&self, name: &str) {
        self.name.set(name);
    }

    /// The worker's name.
    pub fn name(&self) -> String {
        self.name.get()
    }

    /// The share of its time awake in which it had work, from sampled turns; `None` before there is a sample.
    pub fn busy_share(&self) -> Option<f64> {
        let (busy, idle) = (self.busy_ticks.get() as f64, self.idle_ticks.get() as f64);
        (busy + idle > 0.0).then(|| busy / (busy + idle))
    }
}

// SAFETY: atomic words and nothing else; `the_layout_is_as_documented` finds padding.
unsafe impl Words for WorkerStats {
    fn gauges(&self) -> impl Iterator<Item = &AtomicU64> {
        let counters =
            [&self.thread, &self.cpu, &self.policy, &self.ended, &self.tasks, &self.resting, &self.spin_ticks];
        self.name.words().iter().chain([&self.life]).chain(counters.map(|counter| &counter.0))
    }
}

impl Record for WorkerStats {
    const TABLE: TableOf = TableOf::Workers;

    fn life(&self) -> &AtomicU64 {
        &self.life
    }
}
