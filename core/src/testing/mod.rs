//! What tests and benchmarks drive Pollux with: the guest's side.
//!
//! | module | holds |
//! |---|---|
//! | [`driver`] | a driver's side of a split ring, honest or hostile |
//! | [`blk`] | a block driver on top of it: headers, data in any cut, status |
//! | [`disk`] | a backend linked into the process: a disk in memory, well-behaved or not |
//! | [`build`] | plugins built for the occasion |
//! | [`front_end`] | the same over vhost-user |
//! | [`rig`] | a block device with all of these around it, polled by hand or by workers |
//! | [`turns`] | a worker without its thread |
//!
//! Mistakes of the caller panic here, as in any test.
pub mod blk;
pub mod build;
pub mod disk;
pub mod driver;
pub mod front_end;
pub mod rig;
pub mod turns;
