//! A task that names a deadline is called when it has come: on a worker that polls, one that sleeps, and at rest.
use pollux_core::{
    event::Watch,
    stats::{Capacity, StatsSegment, WorkerStatsHandle},
    worker::{Deadline, IdlePolicy, SleepFds, Task, Worker},
};
use pollux_testing::blk::wait_for;
use std::{
    any::Any,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const POLICIES: [IdlePolicy; 3] = [IdlePolicy::Spin, IdlePolicy::Adaptive, IdlePolicy::Interrupt];

/// When a task was called.
#[derive(Debug, Default)]
struct Calls {
    /// By how much it was late, each time.
    late: Vec<Duration>,
    is_early: bool,
}

/// A task that waits for one time after the other.
struct Waiter {
    calls: Arc<Mutex<Calls>>,
    /// How long to wait, the next one last.
    waits: Vec<Duration>,
    deadline: Option<Deadline>,
    /// When it may be called for it.
    due: Option<Instant>,
    /// When its last turn had ended: no turn that comes later began before. `None`: it is to have another one first.
    last_turn: Option<Instant>,
    is_stopping: bool,
}

/// A change for a running task: wait so long from now on, or for ever.
struct Wait(Option<Duration>);

/// A task with these waits, in milliseconds.
fn waiter(waits: &[u64]) -> (Box<dyn Task>, Arc<Mutex<Calls>>) {
    let calls = Arc::<Mutex<Calls>>::default();
    let waits = waits.iter().rev().map(|&milliseconds| Duration::from_millis(milliseconds)).collect();
    let task = Waiter { calls: calls.clone(), waits, deadline: None, due: None, last_turn: None, is_stopping: false };
    (Box::new(task), calls)
}

impl Waiter {
    fn turn(&mut self) -> usize {
        if self.deadline.is_some_and(Deadline::is_due) {
            let (now, due) = (Instant::now(), self.due.expect("a time"));
            let mut calls = self.calls.lock().expect("nobody panics");
            calls.is_early |= now < due;
            calls.late.push(now.saturating_duration_since(due));
            self.deadline = None;
            return 1;
        }
        let Some(last_turn) = self.last_turn else { return 1 };
        if self.deadline.is_none()
            && let Some(wait) = self.waits.pop()
        {
            self.due = Some(last_turn + wait);
            self.deadline = Some(Deadline::after(wait));
        }
        0
    }
}

impl Task for Waiter {
    fn name(&self) -> &str {
        "waiter"
    }
    fn start(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn poll(&mut self) -> usize {
        let work = self.turn();
        self.last_turn = Some(Instant::now());
        work
    }
    fn watch(&self) -> Option<Watch> {
        Some(Watch::nothing())
    }
    fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }
    fn begin_stop(&mut self) {
        self.is_stopping = true;
    }
    fn is_stopped(&self) -> bool {
        self.is_stopping
    }
    fn finish(&mut self) -> bool {
        true
    }
    fn update(&mut self, change: &mut dyn Any) {
        if let Some(Wait(wait)) = change.downcast_ref() {
            (self.deadline, self.last_turn) = (None, None);
            self.waits = wait.iter().copied().collect();
        }
    }
    fn abandon(&mut self) -> bool {
        true
    }
    fn sleep_fds(&self) -> SleepFds {
        SleepFds::default()
    }
    fn arm(&mut self) -> bool {
        false
    }
    fn disarm(&mut self) {}
}

fn worker(policy: IdlePolicy) -> (Worker, WorkerStatsHandle) {
    let segment = StatsSegment::anonymous_with(Capacity { workers: 1, queues: 0, backends: 0 }).expect("a segment");
    let stats = segment.add_worker("io0").expect("room");
    (Worker::spawn_counted("io0", None, policy, stats.clone()).expect("a worker"), stats)
}

/// Waits for so many calls. Returns by how much they were late.
fn wait_for_calls(calls: &Mutex<Calls>, count: usize) -> Vec<Duration> {
    wait_for("calls", || {
        let calls = calls.lock().expect("nobody panics");
        assert!(!calls.is_early, "it was called early");
        (calls.late.len() >= count).then(|| calls.late.clone())
    })
}

#[test]
fn a_task_is_called_in_time_alone_and_among_two_hundred_at_rest() {
    for policy in POLICIES {
        for others in [0, 200] {
            let (worker, stats) = worker(policy);
            let handle = worker.handle();
            for _ in 0..others {
                handle.attach(waiter(&[]).0).expect("it starts");
            }
            let (task, calls) = waiter(&[20, 5, 30, 1, 10]);
            handle.attach(task).expect("it starts");
            let mut late = wait_for_calls(&calls, 5);
            late.sort();
            // The machine may be busy with something else, now and then.
            assert!(late[0] < Duration::from_millis(10), "{policy}, {others} others: {late:?}");
            if policy == IdlePolicy::Interrupt {
                wait_for("the count", || (stats.wakes_by_deadline.get() > 0).then_some(()));
            }
        }
    }
}

#[test]
fn deadlines_of_a_running_task_come_earlier_later_and_vanish() {
    for policy in POLICIES {
        let (worker, _) = worker(policy);
        let handle = worker.handle();
        let (task, calls) = waiter(&[3_600_000]);
        let id = handle.attach(task).expect("it starts");
        let change = |wait| assert!(handle.update(id, Wait(wait)).is_some());
        change(Some(Duration::from_millis(5)));
        wait_for_calls(&calls, 1);
        change(Some(Duration::from_millis(1)));
        change(Some(Duration::from_secs(3600)));
        change(Some(Duration::from_millis(1)));
        change(None);
        let before = calls.lock().expect("nobody panics").late.len();
        // One of another task comes, and shows that the worker goes on.
        let (other, other_calls) = waiter(&[20]);
        handle.attach(other).expect("it starts");
        wait_for_calls(&other_calls, 1);
        assert_eq!(wait_for_calls(&calls, before).len(), before, "{policy}: it has vanished");
    }
}

#[test]
fn a_worker_sleeps_until_the_deadline_and_not_in_steps() {
    let (worker, stats) = worker(IdlePolicy::Interrupt);
    let (task, calls) = waiter(&[300]);
    worker.handle().attach(task).expect("it starts");
    wait_for_calls(&calls, 1);
    wait_for("the count", || (stats.wakes_by_deadline.get() > 0).then_some(()));
    // The clock that sleeps are measured with is another one, and may be a little ahead.
    assert!(stats.sleeps.get() < 20, "{} sleeps", stats.sleeps.get());
}
