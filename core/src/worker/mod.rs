//! Workers: busy-polling threads, each pinned to a CPU, that own the queues assigned to them.
//!
//! A worker shares nothing with others and takes no lock. Its tasks come and go through a mailbox, which costs one load
//! per turn.
mod idle;
mod task;

pub use idle::IdlePolicy;
pub use task::{SleepFds, Task};

use crossbeam_queue::ArrayQueue;
use idle::Idle;
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
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

enum Command {
    Attach(TaskId, Box<dyn Task>, SyncSender<Result<(), String>>),
    Detach(TaskId, SyncSender<Option<Box<dyn Task>>>),
    Exit,
}

struct Mailbox {
    name: String,
    commands: ArrayQueue<Command>,
    /// Rung after each push, for a worker that sleeps.
    bell: EventFd,
    next_task: std::sync::atomic::AtomicU64,
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
        let id = TaskId(self.mailbox.next_task.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (reply, answer) = sync_channel(1);
        self.send(Command::Attach(id, task, reply));
        match answer.recv() {
            Ok(Ok(())) => Ok(id),
            Ok(Err(reason)) => Err(WorkerError::Task(reason)),
            Err(_) => Err(WorkerError::Gone(self.name().into())),
        }
    }

    /// Takes a task back, once it has finished what it began: this waits for all of its requests. `None`: the worker
    /// or the task has failed.
    pub fn detach(&self, id: TaskId) -> Option<Box<dyn Task>> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Detach(id, reply));
        loop {
            match answer.recv_timeout(DRAIN_REPORT) {
                Ok(task) => return task,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    warn!("worker {}: still waiting for the requests of a queue that is being stopped", self.name());
                }
            }
        }
    }

    fn send(&self, command: Command) {
        let mut command = command;
        while let Err(back) = self.mailbox.commands.push(command) {
            command = back;
            thread::yield_now();
        }
        if let Err(error) = self.mailbox.bell.write(1) {
            warn!("worker {}: cannot be woken: {error}", self.name());
        }
    }
}

/// A running worker. Ends its thread when dropped; tasks should be detached before.
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
        let bell = EventFd::new(EFD_NONBLOCK).map_err(thread_error)?;
        let commands = ArrayQueue::new(MAILBOX_CAPACITY);
        let mailbox = Arc::new(Mailbox { name: name.into(), commands, bell, next_task: Default::default() });
        let (reply, answer) = sync_channel(1);
        let theirs = mailbox.clone();
        let thread = thread::Builder::new()
            .name(format!("pollux-{name}"))
            .spawn(move || {
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
    /// Set while the task is being stopped: who waits for it.
    leaving: Option<SyncSender<Option<Box<dyn Task>>>>,
}

/// The worker's thread.
struct Core {
    mailbox: Arc<Mailbox>,
    tasks: Vec<Entry>,
    /// The task that is being polled, for the case that it panics.
    current: usize,
    leaving: usize,
    idle: Idle,
    exit: bool,
}

impl Core {
    fn new(mailbox: Arc<Mailbox>, policy: IdlePolicy) -> Self {
        Core { mailbox, tasks: Vec::new(), current: 0, leaving: 0, idle: Idle::new(policy), exit: false }
    }

    fn run(&mut self) {
        while !self.exit {
            if catch_unwind(AssertUnwindSafe(|| self.turns())).is_err() {
                self.abandon_current();
            }
        }
    }

    /// The loop. It ends at the exit command.
    fn turns(&mut self) {
        while !self.exit {
            if !self.mailbox.commands.is_empty() {
                self.run_commands();
            }
            let mut work = 0;
            for index in 0..self.tasks.len() {
                self.current = index;
                work += self.tasks[index].task.poll();
            }
            if self.leaving > 0 {
                self.release_stopped();
            }
            if work > 0 {
                self.idle.worked();
            } else {
                self.idle.after_empty_turn(&mut self.tasks, &self.mailbox);
            }
        }
    }

    #[cold]
    fn run_commands(&mut self) {
        while let Some(command) = self.mailbox.commands.pop() {
            match command {
                Command::Attach(id, mut task, reply) => {
                    let started = task.start();
                    if started.is_ok() {
                        self.tasks.push(Entry { id, task, leaving: None });
                    }
                    // A requester that is gone needs no answer.
                    let _ = reply.send(started);
                }
                Command::Detach(id, reply) => match self.tasks.iter_mut().find(|entry| entry.id == id) {
                    Some(entry) => {
                        entry.task.begin_stop();
                        entry.leaving = Some(reply);
                        self.leaving += 1;
                    }
                    None => drop(reply),
                },
                Command::Exit => self.exit = true,
            }
        }
        self.idle.tasks_changed();
    }

    #[cold]
    fn release_stopped(&mut self) {
        let mut index = 0;
        while index < self.tasks.len() {
            if self.tasks[index].leaving.is_none() || !self.tasks[index].task.is_stopped() {
                index += 1;
                continue;
            }
            let Entry { mut task, leaving, .. } = self.tasks.swap_remove(index);
            task.finish();
            self.leaving -= 1;
            if let Some(reply) = leaving {
                let _ = reply.send(Some(task));
            }
            self.idle.tasks_changed();
        }
    }

    /// A task panicked, which is a mistake of ours. It is given up; the others go on. It is leaked, since its backend
    /// may still write to what it owns.
    #[cold]
    fn abandon_current(&mut self) {
        if self.current < self.tasks.len() {
            let Entry { mut task, leaving, .. } = self.tasks.swap_remove(self.current);
            error!("worker {}: {} panicked and is given up; please report this", self.mailbox.name, task.name());
            if leaving.is_some() {
                self.leaving -= 1;
            }
            task.abandon();
            std::mem::forget(task);
            self.idle.tasks_changed();
        }
    }
}
