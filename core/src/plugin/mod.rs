//! The plugin host: finds, checks and opens plugins. Only this module names `libloading` and `abi_stable`.
mod block_v1;
mod counters;
mod host;
mod layout;
mod load;
mod registry;
mod sampler;

pub use block_v1::{BackendError, BackendQueue, BlockBackend, Completion, OpenOptions, QueueFailed, StopFailed};
pub use counters::Counters;
pub use load::{LoadError, Plugin};
pub use registry::{PluginPath, Registry};
