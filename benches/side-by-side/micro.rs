//! Pieces of ours alone: what the way into a plugin costs, what idle queues cost, and what the plugin `uring` adds to
//! the kernel's work.
use super::{
    arguments::Arguments,
    part::Micro,
    progress::{Interrupted, Progress},
};
use pollux_benches::{
    crossing::{self, Crossing},
    many_queues::ManyQueues,
    pin,
    reads::{Bare, CASES, Case, DEPTHS, Medium, Plugin},
    row::{Figure, Goal, Row, Unit},
    thread_time,
};
use pollux_loadgen::campaign::Spread;
use std::{path::Path, thread};

const QUEUES: usize = 256;
/// Depths of the one busy queue.
const BUSY_DEPTHS: [usize; 2] = [1, 32];
/// Of [`CASES`]: how `uring` reads what is in memory by itself, and the two ways through io_uring. The second completes
/// within the call; in the third both loops look for completions without a pause, which is time of theirs as well.
const READS: [&str; 3] = ["tmpfs, pread", "page cache, io_uring", "direct, io_uring"];
/// Reads of each measurement, and of one that waits for a disk.
const READ_COUNT: u64 = 40_000;
const WAITING_READ_COUNT: u64 = 5_000;

/// Rounds of what takes milliseconds, for each round of the rest.
const SHORT_ROUNDS: u32 = 3;

/// Number of steps in each round.
fn steps_of_round(micro: Micro) -> u64 {
    match micro {
        Micro::Crossing => 2 * u64::from(SHORT_ROUNDS),
        Micro::Queues => u64::from(SHORT_ROUNDS) * (1 + BUSY_DEPTHS.len() as u64),
        Micro::Cpu => (READS.len() * DEPTHS.len()) as u64,
    }
}

/// Number of steps.
pub(crate) fn steps(micro: Micro, rounds: u32) -> u64 {
    steps_of_round(micro) * u64::from(rounds)
}

/// Measures on `cpu`.
pub(crate) fn measure(
    micro: Micro,
    arguments: &Arguments,
    cpu: usize,
    progress: &Progress,
) -> Result<Vec<Row>, Interrupted> {
    // On a thread of its own, which alone is pinned.
    let run = || {
        pin(cpu);
        let rounds = Rounds { count: arguments.rounds, progress };
        let short = Rounds { count: SHORT_ROUNDS * arguments.rounds, progress };
        match micro {
            Micro::Crossing => crossing(short),
            Micro::Queues => queues(short),
            Micro::Cpu => cpu_time(rounds),
        }
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[derive(Clone, Copy)]
struct Rounds<'a> {
    count: u32,
    progress: &'a Progress,
}

impl Rounds<'_> {
    /// Measures ours and the other in turn. One pair before the first is not counted.
    fn pairs(self, what: &str, mut pair: impl FnMut() -> (f64, f64)) -> Result<Vec<(f64, f64)>, Interrupted> {
        pair();
        let rounds = (1..=self.count).map(|round| {
            self.progress.step(&format!("{what} round {round}"))?;
            Ok(pair())
        });
        rounds.collect()
    }
}

/// A row of values in nanoseconds; `result` makes of each pair what is judged.
fn row(
    work: impl Into<String>,
    depth: Option<usize>,
    names: [&str; 2],
    pairs: &[(f64, f64)],
    result: (Unit, fn(f64, f64) -> f64),
    goal: Option<f64>,
) -> Row {
    // At least one round was measured.
    let figure = |name: &str, unit: Unit, value: &dyn Fn(f64, f64) -> f64| {
        let nothing = Spread { median: f64::NAN, min: f64::NAN, max: f64::NAN };
        let spread = Spread::new(pairs.iter().map(|&(ours, other)| value(ours, other)));
        Figure::new(name, unit, spread.unwrap_or(nothing))
    };
    Row {
        work: work.into(),
        depth: depth.map(|depth| depth as u16),
        against: "",
        ours: figure(names[0], Unit::Nanoseconds, &|ours, _| ours),
        other: figure(names[1], Unit::Nanoseconds, &|_, other| other),
        result: figure("", result.0, &result.1),
        goal: goal.map(Goal::AtMost),
        round_trip_ns: None,
    }
}

const RATIO: (Unit, fn(f64, f64) -> f64) = (Unit::Ratio, |ours, other| ours / other);

