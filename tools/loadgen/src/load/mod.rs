//! A workload on a front end: a thread for each queue, warm-up, measurement, drain.
mod lane;
mod range;

use crate::{
    frontend::{Error, FrontEnd},
    latency::Latencies,
    queue::{Counters, Queue},
    series::Series,
    verify::{Fault, Verifier},
    workload::{Generator, Workload},
};
use lane::{Failure, Lane, Source, Worker};
use pollux_core::cpus;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How a load is run, and how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Time before the measurement.
    pub warm_up: Duration,
    /// Length of the measurement; with `requests` too, whatever comes first.
    pub duration: Option<Duration>,
    /// Requests of all queues together.
    pub requests: Option<u64>,
    /// Requests per second of all queues together: each goes out at its time, and its latency counts from then on, even
    /// if it had to wait for room. `None`: as many as can be.
    pub rate: Option<f64>,
    /// Show the device all requests that can go out at once, not one by one.
    pub batch: bool,
    /// Sleep until the device interrupts, instead of polling.
    pub interrupts: bool,
    /// The CPU of each queue's thread; empty: any.
    pub cpus: Vec<usize>,
    /// How long nothing may come back.
    pub patience: Duration,
    /// Ends it early once it is true. Clones have it in common.
    pub stop: Arc<AtomicBool>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            depth: 32,
            warm_up: Duration::ZERO,
            duration: None,
            requests: None,
            rate: None,
            batch: false,
            interrupts: false,
            cpus: Vec::new(),
            patience: Duration::from_secs(20),
            stop: Arc::default(),
        }
    }
}

/// What one queue did in the measurement.
#[derive(Clone, Debug, Default)]
pub struct QueueResult {
    /// Requests completed.
    pub requests: u64,
    /// Of these: reads.
    pub reads: u64,
    /// Of these: writes.
    pub writes: u64,
    /// Of these: flushes.
    pub flushes: u64,
    /// Of these: failed.
    pub errors: u64,
    /// How many of those that failed ended with which status, by the status byte.
    pub errors_by_status: BTreeMap<u8, u64>,
    /// Bytes read and written, by requests that did not fail.
    pub bytes: u64,
    /// Length of the measurement.
    pub elapsed_ns: u64,
    /// Latency of each request, from the ring to the ring.
    pub latencies: Latencies,
    /// Completions over time.
    pub series: Series,
    /// Notifications.
    pub counters: Counters,
}

impl QueueResult {
    /// Adds up all queues; the time is the longest.
    pub fn sum<'a>(results: impl IntoIterator<Item = &'a QueueResult>) -> QueueResult {
        let mut sum = QueueResult::default();
        for result in results {
            sum.requests += result.requests;
            sum.reads += result.reads;
            sum.writes += result.writes;
            sum.flushes += result.flushes;
            sum.errors += result.errors;
            for (&status, count) in &result.errors_by_status {
                *sum.errors_by_status.entry(status).or_default() += count;
            }
            sum.bytes += result.bytes;
            sum.elapsed_ns = sum.elapsed_ns.max(result.elapsed_ns);
            sum.latencies.merge(&result.latencies);
            sum.series.merge(&result.series);
            sum.counters.kicks += result.counters.kicks;
            sum.counters.interrupts += result.counters.interrupts;
            sum.counters.sleeps += result.counters.sleeps;
        }
        sum
    }

    /// A request has failed, with this status.
    #[cold]
    fn add_error(&mut self, status: u8) {
        self.errors += 1;
        *self.errors_by_status.entry(status).or_default() += 1;
    }

    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.seconds()
    }

    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds()
    }

    /// Time per request in nanoseconds; `None` without requests.
    pub fn ns_per_request(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.elapsed_ns as f64 / self.requests as f64)
    }

    fn seconds(&self) -> f64 {
        (self.elapsed_ns as f64 / 1e9).max(1e-9)
    }
}

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
        limits: &Limits,
        observe: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, Error> {
        self.drive(front_end, limits, Source::Workload, observe)
    }

    /// Reads back all blocks that were written, and checks them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn read_back(&mut self, front_end: &mut FrontEnd, limits: &Limits) -> Result<Outcome, Error> {
        let limits = Limits { warm_up: Duration::ZERO, duration: None, requests: None, rate: None, ..limits.clone() };
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
        limits: &Limits,
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
    limits: &Limits,
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

fn progress(shared: &Shared, limits: &Limits, started: Instant) -> Progress {
    let requests = shared.done.iter().map(|done| done.load(Ordering::Relaxed)).sum();
    let elapsed = started.elapsed();
    let by_time =
        limits.duration.map(|duration| elapsed.as_secs_f64() / (limits.warm_up + duration).as_secs_f64().max(1e-9));
    let by_count = limits.requests.map(|all| requests as f64 / all.max(1) as f64);
    let share = by_time.into_iter().chain(by_count).fold(0.0, f64::max).min(1.0);
    Progress { share, requests, elapsed }
}

fn explain(failure: Failure, path: &Path, queue: usize, limits: &Limits) -> Error {
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
