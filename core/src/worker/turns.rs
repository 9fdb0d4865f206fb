//! The loop of a worker's thread.
use super::{
    IdlePolicy, Task, TaskId,
    deadline::end_turn,
    idle::Idle,
    mailbox::{Change, Command, Mailbox, Refusal},
    meter::{self, Meter},
    roster::{Entry, Roster},
};
use crate::stats::WorkerStatsHandle;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
};
use tracing::error;

/// The worker's thread.
pub(super) struct Core {
    mailbox: Arc<Mailbox>,
    tasks: Roster,
    /// Tasks that have panicked and released everything, until they are taken back.
    given_up: Vec<(TaskId, Box<dyn Task>)>,
    leaving: usize,
    idle: Idle,
    meter: Meter,
    exit: bool,
}

impl Core {
    /// To be made on the worker's own thread.
    pub(super) fn new(mailbox: Arc<Mailbox>, policy: IdlePolicy, stats: WorkerStatsHandle) -> Self {
        let (idle, meter) = (Idle::new(policy), Meter::new(stats));
        Core { mailbox, tasks: Roster::default(), given_up: Vec::new(), leaving: 0, idle, meter, exit: false }
    }

    pub(super) fn run(&mut self) {
        while !self.has_ended() {
            if catch_unwind(AssertUnwindSafe(|| self.turns())).is_err() {
                self.abandon_current();
            }
        }
        self.meter.end(&mut self.tasks);
        // Partner: `WorkerHandle::send`.
        self.mailbox.ended.store(true, Ordering::SeqCst);
        self.mailbox.clear();
    }

    fn has_ended(&self) -> bool {
        self.exit && self.tasks.is_empty()
    }

    /// The loop. It ends after the exit command, with the last task.
    fn turns(&mut self) {
        while !self.has_ended() {
            if !self.mailbox.commands.is_empty() {
                self.run_commands();
            }
            let work = if self.tasks.count_turn() { self.turn_by_the_clock() } else { self.tasks.turn() };
            if self.leaving > 0 {
                self.release_stopped();
            }
            if work > 0 {
                self.idle.worked();
            } else {
                self.meter.empty_turn();
                self.idle.pause();
                // Nothing wakes a worker that has taken its last command.
                if self.idle.wants_sleep() && !self.exit {
                    self.idle.sleep(&mut self.tasks, &self.mailbox, &mut self.meter);
                }
            }
        }
    }

    /// A turn that is measured, or in which a task may have a deadline.
    #[cold]
    fn turn_by_the_clock(&mut self) -> usize {
        let idle = &self.idle;
        if self.tasks.turns() < meter::INTERVAL {
            // First: the turn may panic.
            self.tasks.look_again(meter::INTERVAL);
            return self.tasks.turn_by_the_clock();
        }
        self.meter.sample(&mut self.tasks, |tasks| {
            let work = tasks.turn_by_the_clock();
            if work == 0 {
                idle.pause();
            }
            work
        })
    }

    #[cold]
    fn run_commands(&mut self) {
        // What tasks at rest wait for may change with any command.
        self.tasks.wake_all();
        while let Some(command) = self.mailbox.commands.pop() {
            self.meter.stats.commands.add(1);
            match command {
                Command::Attach(id, task, reply) => {
                    let attached = self.attach(id, task);
                    // A requester that is gone needs no answer.
                    let _ = reply.send(attached);
                }
                Command::Detach(id, reply) => {
                    if let Some(index) = self.tasks.position(id) {
                        self.begin_stop(index, Some(reply));
                    } else if let Some(at) = self.given_up.iter().position(|(given_up, _)| *given_up == id) {
                        let _ = reply.send(Some(self.given_up.swap_remove(at).1));
                    }
                }
                Command::Update(id, update, reply) => self.update(id, update, &reply),
                Command::Exit => {
                    self.exit = true;
                    (0..self.tasks.len()).for_each(|index| self.begin_stop(index, None));
                }
            }
        }
        self.tasks_changed();
    }

    fn tasks_changed(&mut self) {
        self.idle.tasks_changed();
        self.meter.stats.tasks.set(self.tasks.len() as u64);
    }

    fn attach(&mut self, id: TaskId, mut task: Box<dyn Task>) -> Result<(), Refusal> {
        if self.exit {
            return Err((format!("worker {} is ending", self.mailbox.name), Some(task)));
        }
        match catch_unwind(AssertUnwindSafe(|| task.start())) {
            Ok(Ok(())) => {
                self.tasks.push(id, task);
                Ok(())
            }
            Ok(Err(reason)) => Err((reason, Some(task))),
            Err(_) => {
                std::mem::forget(task);
                Err(("it panicked at its start; please report this".into(), None))
            }
        }
    }

    fn update(&mut self, id: TaskId, mut change: Change, reply: &SyncSender<Change>) {
        if let Some(index) = self.tasks.position(id) {
            self.tasks.call(index, |entry| entry.task.update(&mut *change));
        }
        // What is left in it goes back to be dropped there, in any case.
        let _ = reply.send(change);
    }

    fn begin_stop(&mut self, index: usize, reply: Option<SyncSender<Option<Box<dyn Task>>>>) {
        let begins = self.tasks.call(index, |entry| {
            entry.reply = reply.or(entry.reply.take());
            !std::mem::replace(&mut entry.leaving, true)
        });
        if begins {
            self.leaving += 1;
            self.tasks.call(index, |entry| entry.task.begin_stop());
        }
    }

    #[cold]
    fn release_stopped(&mut self) {
        let mut index = 0;
        while index < self.tasks.len() {
            let entry = &self.tasks.entries()[index];
            if !entry.leaving || !entry.task.is_stopped() {
                index += 1;
                continue;
            }
            let may_be_dropped = self.tasks.call(index, |entry| entry.task.finish());
            self.remove(index, may_be_dropped);
        }
    }

    /// Removes a task, which is handed to the thread that waits for it, or leaked because something may still touch
    /// what it owns.
    fn remove(&mut self, index: usize, may_be_dropped: bool) {
        let Entry { task, reply, leaving, .. } = self.tasks.remove(index);
        self.leaving -= usize::from(leaving);
        self.tasks_changed();
        if !may_be_dropped {
            std::mem::forget(task);
        } else if let Some(reply) = reply {
            let _ = reply.send(Some(task));
        }
    }

    /// A task panicked, which is a bug in Pollux. It is not called any more; the others continue. Its owner gets it
    /// back if nothing can touch what it owns any more; otherwise, it is leaked.
    #[cold]
    fn abandon_current(&mut self) {
        end_turn();
        let worker = &self.mailbox.name;
        let Some(index) = self.tasks.take_current() else {
            error!("worker {worker} panicked and goes on; please report this");
            return;
        };
        let name = self.tasks.entries()[index].task.name();
        error!("worker {worker}: {name} panicked and stands still until its device is reset; please report this");
        let abandoned = catch_unwind(AssertUnwindSafe(|| self.tasks.call(index, |entry| entry.task.abandon())));
        if abandoned.is_err() {
            self.tasks.take_current();
            error!("worker {worker}: it panicked once more; its guest is not told");
        }
        let may_be_dropped = abandoned.unwrap_or(false);
        let entry = &self.tasks.entries()[index];
        if !may_be_dropped || entry.leaving {
            return self.remove(index, may_be_dropped);
        }
        let Entry { id, task, .. } = self.tasks.remove(index);
        self.given_up.push((id, task));
        self.tasks_changed();
    }
}
