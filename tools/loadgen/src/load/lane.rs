//! The thread of one queue: the loop that measures.
use super::{limits::LoadLimits, result::QueueResult};
use crate::{
    queue::{Completion, Queue, UNKNOWN},
    slots::Kind,
    verify::Verifier,
    workload::{Generator, Step},
};
use pollux_core::stats::clock;
use pollux_driver::slots::RingError;
use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

/// Empty polls between two looks at the clock.
const POLLS: u32 = 1024;
/// Requests between two looks at the clock, where many come or go at once.
const BURST: u32 = 8;
/// Sleep of a driver that waits for interrupts, at most: then it checks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);

/// What one queue asks for, and what it knows of the data. It outlives the thread.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) generator: Generator,
    pub(super) verifier: Option<Verifier>,
}

/// Where requests come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The workload.
    Workload,
    /// Every block that was written is read.
    ReadBack,
}

/// Why a thread gave up.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing came back for so many requests.
    Stalled(u16),
    /// The backend broke the ring.
    Ring(RingError),
    /// A system call.
    Notify(io::Error),
}

impl From<RingError> for Failure {
    fn from(cause: RingError) -> Self {
        Failure::Ring(cause)
    }
}

impl From<io::Error> for Failure {
    fn from(cause: io::Error) -> Self {
        Failure::Notify(cause)
    }
}

