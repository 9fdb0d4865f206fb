//! What is counted of a worker, at next to no cost: a counter that falls in each turn, one that rises in each without
//! work, and a look at the clock in one turn of [`INTERVAL`].
use super::roster::Roster;
use crate::stats::{Thread, WorkerStatsHandle, clock};
use std::fs;

/// Turns from one sample to the next. A prime, so that no rhythm of a worker's turns is met at the same beat each time.
pub(super) const INTERVAL: u32 = 251;

/// The counts of one worker.
#[derive(Debug)]
pub(super) struct Meter {
    empty_turns: u32,
    pub(super) stats: WorkerStatsHandle,
}

impl Meter {
    pub(super) fn new(stats: WorkerStatsHandle) -> Self {
        stats.thread.set(thread_number());
        Meter { empty_turns: 0, stats }
    }

    #[inline(always)]
    pub(super) fn empty_turn(&mut self) {
        self.empty_turns += 1;
    }

    /// Runs a turn with its pause, which returns its work, and adds its time to that of those with work or without.
    #[cold]
    pub(super) fn sample(&mut self, tasks: &mut Roster, turn: impl FnOnce(&mut Roster) -> usize) -> usize {
        // First: the turn may panic.
        self.show(tasks);
        let start = clock::ticks();
        let work = turn(tasks);
        let ticks = clock::ticks().wrapping_sub(start);
        let stats = &self.stats;
        if work > 0 { &stats.busy_ticks } else { &stats.idle_ticks }.add(ticks);
        work
    }

    /// Shows what was counted, and measures the next turn after [`INTERVAL`] from here on.
    pub(super) fn show(&mut self, tasks: &mut Roster) {
        self.stats.turns.add(tasks.take_turns().into());
        self.stats.empty_turns.add(std::mem::take(&mut self.empty_turns).into());
        tasks.look_again(INTERVAL);
    }

    /// The thread ends: shows what only it can know.
    pub(super) fn end(&mut self, tasks: &mut Roster) {
        self.show(tasks);
        if let Some(schedule) = Thread::current().schedule() {
            self.stats.run_ns.set(schedule.run_ns);
            self.stats.stolen_ns.set(schedule.stolen_ns);
            self.stats.switches_voluntary.set(schedule.switches_voluntary);
            self.stats.switches_involuntary.set(schedule.switches_involuntary);
        }
        self.stats.ended.set(1);
    }
}

/// The number of the calling thread; 0 if there is no /proc.
fn thread_number() -> u64 {
    // A link to PID/task/TID.
    let path = fs::read_link("/proc/thread-self").ok();
    path.and_then(|path| path.file_name()?.to_str()?.parse().ok()).unwrap_or(0)
}
