//! Workers: busy-polling threads, each pinned to a CPU, that own the queues assigned to them.
//!
//! A worker shares nothing with others and takes no lock. Its tasks come and go through a mailbox, which costs one load
//! per turn.
mod idle;
mod task;
#[allow(unsafe_code)]
pub(crate) mod watchdog;

pub use idle::IdlePolicy;
pub use task::{Position, QueueUpdate, Retired, SleepFds, Task};

use crossbeam_queue::ArrayQueue;
use idle::Idle;
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tracing::{error, info, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MAILBOX_CAPACITY: usize = 64;
/// After how long a drain that does not end is reported, again and again.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// Names a task of a worker, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(u64);

/// Why a worker could not be started or take a task.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread could not be made.
    #[error("worker {0}: cannot start its thread: {1}")]
    Thread(String, io::Error),
    /// The thread could not be pinned.
    #[error("worker {0}: cannot be pinned to CPU {1}: the process may not use it (see taskset and cpusets)")]
    Pin(String, usize),
    /// The task refused to start.
    #[error("{0}")]
    Task(String),
    /// The worker has ended.
    #[error("worker {0} has ended")]
    Gone(String),
}

/// A task that did not start, with its reason; or without it, if it panicked and is leaked.
type Refusal = (String, Option<Box<dyn Task>>);

enum Command {
    Attach(TaskId, Box<dyn Task>, SyncSender<Result<(), Refusal>>),
    Detach(TaskId, SyncSender<Option<Box<dyn Task>>>),
    Update(TaskId, Box<QueueUpdate>, SyncSender<Box<QueueUpdate>>),
    Exit,
}

struct Mailbox {
    name: String,
    commands: ArrayQueue<Command>,
    /// Rung after each push, for a worker that sleeps.
    bell: EventFd,
    next_task: AtomicU64,
    /// Set when nobody takes commands any more.
    ended: AtomicBool,
}

impl Mailbox {
    /// Drops what nobody takes any more, and with it the senders for which somebody waits.
    fn clear(&self) {
        while self.commands.pop().is_some() {}
    }
}

/// A way to talk to a worker. Clones talk to the same one. All calls are for control threads: they wait.
#[derive(Clone)]
pub struct WorkerHandle {
    mailbox: Arc<Mailbox>,
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WorkerHandle({})", self.name())
    }
}

impl WorkerHandle {
    /// The worker's name in the configuration.
    pub fn name(&self) -> &str {
        &self.mailbox.name
    }

    /// Hands `task` to the worker, which starts it.
    ///
    /// # Errors
    /// The task's own reason for not starting. The task is dropped then.
    pub fn attach(&self, task: Box<dyn Task>) -> Result<TaskId, WorkerError> {
        let id = TaskId(self.mailbox.next_task.fetch_add(1, Ordering::Relaxed));
        let (reply, answer) = sync_channel(1);
        self.send(Command::Attach(id, task, reply));
        match answer.recv() {
            Ok(Ok(())) => Ok(id),
            // The task is dropped here, and not on the worker: closing a backend's queue may take its time.
            Ok(Err((reason, task))) => {
                drop(task);
                Err(WorkerError::Task(reason))
            }
            Err(_) => Err(WorkerError::Gone(self.name().into())),
        }
    }