/// A queue under load.
pub(super) struct Worker<'a> {
    queue: &'a mut Queue,
    lane: &'a mut Lane,
    stop: &'a AtomicBool,
    scale: clock::Scale,
    depth: u16,
    batch: bool,
    interrupts: bool,
    source: Source,
    /// The next block to be read back.
    next_block: u64,
    /// Requests after which it ends.
    requests: u64,
    warm_up_ns: u64,
    duration_ns: u64,
    patience_ns: u64,
    /// Nanoseconds from one request to the next, if they have times of their own.
    pace_ns: Option<f64>,
    /// When the next request goes out.
    due_ns: f64,
    /// Ticks at the start.
    start: u64,
    /// The last look at the clock: nanoseconds since the start.
    now: u64,
    /// When something came back the last time.
    progress: u64,
    measuring: bool,
    idle_polls: u32,
    /// Requests completed since the start.
    completed: u64,
    result: QueueResult,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        queue: &'a mut Queue,
        lane: &'a mut Lane,
        limits: &LoadLimits,
        source: Source,
        requests: Option<u64>,
        pace_ns: Option<f64>,
        stop: &'a AtomicBool,
    ) -> Self {
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Worker {
            stop,
            scale: clock::Scale::new(),
            depth: limits.depth.clamp(1, queue.depth_max()),
            batch: limits.batch,
            interrupts: limits.interrupts,
            source,
            next_block: lane.generator.span().first,
            requests: requests.unwrap_or(u64::MAX),
            warm_up_ns: nanoseconds(limits.warm_up),
            duration_ns: limits.duration.map_or(u64::MAX, nanoseconds),
            patience_ns: nanoseconds(limits.patience),
            pace_ns,
            due_ns: 0.0,
            start: 0,
            now: 0,
            progress: 0,
            measuring: false,
            idle_polls: 0,
            completed: 0,
            result: QueueResult::default(),
            queue,
            lane,
        }
    }

    /// Runs until time or requests are up and nothing is in flight, or it is told to stop.
    pub(super) fn run(&mut self, done: &AtomicU64) -> Result<QueueResult, Failure> {
        self.queue.forget_times();
        self.start = clock::ticks();
        self.begin_phase();
        loop {
            let reaped = self.reap()?;
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let submitted = self.submit()?;
            if reaped > 0 {
                done.store(self.completed, Ordering::Relaxed);
            } else if submitted == 0 {
                if self.queue.in_flight() == 0 {
                    if self.pace_ns.is_none() || !self.wants_more() {
                        break;
                    }
                    // Nothing is missing: the next request is not due yet.
                    self.progress = self.now;
                    std::hint::spin_loop();
                } else {
                    self.wait()?;
                }
            }
        }
        self.result.counters = self.queue.counters();
        // Up to the last request, unless the time was up.
        if self.measured_ns() >= self.duration_ns {
            self.result.elapsed_ns = self.duration_ns;
        }
        Ok(std::mem::take(&mut self.result))
    }

    /// Takes what has come back. Returns how many.
    #[inline]
    fn reap(&mut self) -> Result<u32, Failure> {
        let mut count = 0;
        while let Some(completion) = self.queue.pop()? {
            if count % BURST == 0 {
                self.look_at_clock();
            }
            self.finish(&completion);
            count += 1;
        }
        if count > 0 {
            self.queue.silence();
            self.progress = self.now;
            self.idle_polls = 0;
        }
        Ok(count)
    }

    /// Counts a request that came back, and checks its data.
    #[inline]
    fn finish(&mut self, completion: &Completion) {
        let operation = completion.operation;
        let success = completion.status == 0;
        self.completed += 1;
        if let Some(verifier) = &mut self.lane.verifier {
            let block = self.lane.generator.block(&operation);
            match operation.kind {
                Kind::Read => {
                    let queue = &*self.queue;
                    let slot = completion.slot;
                    verifier.end_read(block, success.then_some(|data: &mut [u8]| queue.read_data(slot, data)));
                }
                Kind::Write => verifier.end_write(block, success),
                Kind::Flush => {}
            }
        }
        let measured = self.measured_ns();
        if !self.measuring || measured >= self.duration_ns {
            return;
        }
        let result = &mut self.result;
        result.requests += 1;
        if success {
            result.bytes += u64::from(operation.bytes);
        } else {
            result.add_error(completion.status);
        }
        match operation.kind {
            Kind::Read => result.reads += 1,
            Kind::Write => result.writes += 1,
            Kind::Flush => result.flushes += 1,
        }
        if completion.submitted_at != UNKNOWN {
            result.latencies.record(self.now.saturating_sub(completion.submitted_at));
        }
        result.series.add(measured, 1);
        result.elapsed_ns = measured;
    }

    /// Sends what may be in flight. Returns how many.
    #[inline]
    fn submit(&mut self) -> Result<u32, Failure> {
        let mut count = 0;
        if self.pace_ns.is_some() {
            self.look_at_clock();
        }
        while self.queue.in_flight() < self.depth && self.wants_more() {
            let at = match self.pace_ns {
                None => self.scale.nanoseconds(clock::ticks().wrapping_sub(self.start)),
                Some(_) if self.due_ns > self.now as f64 => break,
                Some(pace) => {
                    let due = self.due_ns;
                    self.due_ns += pace;
                    due as u64
                }
            };
            let Some(step) = self.next_step() else { break };
            let Some(slot) = self.queue.reserve() else { break };
            let operation = self.lane.generator.operation(step);
            if let Some(verifier) = &mut self.lane.verifier {
                match step {
                    Step::Read(block) => {
                        verifier.begin_read(block);
                        self.queue.spoil_data(slot, operation.bytes as usize);
                    }
                    Step::Write(block) => self.queue.write_data(slot, verifier.begin_write(block)),
                    Step::Flush => {}
                }
            }
            self.queue.submit(slot, operation, at);
            // As Linux: the device sees each request at once, and is asked after the last whether it wants a kick.
            if !self.batch {
                self.queue.show();
            }
            count += 1;
        }
        if count > 0 {
            self.queue.publish()?;
        }
        Ok(count)
    }

    #[inline]
    fn wants_more(&self) -> bool {
        let measured = if self.measuring { self.result.requests } else { 0 };
        self.measured_ns() < self.duration_ns && measured + u64::from(self.queue.in_flight()) < self.requests
    }

    #[inline]
    fn next_step(&mut self) -> Option<Step> {
        let Lane { generator, verifier } = &mut *self.lane;
        match (self.source, verifier) {
            (Source::Workload, None) => Some(generator.next(|_| false)),
            (Source::Workload, Some(verifier)) => Some(generator.next(|block| verifier.is_busy(block))),
            (Source::ReadBack, None) => None,
            (Source::ReadBack, Some(verifier)) => {
                let end = generator.span().first + generator.span().count;
                let block = (self.next_block < end).then(|| verifier.next_written(self.next_block)).flatten()?;
                self.next_block = block + 1;
                Some(Step::Read(block))
            }
        }
    }

    /// Nothing came and nothing can go: polls again, or sleeps.
    fn wait(&mut self) -> Result<(), Failure> {
        // A driver whose next request has its time cannot sleep.
        if self.interrupts && self.pace_ns.is_none() {
            self.queue.sleep(NAP)?;
        } else {
            std::hint::spin_loop();
            self.idle_polls += 1;
            if self.idle_polls < POLLS {
                return Ok(());
            }
            self.idle_polls = 0;
        }
        self.look_at_clock();
        match self.now.saturating_sub(self.progress) > self.patience_ns {
            true => Err(Failure::Stalled(self.queue.in_flight())),
            false => Ok(()),
        }
    }

    #[inline(always)]
    fn look_at_clock(&mut self) {
        self.now = self.scale.nanoseconds(clock::ticks().wrapping_sub(self.start));
        if !self.measuring {
            self.begin_phase();
        }
    }

    /// Begins the measurement when the warm-up is over.
    #[cold]
    fn begin_phase(&mut self) {
        if self.now >= self.warm_up_ns {
            self.measuring = true;
            self.warm_up_ns = self.now;
            self.result = QueueResult::default();
            self.queue.reset_counters();
        }
    }

    /// Time since the measurement began.
    #[inline(always)]
    fn measured_ns(&self) -> u64 {
        if self.measuring { self.now - self.warm_up_ns } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        slots::Slots,
        workload::{Span, Workload},
    };
    use pollux_core::memory::GuestMemory;
    use pollux_driver::{
        RingKind,
        slots::{EitherRing, Ring},
    };
    use pollux_testing::{
        disk::{self, Behaviour},
        rig,
    };
    use std::thread;

    const DEPTH: u16 = 16;
    const BYTES: u64 = 1 << 20;

    /// Runs a load against a device of the dataplane itself, polled by another thread.
    fn run(kind: RingKind, workload: &Workload, limits: &LoadLimits, indirect: bool) -> (QueueResult, Lane) {
        let memory = GuestMemory::create(&[(0, 4 << 20)], None).expect("memory");
        let ring = EitherRing::new(kind, &memory, 0, (64, DEPTH), indirect, true);
        let config = ring.config();
        let slots = Slots::new(&memory, EitherRing::bytes(kind, 64, DEPTH), DEPTH, workload.block_bytes);
        let mut queue = Queue::new(ring, slots).expect("a queue");
        let backend = disk::open("loadgen", BYTES, Behaviour::default()).expect("a disk");
        let mut device = rig::prepared_queue(kind, backend, &memory, config);
        let span = Span { first: 0, count: BYTES / u64::from(workload.block_bytes) };
        let verifier = Some(Verifier::new(7, span, workload.block_bytes));
        let mut lane = Lane { generator: Generator::new(workload, 0, span), verifier };
        let (stop, done, ended) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
        let result = thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    device.poll();
                }
            });
            let mut run =
                |source, requests| Worker::new(&mut queue, &mut lane, limits, source, requests, None, &stop).run(&done);
            let result = run(Source::Workload, limits.requests);
            let back = run(Source::ReadBack, None);
            ended.store(true, Ordering::Relaxed);
            back.and(result).expect("an honest device")
        });
        (result, lane)
    }

    #[test]
    fn a_load_on_our_own_device_is_verified() {
        let workload = Workload { read_share: 50, ..Workload::default() };
        let cases = [(false, false, 1), (true, false, DEPTH), (true, true, DEPTH), (false, true, 5)];
        for (kind, (indirect, batch, depth)) in
            RingKind::BOTH.into_iter().flat_map(|kind| cases.map(|case| (kind, case)))
        {
            let case = format!("{kind:?}, indirect {indirect}, batch {batch}, depth {depth}");
            let limits = LoadLimits { depth, batch, requests: Some(3000), ..LoadLimits::default() };
            let (result, lane) = run(kind, &workload, &limits, indirect);
            assert_eq!((result.requests, result.errors, result.bytes), (3000, 0, 3000 * 4096), "{case}");
            assert!(result.reads > 1000 && result.writes > 1000, "{case}");
            let verifier = lane.verifier.expect("a verifier");
            assert_eq!(verifier.faults(), [], "{case}");
            assert_eq!(verifier.checked(), result.reads + verifier.written().count() as u64, "{case}");
        }
    }

    #[test]
    fn nothing_is_asked_for_beyond_the_depth() {
        let workload = Workload::default();
        let memory = GuestMemory::create(&[(0, 4 << 20)], None).expect("memory");
        let ring = EitherRing::new(RingKind::Split, &memory, 0, (64, DEPTH), true, true);
        let slots = Slots::new(&memory, EitherRing::bytes(RingKind::Split, 64, DEPTH), DEPTH, 4096);
        let mut queue = Queue::new(ring, slots).expect("a queue");
        let span = Span { first: 0, count: 100 };
        let mut lane = Lane { generator: Generator::new(&workload, 0, span), verifier: None };
        let stop = AtomicBool::new(false);
        let limits = LoadLimits { depth: 7, patience: Duration::from_millis(20), ..LoadLimits::default() };
        let mut worker = Worker::new(&mut queue, &mut lane, &limits, Source::Workload, None, None, &stop);
        assert!(matches!(worker.run(&AtomicU64::new(0)), Err(Failure::Stalled(7))), "nobody answers");
    }
}
