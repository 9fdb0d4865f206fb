//! A workload on a front end: a thread for each queue, warm-up, measurement, drain.
mod lane;
mod limits;
mod range;
mod result;

pub use self::{limits::LoadLimits, result::QueueResult};
use crate::{
    frontend::{Error, FrontEnd},
    queue::Queue,
    verify::{Fault, Verifier},
    workload::{Generator, Workload},
};
use lane::{Failure, Lane, Source, Worker};
use pollux_core::cpus;
use std::{
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was told. Nothing is in flight.
    Complete,
    /// The backend went away. Requests may be in flight.
    Lost,
    /// It was told to stop before its time. Requests may be in flight.
    Stopped,
}

/// The end of a load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// What each queue did.
    pub queues: Vec<QueueResult>,
}

impl Outcome {
    /// All queues together.
    pub fn total(&self) -> QueueResult {
        QueueResult::sum(&self.queues)
    }
}

/// How far a load is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Part done, 0 to 1.
    pub share: f64,
    /// Requests completed since the start, warm-up included.
    pub requests: u64,
    /// Time since the start.
    pub elapsed: Duration,
}

/// What the threads of a load share.
struct Shared {
    stop: AtomicBool,
    start: Barrier,
    /// Requests completed by each queue.
    done: Vec<AtomicU64>,
}

/// A workload on a device, and what is known of the data. It goes on where it was when the backend was lost and the
/// front end has come back.
#[derive(Debug)]
pub struct Load {
    workload: Workload,
    lanes: Vec<Lane>,
}

impl Load {
    /// A workload for the device of `front_end`. With `verify` every queue has blocks of its own and checks what it
    /// reads.
    ///
    /// # Errors
    /// The workload does not fit the device.
    pub fn new(workload: &Workload, front_end: &mut FrontEnd, verify: bool) -> Result<Self, Error> {
        let queues = front_end.queues_mut().len() as u64;
        let depth = front_end.queues_mut().iter().map(|queue| queue.depth_max()).max().unwrap_or(1);
        let spans = range::spans(workload, front_end.path(), front_end.facts(), queues, depth, verify)?;
        let run = Verifier::new_run();
        let lanes = spans.into_iter().enumerate().map(|(index, span)| Lane {
            generator: Generator::new(workload, index as u64, span),
            verifier: verify.then(|| Verifier::new(run, span, workload.block_bytes)),
        });
        let lanes = lanes.collect();
        let mut random = fastrand::Rng::with_seed(workload.seed);
        if workload.writes() && !verify {
            front_end.queues_mut().iter_mut().for_each(|queue| queue.fill_data(&mut random));
        }
        Ok(Load { workload: workload.clone(), lanes })
    }

    /// Runs it. `observe` is told of progress a few times a second.
    ///
    /// # Errors
    /// A CPU that cannot be used, a backend that hangs or breaks a ring. That it goes away is an [`Outcome`].
    pub fn run(
        &mut self,
        front_end: &mut FrontEnd,
        limits: &LoadLimits,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, Error> {
        self.drive(front_end, limits, Source::Workload, observe)
    }

    /// Reads back all blocks that were written, and checks them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn read_back(&mut self, front_end: &mut FrontEnd, limits: &LoadLimits) -> Result<Outcome, Error> {
        let limits =
            LoadLimits { warm_up: Duration::ZERO, duration: None, requests: None, rate: None, ..limits.clone() };
        self.drive(front_end, &limits, Source::ReadBack, &mut |_| {})
    }

    /// The workload.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Number of blocks that were checked.
    pub fn blocks_checked(&self) -> u64 {
        self.verifiers().map(Verifier::checked).sum()
    }

    /// Number of sectors that did not come back as they were written.
    pub fn fault_count(&self) -> u64 {
        self.verifiers().map(Verifier::fault_count).sum()
    }

    /// The first of these.
    pub fn faults(&self) -> Vec<Fault> {
        self.verifiers().flat_map(|verifier| verifier.faults().iter().copied()).collect()
    }

    fn verifiers(&self) -> impl Iterator<Item = &Verifier> {
        self.lanes.iter().filter_map(|lane| lane.verifier.as_ref())
    }

