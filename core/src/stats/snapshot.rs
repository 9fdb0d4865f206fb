//! The numbers of a segment at one moment, in memory of one's own: to be shown, or compared with later ones.
use super::{Header, QueueStats, WorkerStats, record::Record};
use std::{fs, path::PathBuf};

/// The process that writes a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its number.
    pub process: u32,
    /// When it was started, as in field 22 of `/proc/PID/stat`.
    started: u64,
    /// Whether it has ended in order.
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
    /// Context switches because something else was to run.
    pub switches_involuntary: u64,
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

    /// What the scheduler did with it. `None`: it is gone, or the kernel keeps no account.
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

/// All numbers at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Who writes them.
    pub writer: Writer,
    /// Ticks of the time stamp counter per second.
    pub ticks_per_second: u64,
    /// What was counted of each worker.
    pub workers: Vec<Box<WorkerStats>>,
    /// What was counted of each queue.
    pub queues: Vec<Box<QueueStats>>,
    /// What the scheduler did with each worker. `None`: it cannot be known.
    pub schedules: Vec<Option<Schedule>>,
}

impl Snapshot {
    pub(super) fn take<'s>(
        header: &Header,
        workers: impl Iterator<Item = &'s WorkerStats>,
        queues: impl Iterator<Item = &'s QueueStats>,
    ) -> Self {
        let writer = Writer::of(header);
        let workers: Vec<Box<WorkerStats>> = workers.map(Record::copy).collect();
        Snapshot {
            writer,
            ticks_per_second: header.ticks_per_second.get().max(1),
            schedules: workers.iter().map(|worker| schedule(writer, worker)).collect(),
            workers,
            queues: queues.map(Record::copy).collect(),
        }
    }

    /// What was counted since `earlier`, a snapshot of the same segment. What does not count up is as it is now.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let difference = |index: usize, now: &Option<Schedule>| {
            let (now, then) = ((*now)?, (*earlier.schedules.get(index)?)?);
            Some(Schedule {
                run_ns: now.run_ns.saturating_sub(then.run_ns),
                stolen_ns: now.stolen_ns.saturating_sub(then.stolen_ns),
                switches_voluntary: now.switches_voluntary.saturating_sub(then.switches_voluntary),
                switches_involuntary: now.switches_involuntary.saturating_sub(then.switches_involuntary),
            })
        };
        Snapshot {
            writer: self.writer,
            ticks_per_second: self.ticks_per_second,
            workers: records_since(&self.workers, &earlier.workers),
            queues: records_since(&self.queues, &earlier.queues),
            schedules: self.schedules.iter().enumerate().map(|(index, now)| difference(index, now)).collect(),
        }
    }

    /// Nanoseconds of so many ticks.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second)) as u64
    }
}

/// Records come and do not go: those without a partner are new.
fn records_since<R: Record>(now: &[Box<R>], earlier: &[Box<R>]) -> Vec<Box<R>> {
    let records = now.iter().enumerate();
    records.map(|(index, now)| earlier.get(index).map_or_else(|| now.copy(), |then| now.since(then))).collect()
}

fn schedule(writer: Writer, worker: &WorkerStats) -> Option<Schedule> {
    if worker.ended.get() != 0 {
        return Some(Schedule {
            run_ns: worker.run_ns.get(),
            stolen_ns: worker.stolen_ns.get(),
            switches_voluntary: worker.switches_voluntary.get(),
            switches_involuntary: worker.switches_involuntary.get(),
        });
    }
    writer.is_alive().then(|| Thread::new(writer.process, worker.thread.get() as u32).schedule())?
}