    /// Takes a task back, once it has finished what it began: this waits for all of its requests. `None`: the worker
    /// has ended, or the task was lost, and with it what it owns. `owner` is for messages.
    pub fn detach(&self, id: TaskId, owner: &str) -> Option<Box<dyn Task>> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Detach(id, reply));
        loop {
            match answer.recv_timeout(DRAIN_REPORT) {
                Ok(task) => return task,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    warn!("{owner}: worker {} still waits for requests in flight, to stop a queue", self.name());
                }
            }
        }
    }

    /// Changes something of a running queue, between two of its turns. Returns what it had before, so that it is dropped
    /// here and not on the worker; `None`: there is no such task any more.
    pub fn update(&self, id: TaskId, update: QueueUpdate) -> Option<QueueUpdate> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Update(id, Box::new(update), reply));
        answer.recv().ok().map(|old| *old)
    }

    fn send(&self, command: Command) {
        let mut command = command;
        while let Err(back) = self.mailbox.commands.push(command) {
            if self.mailbox.ended.load(Ordering::SeqCst) {
                return;
            }
            command = back;
            thread::yield_now();
        }
        // Partner: the worker's store, after which it clears the mailbox once. Either it finds the command or we do.
        if self.mailbox.ended.load(Ordering::SeqCst) {
            self.mailbox.clear();
        } else if let Err(error) = self.mailbox.bell.write(1) {
            warn!("worker {}: cannot be woken: {error}", self.name());
        }
    }
}

/// A running worker. Dropping it ends its thread, once all tasks that it still has are stopped.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker on CPU `cpu` (any CPU without one).
    ///
    /// # Errors
    /// No thread, or the CPU is not one that this process may use.
    pub fn spawn(name: &str, cpu: Option<usize>, policy: IdlePolicy) -> Result<Self, WorkerError> {
        let thread_error = |error| WorkerError::Thread(name.into(), error);
        let bell = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(thread_error)?;
        let commands = ArrayQueue::new(MAILBOX_CAPACITY);
        let mailbox = Arc::new(Mailbox {
            name: name.into(),
            commands,
            bell,
            next_task: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let (reply, answer) = sync_channel(1);
        let theirs = mailbox.clone();
        let thread = thread::Builder::new()
            .name(format!("pollux-{name}"))
            .spawn(move || {
                let _watch = watchdog::watch();
                let pinned = cpu.is_none_or(pin);
                if reply.send(pinned).is_ok() && pinned {
                    Core::new(theirs, policy).run();
                }
            })
            .map_err(thread_error)?;
        if !answer.recv().unwrap_or(false) {
            return Err(WorkerError::Pin(name.into(), cpu.unwrap_or(0)));
        }
        info!("worker {name}: polling on CPU {}, idle = {policy}", cpu.map_or("any".into(), |cpu| cpu.to_string()));
        Ok(Worker { handle: WorkerHandle { mailbox }, thread: Some(thread) })
    }

    /// A handle to it.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.send(Command::Exit);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("worker {}: its thread panicked", self.handle.name());
        }
    }
}

/// Pins the calling thread. core_affinity panics on a number beyond its set of CPUs.
fn pin(id: usize) -> bool {
    id < libc::CPU_SETSIZE as usize && core_affinity::set_for_current(core_affinity::CoreId { id })
}

struct Entry {
    id: TaskId,
    task: Box<dyn Task>,
    /// Whether it is being stopped.
    leaving: bool,
    /// Who waits for it then.
    reply: Option<SyncSender<Option<Box<dyn Task>>>>,
}

/// The worker's thread.
struct Core {
    mailbox: Arc<Mailbox>,
    tasks: Vec<Entry>,
    /// The task that is being called, for the case that it panics.
    current: Option<usize>,
    leaving: usize,
    idle: Idle,
    exit: bool,
}

impl Core {
    fn new(mailbox: Arc<Mailbox>, policy: IdlePolicy) -> Self {
        Core { mailbox, tasks: Vec::new(), current: None, leaving: 0, idle: Idle::new(policy), exit: false }
    }