    fn drive(
        &mut self,
        front_end: &mut FrontEnd,
        limits: &LoadLimits,
        source: Source,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, Error> {
        check_cpus(&limits.cpus)?;
        let path = front_end.path().to_owned();
        let (is_alive, queues) = front_end.split();
        let lanes = &mut self.lanes;
        let count = lanes.len();
        let shared = Shared {
            stop: AtomicBool::new(false),
            start: Barrier::new(count),
            done: (0..count).map(|_| AtomicU64::new(0)).collect(),
        };
        let shared = &shared;
        let mut ended = Ended::Complete;
        let results = thread::scope(|scope| {
            let threads: Vec<_> = queues
                .iter_mut()
                .zip(lanes)
                .enumerate()
                .map(|(index, (queue, lane))| {
                    scope.spawn(move || work(queue, lane, limits, source, shared, index, count))
                })
                .collect();
            let started = Instant::now();
            while threads.iter().any(|thread| !thread.is_finished()) {
                thread::sleep(Duration::from_millis(10));
                if ended == Ended::Complete && !is_alive() {
                    ended = Ended::Lost;
                } else if ended == Ended::Complete && limits.stop.load(Ordering::Relaxed) {
                    ended = Ended::Stopped;
                }
                if ended != Ended::Complete {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                observe(progress(shared, limits, started));
            }
            threads.into_iter().map(|thread| thread.join().expect("a load's thread does not panic")).collect::<Vec<_>>()
        });
        let queues = results
            .into_iter()
            .enumerate()
            .map(|(queue, result)| result.map_err(|failure| explain(failure, &path, queue, limits)))
            .collect::<Result<_, Error>>()?;
        Ok(Outcome { ended, queues })
    }
}

fn work(
    queue: &mut Queue,
    lane: &mut Lane,
    limits: &LoadLimits,
    source: Source,
    shared: &Shared,
    index: usize,
    count: usize,
) -> Result<QueueResult, Failure> {
    if let Some(&cpu) = limits.cpus.get(index % limits.cpus.len().max(1)) {
        // It was checked.
        let _ = cpus::pin(cpu);
    }
    // The remainder goes to the first queues.
    let (index, count) = (index as u64, count as u64);
    let share = |requests: u64| requests / count + u64::from(index < requests % count);
    let pace = limits.rate.map(|rate| 1e9 * count as f64 / rate);
    let mut worker = Worker::new(queue, lane, limits, source, limits.requests.map(share), pace, &shared.stop);
    shared.start.wait();
    let result = worker.run(&shared.done[index as usize]);
    if result.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    result
}

fn progress(shared: &Shared, limits: &LoadLimits, started: Instant) -> Progress {
    let requests = shared.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
    let elapsed = started.elapsed();
    let by_time =
        limits.duration.map(|duration| elapsed.as_secs_f64() / (limits.warm_up + duration).as_secs_f64().max(1e-9));
    let by_count = limits.requests.map(|all| requests as f64 / all.max(1) as f64);
    let share = by_time.into_iter().chain(by_count).fold(0.0, f64::max).min(1.0);
    Progress { share, requests, elapsed }
}

fn explain(failure: Failure, path: &Path, queue: usize, limits: &LoadLimits) -> Error {
    let path = path.to_owned();
    match failure {
        Failure::Stalled(in_flight) => Error::Stalled { path, queue, in_flight, patience: limits.patience },
        Failure::Ring(cause) => Error::Ring { path, queue, cause },
        Failure::Notify(cause) => Error::System { what: "notify or wait for the backend", cause },
    }
}

/// CPUs that this process runs on unless it is told others.
pub fn usable_cpus() -> Vec<usize> {
    cpus::current()
}

/// Checks that the CPUs can be used.
///
/// # Errors
/// The first that cannot.
pub fn check_cpus(cpus: &[usize]) -> Result<(), Error> {
    let usable = cpus::usable();
    match cpus.iter().find(|cpu| !usable.contains(cpu)) {
        None => Ok(()),
        Some(&cpu) => {
            let list: Vec<String> = usable.iter().map(usize::to_string).collect();
            Err(Error::Cpu(cpu, list.join(",")))
        }
    }
}
