//! What the kernel reports about the process that writes a segment, and about its threads.
use super::header::Header;
use std::{fs, path::PathBuf};

/// The process that writes a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its number.
    pub process: u32,
    /// When it was started, as in field 22 of `/proc/PID/stat`.
    started: u64,
    /// Whether it has ended properly.
    pub has_ended: bool,
}

impl Writer {
    pub(super) fn of(header: &Header) -> Self {
        Writer {
            process: header.process.get() as u32,
            started: header.process_started.get(),
            has_ended: header.ended.get() != 0,
        }
    }

    /// Whether the process is still there.
    pub fn is_alive(&self) -> bool {
        process_started(self.process) == Some(self.started)
    }
}

/// When a process was started, in the kernel's clock ticks since its own start.
pub(super) fn process_started(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything; the rest begins with the third.
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// What the kernel's scheduler did with a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Nanoseconds on a CPU.
    pub run_ns: u64,
    /// Nanoseconds ready and not on a CPU: what was stolen from a thread that polls.
    pub stolen_ns: u64,
    /// Context switches because it waited.
    pub switches_voluntary: u64,
    /// Context switches because something else was scheduled.
    pub switches_involuntary: u64,
}

impl Schedule {
    /// The difference from `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Schedule {
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
            stolen_ns: self.stolen_ns.saturating_sub(earlier.stolen_ns),
            switches_voluntary: self.switches_voluntary.saturating_sub(earlier.switches_voluntary),
            switches_involuntary: self.switches_involuntary.saturating_sub(earlier.switches_involuntary),
        }
    }
}

/// A thread, of this process or another.
#[derive(Clone, Debug)]
pub struct Thread(PathBuf);

impl Thread {
    /// Thread `thread` of `process`.
    pub fn new(process: u32, thread: u32) -> Self {
        Thread(format!("/proc/{process}/task/{thread}").into())
    }

    /// The calling thread.
    pub fn current() -> Self {
        Thread("/proc/thread-self".into())
    }

    /// What the scheduler did with it. `None`: it is gone, or the kernel does not record it.
    pub fn schedule(&self) -> Option<Schedule> {
        let times = fs::read_to_string(self.0.join("schedstat")).ok()?;
        let mut times = times.split_ascii_whitespace().map(|word| word.parse().ok());
        let status = fs::read_to_string(self.0.join("status")).ok()?;
        let switches = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse().ok())
        };
        Some(Schedule {
            run_ns: times.next()??,
            stolen_ns: times.next()??,
            switches_voluntary: switches("voluntary_ctxt_switches")?,
            switches_involuntary: switches("nonvoluntary_ctxt_switches")?,
        })
    }
}
