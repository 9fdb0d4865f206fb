//! The host's side of `block/1`.
mod backend;
mod queue;

pub use backend::{BlockBackend, OpenOptions};
pub use queue::{BackendQueue, Completion};
