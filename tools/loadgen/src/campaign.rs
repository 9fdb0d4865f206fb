//! Rounds: each depth, each target, several times, targets in turn, so that what the machine does meanwhile meets all
//! alike.
use crate::{
    frontend::{Error, Facts, FrontEnd, FrontEndOptions},
    ideal,
    load::{Ended, Load, LoadLimits, Outcome, Progress, QueueResult},
    roundtrip,
    verify::Fault,
    workload::Workload,
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The socket of a vhost-user-blk backend.
    Socket(PathBuf),
    /// A device that this process has started.
    Device {
        /// The file that describes it.
        configuration: PathBuf,
        /// Its name there.
        name: String,
        /// Where it is served.
        socket: PathBuf,
    },
    /// The device that no other can beat.
    Ideal(ideal::Kind),
}

impl Target {
    /// The ideal device of that name: `ideal:null`, `ideal:memory`.
    pub fn ideal(name: &Path) -> Option<Self> {
        match name.to_str() {
            Some("ideal:null") => Some(Target::Ideal(ideal::Kind::Null)),
            Some("ideal:memory") => Some(Target::Ideal(ideal::Kind::Memory)),
            _ => None,
        }
    }

    /// `cpu` is where the ideal device polls.
    fn connect(&self, options: &FrontEndOptions, cpu: Option<usize>) -> Result<FrontEnd, Error> {
        match self {
            Target::Socket(path) | Target::Device { socket: path, .. } => FrontEnd::connect(path, options),
            Target::Ideal(kind) => FrontEnd::ideal(*kind, cpu, options),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Socket(path) => path.display().fmt(formatter),
            Target::Device { configuration, name, .. } => write!(formatter, "{} {name}", configuration.display()),
            Target::Ideal(ideal::Kind::Null) => formatter.write_str("ideal:null"),
            Target::Ideal(ideal::Kind::Memory) => formatter.write_str("ideal:memory"),
        }
    }
}

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured. Two are compared.
    pub targets: Vec<Target>,
    /// Requests in flight on each queue, one after the other.
    pub depths: Vec<u16>,
    /// How often each is measured.
    pub rounds: u32,
    /// What is asked for.
    pub workload: Workload,
    /// The front end. Its depth is that of the deepest.
    pub options: FrontEndOptions,
    /// How long. The depth is filled in.
    pub limits: LoadLimits,
    /// Whether data is checked.
    pub verify: bool,
    /// The CPUs between which the round trip of a cache line is measured: the driver's and another one.
    pub pair: Option<(usize, usize)>,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Run {
    /// Index of its target.
    pub target: usize,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Number of the round, from 0.
    pub round: u32,
    /// What the device says of itself.
    pub facts: Facts,
    /// Descriptors of each queue.
    pub queue_size: u16,
    /// What came out.
    pub outcome: Outcome,
    /// All queues together.
    pub total: QueueResult,
    /// Round trip of a cache line before and after, in nanoseconds.
    pub round_trip_ns: Option<(f64, f64)>,
    /// What the check of the data found.
    pub verified: Option<Verified>,
}

/// What a check of the data found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Blocks checked.
    pub blocks: u64,
    /// Sectors that were wrong.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<Fault>,
}

/// Which measurement is going on.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Its target.
    pub target: &'a Target,
    /// Its depth.
    pub depth: u16,
}

impl Plan {
    /// Number of measurements.
    pub fn runs(&self) -> usize {
        self.depths.len() * self.targets.len() * self.rounds as usize
    }