/// Per request: the queue of `null` through its shared library, less the same loop around a static function that does
/// the same. First one with the checks of tokens that core makes on either side of a backend, so that what is left is
/// the way across: the call through a pointer, the guard against panics, and what the compiler cannot see through.
/// Then, without a target, one that checks nothing.
fn crossing(rounds: Rounds<'_>) -> Result<Vec<Row>, Interrupted> {
    const BATCHES: u64 = 100_000;
    let mut both = Crossing::new();
    let less = (Unit::Nanoseconds, (|ours, other| ours - other) as fn(f64, f64) -> f64);
    let depth = Some(crossing::BATCH);
    let pairs = rounds.pairs("crossing", || (both.plugin(BATCHES), both.checked(BATCHES)))?;
    let names = ["null by its .so", "a static function"];
    let crossing = row("plugin crossing, per request", depth, names, &pairs, less, Some(2.0));
    let pairs = rounds.pairs("crossing and checks", || (both.plugin(BATCHES), both.inlined(BATCHES)))?;
    let names = ["null by its .so", "the same, unchecked"];
    Ok(vec![crossing, row("crossing and checks, per request", depth, names, &pairs, less, None)])
}

fn queues(rounds: Rounds<'_>) -> Result<Vec<Row>, Interrupted> {
    const TURNS: u64 = 10_000;
    const BUSY_ROUNDS: u64 = 2_000;
    let [mut alone, mut many] = [1, QUEUES].map(|queues| ManyQueues::new(queues, 0));
    let idle = rounds.pairs("idle queues", || (many.rounds(TURNS) / QUEUES as f64, alone.rounds(TURNS)))?;
    let own = (Unit::Nanoseconds, (|ours, _| ours) as fn(f64, f64) -> f64);
    let mut rows = vec![row("idle queue, per turn", None, ["one among 256", "one alone"], &idle, own, Some(5.0))];
    drop((alone, many));
    for depth in BUSY_DEPTHS {
        let [mut alone, mut beside] = [1, QUEUES].map(|queues| ManyQueues::new(queues, depth));
        let pairs = rounds.pairs("busy queue", || (beside.rounds(BUSY_ROUNDS), alone.rounds(BUSY_ROUNDS)))?;
        rows.push(row(
            "busy queue, per round",
            Some(depth),
            ["beside 255 idle ones", "alone"],
            &pairs,
            RATIO,
            Some(1.3),
        ));
    }
    Ok(rows)
}

fn cpu_time(rounds: Rounds<'_>) -> Result<Vec<Row>, Interrupted> {
    let mut rows = Vec::new();
    for case in CASES.into_iter().filter(|case| READS.contains(&case.name)) {
        // A disk, not memory.
        match Medium::new(&case, Path::new(env!("CARGO_TARGET_TMPDIR"))) {
            Ok(medium) => {
                for depth in DEPTHS {
                    rows.push(cpu_time_of(rounds, case, &medium, depth)?);
                }
            }
            Err(error) => {
                rounds.progress.print(&format!("cpu: {}: skipped: {error}", case.name));
                rounds.progress.skip(DEPTHS.len() as u64 * u64::from(rounds.count));
            }
        }
    }
    Ok(rows)
}

/// User and system time of the thread that reads, per read.
fn cpu_time_of(rounds: Rounds<'_>, case: Case, medium: &Medium, depth: usize) -> Result<Row, Interrupted> {
    let reads = if case.waits { WAITING_READ_COUNT } else { READ_COUNT } / depth as u64 * depth as u64;
    let (mut plugin, mut bare) = (Plugin::new(case, medium.path(), depth), Bare::new(case, medium.path(), depth));
    let per_read = |run: &mut dyn FnMut(u64)| {
        let before = thread_time();
        run(reads);
        (thread_time() - before).as_nanos() as f64 / reads as f64
    };
    let pairs = rounds.pairs(&format!("cpu: {} depth {depth}", case.name), || {
        (per_read(&mut |reads| plugin.run(reads)), per_read(&mut |reads| bare.run(reads)))
    })?;
    let work = format!("CPU time of a read: {}", case.name);
    Ok(row(work, Some(depth), ["uring plugin", "a bare loop"], &pairs, RATIO, Some(1.1)))
}
