//! The dataplane of Pollux.
//!
//! | module | holds |
//! |---|---|
//! | [`block`] | what a block device model knows of its medium |
//! | [`memory`] | guest memory, the choke point where a guest's address becomes a host pointer, and memory that another process owns |
//! | [`ring`] | virtqueues as a polling device reads them |
//! | [`queue`] | what every device's queue does on a worker |
//! | [`device`] | device models: what a guest's driver sees |
//! | [`transport`] | how the driver reaches a device: the status machine, the register maps of PCI and MMIO, vhost-user |
//! | [`worker`] | polling threads |
//! | [`plugin`] | the plugin host |
//! | [`config`] | the configuration file |
//! | [`event`] | notifications to drivers, and front ends that hold up the threads that send them |
//! | [`cpus`] | which CPUs threads run on |
//! | [`log_budget`] | a limit on the log lines that a guest or a plugin can cause |
//! | [`stats`] | counters and histograms that other processes can map |
//!
//! Unsafe code is only in the modules marked for it, below or where they are declared.
#![deny(unsafe_code)]

pub mod block;
pub mod config;
pub mod cpus;
pub mod device;
pub mod error;
pub mod event;
mod fallible;
pub mod log_budget;
#[allow(unsafe_code)]
pub mod memory;
#[allow(unsafe_code)]
pub mod plugin;
pub mod queue;
#[allow(unsafe_code)]
pub mod ring;
#[allow(unsafe_code)]
pub mod stats;
pub mod transport;
pub mod worker;