    /// Does all measurements. `observe` is told of progress a few times a second.
    ///
    /// What is told to stop by its limits ends early, and has those measurements that were done by then.
    ///
    /// # Errors
    /// The first failure. Wrong data is no failure, but part of a [`Run`].
    pub fn execute(&self, observe: &mut dyn FnMut(Stage<'_>, Progress)) -> Result<Vec<Run>, Error> {
        let mut runs = Vec::with_capacity(self.runs());
        for &depth in &self.depths {
            for round in 0..self.rounds {
                for (index, target) in self.targets.iter().enumerate() {
                    if self.limits.stop.load(Ordering::Relaxed) {
                        return Ok(runs);
                    }
                    let stage = Stage { index: runs.len(), count: self.runs(), target, depth };
                    match self.measure(index, depth, round, &mut |progress| observe(stage, progress)) {
                        Ok(run) => runs.push(run),
                        // A backend that a terminal's signal has reached too is no failure.
                        Err(_) if self.limits.stop.load(Ordering::Relaxed) => return Ok(runs),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(runs)
    }

    fn measure(&self, index: usize, depth: u16, round: u32, observe: &mut dyn FnMut(Progress)) -> Result<Run, Error> {
        let limits = LoadLimits { depth, ..self.limits.clone() };
        let before = self.round_trip();
        let mut front_end = self.targets[index].connect(&self.options, self.pair.map(|(_, peer)| peer))?;
        let mut load = Load::new(&self.workload, &mut front_end, self.verify)?;
        let outcome = load.run(&mut front_end, &limits, observe)?;
        check_complete(&outcome, &front_end)?;
        let verified = match self.verify {
            false => None,
            true => {
                let outcome = load.read_back(&mut front_end, &limits)?;
                check_complete(&outcome, &front_end)?;
                let (blocks, fault_count) = (load.blocks_checked(), load.fault_count());
                Some(Verified { blocks, fault_count, faults: load.faults() })
            }
        };
        let (facts, queue_size) = (*front_end.facts(), front_end.queue_size());
        // Off the CPUs before the round trip is measured again.
        drop(front_end);
        let round_trip_ns = before.zip(self.round_trip());
        let total = outcome.total();
        Ok(Run { target: index, depth, round, facts, queue_size, outcome, total, round_trip_ns, verified })
    }

    fn round_trip(&self) -> Option<f64> {
        self.pair.and_then(|(first, second)| roundtrip::round_trip_ns(first, second))
    }
}

fn check_complete(outcome: &Outcome, front_end: &FrontEnd) -> Result<(), Error> {
    match outcome.ended {
        Ended::Complete => Ok(()),
        Ended::Stopped => Err(Error::Stopped),
        Ended::Lost => Err(Error::Lost { path: front_end.path().to_owned(), in_flight: front_end.in_flight() }),
    }
}

/// The middle and the ends of some values.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of no values: `None`.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        let median = (!values.is_empty()).then(|| roundtrip::median(&mut values))?;
        Some(Spread { median, min: *values.first()?, max: *values.last()? })
    }
}

/// The rounds of one target at one depth.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Index of the target.
    pub target: usize,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Requests per second of the rounds.
    pub iops: Spread,
    /// Round trips before and after.
    pub round_trip_ns: Option<Spread>,
    /// All rounds together. Its time is that of the longest.
    pub total: QueueResult,
}

/// Sums up the rounds, in the order of depths and targets.
pub fn summaries(runs: &[Run]) -> Vec<Summary> {
    let mut keys: Vec<(u16, usize)> = Vec::new();
    for key in runs.iter().map(|run| (run.depth, run.target)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let summary = |(depth, target): (u16, usize)| {
        let rounds: Vec<&Run> = runs.iter().filter(|run| run.depth == depth && run.target == target).collect();
        let iops = Spread::new(rounds.iter().map(|run| run.total.iops()))?;
        let trips = rounds.iter().filter_map(|run| run.round_trip_ns).flat_map(|(before, after)| [before, after]);
        let total = QueueResult::sum(rounds.iter().map(|run| &run.total));
        Some(Summary { target, depth, iops, round_trip_ns: Spread::new(trips), total })
    };
    keys.into_iter().filter_map(summary).collect()
}

/// Requests per second of the first target divided by those of the second, round by round, at this depth.
pub fn ratio(runs: &[Run], depth: u16) -> Option<Spread> {
    let of = |target: usize| {
        runs.iter().filter(move |run| run.depth == depth && run.target == target).map(|run| run.total.iops())
    };
    Spread::new(of(0).zip(of(1)).map(|(first, second)| first / second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_paired_before_they_are_compared() {
        let run = |target, round, requests| Run {
            target,
            depth: 8,
            round,
            facts: Facts::default(),
            queue_size: 128,
            outcome: Outcome { ended: Ended::Complete, queues: Vec::new() },
            total: QueueResult { requests, elapsed_ns: 1_000_000_000, ..QueueResult::default() },
            round_trip_ns: Some((100.0 + f64::from(round), 200.0)),
            verified: None,
        };
        // The machine halves its speed in the second round.
        let runs = [run(0, 0, 200), run(1, 0, 100), run(0, 1, 100), run(1, 1, 50), run(0, 2, 210), run(1, 2, 100)];
        let ratio = ratio(&runs, 8).expect("pairs");
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 2.0, 2.1));
        let sums = summaries(&runs);
        assert_eq!((sums.len(), sums[0].iops.median, sums[1].iops.min, sums[0].total.requests), (2, 200.0, 50.0, 510));
        assert_eq!(sums[0].round_trip_ns.map(|spread| (spread.min, spread.max)), Some((100.0, 200.0)));
        assert_eq!(super::ratio(&runs[..1], 8), None);
    }
}
