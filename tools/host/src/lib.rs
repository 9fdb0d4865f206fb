//! What one process of Pollux runs, as objects with verbs: whatever a configuration file can describe can also be done
//! to a running process.
//!
//! | module | object | verbs |
//! |---|---|---|
//! | [`host`] | all of them | stop, describe |
//! | [`plugin`] | a plugin's file | load; a library is never unloaded |
//! | [`worker`] | a polling thread | add, remove |
//! | [`backend`] | a medium that a plugin opens, `[block.NAME]` | add, remove |
//! | [`device`] | a virtio device in front of a backend | add, remove, refresh, pause, resume |
//! | [`export`] | the socket that a device is served on | add, remove |
//! | [`machine`] | the virtual machine | make, attach a device, run |
//! | [`configuration`] | a checked file | the same verbs, in order |
//! | [`description`] | all objects, as they are now | |
//!
//! The verbs are in `verbs`, the lists of objects in `objects`; `action` carries out what may take long.
//!
//! An object in use is not removed: a worker or backend while a device uses it, a device while it is served or
//! attached. The error names the user.
//!
//! Verbs may be called from any thread at any time, even concurrently; if two want the same object, the second gets an
//! error that says what is being done to it, and since when. They are control calls: they wait for media and for
//! workers, each no longer than the patience that it is given, and with a line in the log every few seconds. Meanwhile,
//! all others work, [`Host::describe`] among them. A worker must not call any of them.
#![forbid(unsafe_code)]

mod action;
pub mod backend;
pub mod configuration;
pub mod description;
pub mod device;
pub mod export;
pub mod host;
pub mod machine;
mod objects;
pub mod plugin;
mod verbs;
pub mod worker;

pub use action::FOREVER;
pub use backend::{Backend, BackendSpec};
pub use configuration::StartError;
pub use device::DeviceSpec;
pub use export::ExportSpec;
pub use host::Host;
pub use plugin::Plugins;
pub use worker::WorkerSpec;
