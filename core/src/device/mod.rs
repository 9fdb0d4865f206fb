//! Device models: what a guest's driver sees, whatever the transport.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | a device model as transports see it |
//! | [`activation`] | what it is given when its driver starts it |
//! | [`config_space`] | which fields change, and what a driver was told of them |
//! | [`measure`] | asks the backend what its medium is like, without involving the device |
//! | [`shell`] | what every device model does: activation, memory, queues on workers |
//! | [`blk`] | block device (virtio 1.3, 5.2) |
//!
//! Their queues share one implementation: see [`queue`](crate::queue).
pub mod activation;
pub mod blk;
pub mod config_space;
pub mod measure;
pub mod model;
pub mod shell;

pub use activation::{ActivateError, Activation, ActiveQueue};
pub use config_space::{ConfigFields, ToldConfig};
pub use measure::Measure;
pub use model::DeviceModel;
