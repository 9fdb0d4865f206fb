//! The plugin host: finds, checks and opens plugins. Only this module names `libloading` and `abi_stable`.
mod announced;
mod block_v1;
mod control;
mod counters;
mod error;
mod host;
mod instance;
mod layout;
mod load;
mod queue_life;
mod registry;
mod sampler;
mod statistics;
mod tokens;

pub use block_v1::{BackendQueue, BlockBackend, Completion, OpenOptions};
pub use counters::Counters;
pub use error::BackendError;
pub use load::{LoadError, Plugin};
pub use queue_life::{QueueFailed, StopFailed};
pub use registry::{PluginPath, Registry};
