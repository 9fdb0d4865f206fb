//! The seam behind a block device: what a device model knows of its medium, whatever serves it.
//!
//! | module | holds |
//! |---|---|
//! | [`disk`] | what a device model knows |
//! | [`open`] | which data path a queue gets |
//! | `backend` | a plugin's medium as a disk |
//! | [`stack`] | a disk with layers in front of it |
//! | [`filter`] | the layers |
//! | [`held`] | what a layer keeps of a request |
mod backend;
pub mod disk;
pub mod filter;
#[allow(unsafe_code)]
pub mod held;
pub mod open;
pub mod stack;

pub use crate::plugin::{Completion, QueueFailed, StopFailed};
pub use disk::{Disk, DiskError, DiskQueue};
