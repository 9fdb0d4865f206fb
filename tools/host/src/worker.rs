//! Workers: polling threads, what `[worker.NAME]` describes.
use pollux_core::{
    config,
    worker::{IdlePolicy, Worker, WorkerError as ThreadError},
};

/// Why a worker cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// There is one of that name.
    #[error("worker {0}: there is one of that name already; remove it first, or choose another name")]
    Exists(String),
    /// There is none of that name.
    #[error("worker {name}: there is none of that name; there {there}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        there: String,
    },
    /// It serves devices.
    #[error("worker {name}: it serves {users}; remove that first")]
    InUse {
        /// The worker.
        name: String,
        /// The devices.
        users: String,
    },
    /// Another worker has its CPU, and one of the two never releases it.
    #[error(
        "worker {name}: worker {other} is on CPU {cpu} as well, and one that spins never gives its CPU away: give each \
         its own, or have both rest with idle = \"adaptive\""
    )]
    CpuTaken {
        /// The worker.
        name: String,
        /// The other worker.
        other: String,
        /// The CPU.
        cpu: usize,
    },
    /// The statistics have no room for it.
    #[error("worker {0}: the statistics have no room for another worker; remove one, or start with more")]
    Statistics(String),
    /// Its thread could not be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// The description of a worker to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Its name.
    pub name: String,
    /// The CPU it is pinned to; `None`: it may run on any.
    pub cpu: Option<usize>,
    /// Its idle policy.
    pub idle: IdlePolicy,
}

impl From<&config::Worker> for WorkerSpec {
    fn from(worker: &config::Worker) -> Self {
        WorkerSpec { name: worker.name.value.clone(), cpu: worker.cpu.as_ref().map(|cpu| cpu.value), idle: worker.idle }
    }
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct RunningWorker {
    pub(crate) spec: WorkerSpec,
    pub(crate) worker: Worker,
}
