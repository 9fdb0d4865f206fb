//! Why a worker could not be started, or take a task.
use crate::cpus;
use std::io;

/// Why a worker could not be started or take a task.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread could not be made.
    #[error("worker {0}: cannot start its thread: {1}")]
    Thread(String, io::Error),
    /// The thread could not be pinned.
    #[error("worker {0}: cannot be pinned to CPU {1}: {why} ({2})", why = cpus::obstacle(*.1))]
    Pin(String, usize, io::Error),
    /// The task refused to start.
    #[error("{0}")]
    Task(String),
    /// The worker has ended.
    #[error("worker {0} has ended")]
    Gone(String),
}
