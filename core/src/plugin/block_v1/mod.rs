//! The host's side of `block/1`.
mod backend;
mod control;
mod queue;
mod statistics;

pub use backend::{BlockBackend, OpenOptions};
pub use queue::{BackendQueue, Completion, QueueFailed, StopFailed};
