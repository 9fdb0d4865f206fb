//! A worker ends in order, whatever its tasks do, and nobody waits for one that is gone.
use pollux_core::worker::{IdlePolicy, SleepFds, Task, Worker, WorkerError};
use pollux_testing::{
    blk::{Cut, IN, OK, wait_for},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// A task that counts its turns, and panics where it is told to.
struct Counter {
    turns: Arc<AtomicUsize>,
    panic: &'static str,
    stopping: bool,
}

impl Counter {
    fn boxed(panic: &'static str) -> (Box<dyn Task>, Arc<AtomicUsize>) {
        let turns = Arc::<AtomicUsize>::default();
        (Box::new(Counter { turns: turns.clone(), panic, stopping: false }), turns)
    }

    fn at(&self, place: &str) {
        assert!(self.panic != place, "told to panic in {place}");
    }
}

impl Task for Counter {
    fn name(&self) -> &str {
        "counter"
    }
    fn start(&mut self) -> Result<(), String> {
        self.at("start");
        Ok(())
    }
    fn poll(&mut self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.at("poll");
        0
    }
    fn begin_stop(&mut self) {
        self.stopping = true;
        self.at("begin_stop");
    }
    fn is_stopped(&self) -> bool {
        self.stopping
    }
    fn finish(&mut self) -> bool {
        self.at("finish");
        true
    }
    fn abandon(&mut self) -> bool {
        assert!(self.panic != "poll", "and once more");
        self.panic != "disarm"
    }
    fn sleep_fds(&self) -> SleepFds {
        SleepFds::default()
    }
    fn arm(&mut self) -> bool {
        self.at("arm");
        true
    }
    fn disarm(&mut self) {
        self.at("disarm");
    }
}

fn turns_go_on(turns: &AtomicUsize) {
    let before = turns.load(Ordering::Relaxed);
    wait_for("a turn", || (turns.load(Ordering::Relaxed) > before).then_some(()));
}

#[test]
fn a_task_that_panics_anywhere_goes_alone() {
    for place in ["start", "poll", "begin_stop", "finish", "arm", "disarm"] {
        let worker = Worker::spawn("panic", None, IdlePolicy::Adaptive).expect("worker");
        let handle = worker.handle();
        // First, since a worker that may not sleep because of one task does not ask those behind it.
        let bad = handle.attach(Counter::boxed(place).0);
        let (good, good_turns) = Counter::boxed("");
        let good = handle.attach(good).expect("the good one starts");
        turns_go_on(&good_turns);
        match bad {
            Ok(id) => {
                assert_ne!(place, "start");
                // Given up at once, when the worker is about to sleep, or when it is to be stopped.
                wait_for("the worker's attempts to sleep", || {
                    (good_turns.load(Ordering::Relaxed) > 5000).then_some(())
                });
                let is_lost = ["poll", "disarm"].contains(&place);
                assert_eq!(handle.detach(id, "test").is_none(), is_lost, "{place}: it comes back if it could let go");
            }
            Err(error) => assert!(place == "start" && error.to_string().contains("panicked"), "{place}: {error}"),
        }
        turns_go_on(&good_turns);
        assert!(handle.detach(good, "test").is_some(), "{place}");
    }
}

#[test]
fn nobody_waits_for_a_worker_that_is_gone() {
    let worker = Worker::spawn("gone", None, IdlePolicy::Spin).expect("worker");
    let handle = worker.handle();
    let id = handle.attach(Counter::boxed("").0).expect("it starts");
    drop(worker);
    assert!(handle.detach(id, "test").is_none());
    for _ in 0..200 {
        assert!(matches!(handle.attach(Counter::boxed("").0), Err(WorkerError::Gone(_))));
    }
}

#[test]
fn a_worker_ends_however_it_rests() {
    for round in 0..300 {
        let policy = [IdlePolicy::Interrupt, IdlePolicy::Adaptive, IdlePolicy::Spin][round % 3];
        let worker = Worker::spawn("ends", None, policy).expect("worker");
        let task = worker.handle().attach(Counter::boxed("").0).expect("it starts");
        assert!(worker.handle().detach(task, "test").is_some());
    }
}

#[test]
fn a_worker_that_ends_first_finishes_the_requests_of_its_devices() {
    let worker = Worker::spawn("first", None, IdlePolicy::Adaptive).expect("worker");
    let disk = disk::open("worker-first", 1 << 20, Behaviour::Deferred).expect("disk");
    let mut guest = Guest::new("worker-first", disk, 2, &[worker.handle()]);
    guest.start();
    assert_eq!(guest.request(1, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    drop(worker);
    assert_eq!(disk::control("worker-first").flushes.load(Ordering::Relaxed), 2, "each queue was drained and flushed");
    guest.device.set_status(0);
}
