//! What every device's queue does on a worker, and how others reach it there.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | how the queues of a device are set up |
//! | [`update`] | changes to a running queue, and where a stopped one stands |
//! | [`set`] | the queues of one device on their workers |
//! | [`coalescing`] | when drivers are told |
pub mod coalescing;
pub mod options;
pub mod set;
pub mod update;

pub use options::QueueOptions;
pub use set::QueueSet;
pub use update::{Position, QueueUpdate, Retired, position_of};
