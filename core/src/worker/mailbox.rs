//! The way to talk to a worker: a lock-free mailbox, and a bell for one that sleeps.
use super::{Task, TaskId, WorkerError};
use crossbeam_queue::ArrayQueue;
use std::{
    any::Any,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};
use tracing::warn;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MAILBOX_CAPACITY: usize = 64;
/// Interval at which a drain that does not end is reported.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// A task that did not start, with its reason; or without it, if it panicked and is leaked.
pub(super) type Refusal = (String, Option<Box<dyn Task>>);

/// A change to a task, of a type that the task knows.
pub(super) type Change = Box<dyn Any + Send>;

/// What a worker is asked to do, and where the answer goes.
pub(super) enum Command {
    Attach(TaskId, Box<dyn Task>, SyncSender<Result<(), Refusal>>),
    Detach(TaskId, SyncSender<Option<Box<dyn Task>>>),
    Update(TaskId, Change, SyncSender<Change>),
    Exit,
}

/// Where its commands come in.
pub(super) struct Mailbox {
    pub(super) name: String,
    pub(super) commands: ArrayQueue<Command>,
    /// Rung after each push, for a worker that sleeps.
    pub(super) bell: EventFd,
    next_task: AtomicU64,
    /// Set when the worker takes no more commands.
    pub(super) ended: AtomicBool,
}

impl Mailbox {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        Ok(Mailbox {
            name: name.into(),
            commands: ArrayQueue::new(MAILBOX_CAPACITY),
            bell: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            next_task: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Drops the commands that will not be taken any more, and with them the senders whose answers are being waited
    /// for.
    pub(super) fn clear(&self) {
        while self.commands.pop().is_some() {}
    }
}

/// A task on its way back from its worker.
#[derive(Debug)]
pub struct Detaching {
    worker: String,
    answer: Receiver<Option<Box<dyn Task>>>,
    /// When the delay was last reported.
    reported: Instant,
}

impl Detaching {
    /// Waits for the task, as [`WorkerHandle::detach`] does.
    pub fn wait(self, owner: &str) -> Option<Box<dyn Task>> {
        loop {
            match self.answer.recv_timeout(DRAIN_REPORT) {
                Ok(task) => return task,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => report(owner, &self.worker),
            }
        }
    }

    /// The task once it is back, or `None` for one that was lost. Not called again after that.
    pub fn poll(&mut self, owner: &str) -> Poll<Option<Box<dyn Task>>> {
        match self.answer.try_recv() {
            Ok(task) => Poll::Ready(task),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => {
                if self.reported.elapsed() > DRAIN_REPORT {
                    self.reported = Instant::now();
                    report(owner, &self.worker);
                }
                Poll::Pending
            }
        }
    }
}

fn report(owner: &str, worker: &str) {
    warn!("{owner}: worker {worker} still waits for requests in flight, to stop a queue");
}

/// A way to talk to a worker. Clones talk to the same one. All calls are for control threads: they wait.
#[derive(Clone)]
pub struct WorkerHandle {
    pub(super) mailbox: Arc<Mailbox>,
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
        let id = TaskId::numbered(self.mailbox.next_task.fetch_add(1, Ordering::Relaxed));
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

    /// Takes a task back once it has finished what it began: this waits for all of its requests. `None`: the worker has
    /// ended, or the task was lost together with what it owns. `owner` is for messages.
    pub fn detach(&self, id: TaskId, owner: &str) -> Option<Box<dyn Task>> {
        self.begin_detach(id).wait(owner)
    }

    /// As [`detach`](Self::detach), without waiting: asks the worker, which does the rest by itself.
    pub fn begin_detach(&self, id: TaskId) -> Detaching {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Detach(id, reply));
        Detaching { worker: self.name().into(), answer, reported: Instant::now() }
    }

    /// Changes a setting of a task between two of its turns. Returns the previous value, so that it is dropped here and
    /// not on the worker; `None`: the worker has ended.
    pub fn update<C: Any + Send>(&self, id: TaskId, change: C) -> Option<C> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Update(id, Box::new(change), reply));
        // A task changes the contents of the box, not the box itself.
        answer.recv().ok()?.downcast().ok().map(|before| *before)
    }

    pub(super) fn send(&self, command: Command) {
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
