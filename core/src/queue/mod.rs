//! What every device's queue does on a worker, and how others reach it there.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | how the queues of a device are set up |
//! | [`update`] | changes to a running queue, and where a stopped one stands |
//! | [`set`] | the queues of one device on their workers |
//! | `shell` | a task that serves a queue, whatever the device is |
//! | `virtqueue` | one ring, and what belongs to it |
//! | [`coalescing`] | when drivers are told |
//! | `retiring` | memory maps that were replaced |
//! | `sampler` | which batches have their latency measured |
pub mod coalescing;
pub mod options;
mod retiring;
mod sampler;
pub mod set;
mod shell;
pub mod update;
#[allow(unsafe_code)]
mod virtqueue;

pub use options::QueueOptions;
pub use set::QueueSet;
pub(crate) use shell::QueueModel;
pub use update::{Position, QueueUpdate, Retired, position_of};
pub(crate) use virtqueue::Virtqueue;
pub use virtqueue::{BATCH, VirtqueueSetup};
