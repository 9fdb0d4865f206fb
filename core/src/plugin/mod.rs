//! The plugin host: finds, checks and opens plugins. Only this module names `libloading` and `abi_stable`.
mod announced;
mod block_v1;
mod counters;
mod error;
mod host;
mod layout;
mod load;
mod registry;
mod sampler;
mod tokens;

pub use block_v1::{BackendQueue, BlockBackend, Completion, OpenOptions, QueueFailed, StopFailed};
pub use counters::Counters;
pub use error::BackendError;
pub use load::{LoadError, Plugin};
pub use registry::{PluginPath, Registry};
