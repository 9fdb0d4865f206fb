//! Workers: busy-polling threads, each pinned to a CPU, that own the queues assigned to them.
//!
//! A worker shares nothing with others and takes no lock. Its tasks come and go through a mailbox, which costs one load
//! per turn.
//!
//! | module | holds |
//! |---|---|
//! | [`task`] | what a worker runs |
//! | [`deadline`] | when a task wants to be called, and the time of a turn |
//! | `task_id` | the name of a task |
//! | `error` | why a worker could not be started, or take a task |
//! | `turns` | the loop |
//! | `roster` | the tasks, those at rest apart from the others |
//! | `mailbox` | how others talk to a worker |
//! | `idle` | what it does when there is nothing to do |
//! | `window` | how long an adaptive worker polls before it sleeps |
//! | `sleep` | the order of arming, looking and sleeping, in which no wake-up is lost |
//! | `pause` | a pause of the processor between two polls |
//! | `meter` | what is counted of a worker |
pub mod deadline;
mod error;
mod idle;
mod mailbox;
mod meter;
mod pause;
mod roster;
mod sleep;
pub mod task;
mod task_id;
mod turns;
mod window;

use self::{
    mailbox::{Command, Mailbox},
    turns::Core,
};
use crate::{
    cpus::{self, Pin},
    event::watchdog,
    stats::{Capacity, StatsSegment, WorkerStatsHandle},
};
pub use deadline::Deadline;
pub use error::WorkerError;
pub use idle::IdlePolicy;
pub use mailbox::{Detaching, WorkerHandle};
pub use roster::{LOOKS, REST_AFTER, Roster};
use std::{
    num::NonZeroU64,
    sync::{Arc, mpsc::sync_channel},
    thread::{self, JoinHandle},
};
pub use task::{SleepFds, Task};
pub use task_id::TaskId;
use tracing::{error, info};

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
        let segment = StatsSegment::anonymous_with(Capacity { workers: 1, queues: 0, backends: 0 });
        let segment = segment.map_err(|error| WorkerError::Thread(name.into(), error))?;
        let stats = segment.add_worker(name).expect("there is room for one");
        Self::spawn_counted(name, cpu, policy, stats)
    }

    /// As [`spawn`](Self::spawn), with a place for its statistics.
    ///
    /// # Errors
    /// As those of `spawn`.
    pub fn spawn_counted(
        name: &str,
        cpu: Option<usize>,
        policy: IdlePolicy,
        stats: WorkerStatsHandle,
    ) -> Result<Self, WorkerError> {
        let thread_error = |error| WorkerError::Thread(name.into(), error);
        let mailbox = Arc::new(Mailbox::new(name).map_err(thread_error)?);
        stats.cpu.set(cpu.map_or(0, |cpu| (cpu as u64).saturating_add(1)));
        stats.policy.set(policy as u64);
        let (reply, answer) = sync_channel(1);
        let theirs = mailbox.clone();
        let thread = thread::Builder::new()
            .name(format!("pollux-{name}"))
            .spawn(move || {
                let _watch = watchdog::watch();
                // A sleep until a deadline ends then, and not up to 50 microseconds later.
                let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
                let pin = match cpu {
                    Some(cpu) => Pin::take(format_args!("worker {}", theirs.name), cpu).map(Some),
                    None => {
                        cpus::roam();
                        Ok(None)
                    }
                };
                let (pin, answer) = match pin {
                    Ok(pin) => (Some(pin), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                if reply.send(answer).is_ok() && pin.is_some() {
                    Core::new(theirs, policy, stats).run();
                }
            })
            .map_err(thread_error)?;
        if let Ok(Err(error)) = answer.recv() {
            return Err(WorkerError::Pin(name.into(), cpu.unwrap_or(0), error));
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