    fn run(&mut self) {
        while !self.has_ended() {
            if catch_unwind(AssertUnwindSafe(|| self.turns())).is_err() {
                self.abandon_current();
            }
        }
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
            let mut work = 0;
            for index in 0..self.tasks.len() {
                self.current = Some(index);
                work += self.tasks[index].task.poll();
            }
            self.current = None;
            if self.leaving > 0 {
                self.release_stopped();
            }
            if work > 0 {
                self.idle.worked();
            } else {
                self.idle.after_empty_turn(&mut self.tasks, &self.mailbox, &mut self.current);
            }
        }
    }

    #[cold]
    fn run_commands(&mut self) {
        while let Some(command) = self.mailbox.commands.pop() {
            match command {
                Command::Attach(id, task, reply) => {
                    let attached = self.attach(id, task);
                    // A requester that is gone needs no answer.
                    let _ = reply.send(attached);
                }
                Command::Detach(id, reply) => {
                    if let Some(index) = self.tasks.iter().position(|entry| entry.id == id) {
                        self.begin_stop(index, Some(reply));
                    }
                }
                Command::Update(id, update, reply) => self.update(id, update, &reply),
                Command::Exit => {
                    self.exit = true;
                    (0..self.tasks.len()).for_each(|index| self.begin_stop(index, None));
                }
            }
        }
        self.idle.tasks_changed();
    }

    fn attach(&mut self, id: TaskId, mut task: Box<dyn Task>) -> Result<(), Refusal> {
        if self.exit {
            return Err((format!("worker {} is ending", self.mailbox.name), Some(task)));
        }
        match catch_unwind(AssertUnwindSafe(|| task.start())) {
            Ok(Ok(())) => {
                self.tasks.push(Entry { id, task, leaving: false, reply: None });
                Ok(())
            }
            Ok(Err(reason)) => Err((reason, Some(task))),
            Err(_) => {
                std::mem::forget(task);
                Err(("it panicked at its start; please report this".into(), None))
            }
        }
    }

    fn update(&mut self, id: TaskId, mut update: Box<QueueUpdate>, reply: &SyncSender<Box<QueueUpdate>>) {
        if let Some(index) = self.tasks.iter().position(|entry| entry.id == id) {
            self.current = Some(index);
            self.tasks[index].task.update(&mut update);
            self.current = None;
        }
        // What is left in it goes back to be dropped there, in any case.
        let _ = reply.send(update);
    }

    fn begin_stop(&mut self, index: usize, reply: Option<SyncSender<Option<Box<dyn Task>>>>) {
        let entry = &mut self.tasks[index];
        entry.reply = reply.or(entry.reply.take());
        if !entry.leaving {
            entry.leaving = true;
            self.leaving += 1;
            self.current = Some(index);
            entry.task.begin_stop();
            self.current = None;
        }
    }

    #[cold]
    fn release_stopped(&mut self) {
        let mut index = 0;
        while index < self.tasks.len() {
            let entry = &mut self.tasks[index];
            if !entry.leaving || !entry.task.is_stopped() {
                index += 1;
                continue;
            }
            self.current = Some(index);
            let may_be_dropped = entry.task.finish();
            self.current = None;
            self.remove(index, may_be_dropped);
        }
    }

    /// Removes a task, to be given to whoever waits for it, or leaked because something may still touch what it owns.
    fn remove(&mut self, index: usize, may_be_dropped: bool) {
        let Entry { task, reply, leaving, .. } = self.tasks.swap_remove(index);
        self.leaving -= usize::from(leaving);
        self.idle.tasks_changed();
        if !may_be_dropped {
            std::mem::forget(task);
        } else if let Some(reply) = reply {
            let _ = reply.send(Some(task));
        }
    }

    /// A task panicked, which is a mistake of ours. It is given up and leaked; the others go on.
    #[cold]
    fn abandon_current(&mut self) {
        let worker = &self.mailbox.name;
        let Some(index) = self.current.take() else {
            error!("worker {worker} panicked and goes on; please report this");
            return;
        };
        let task = &mut self.tasks[index].task;
        error!("worker {worker}: {} panicked and is given up; please report this", task.name());
        if catch_unwind(AssertUnwindSafe(|| task.abandon())).is_err() {
            error!("worker {worker}: it panicked once more; its guest is not told");
        }
        self.remove(index, false);
    }
}
