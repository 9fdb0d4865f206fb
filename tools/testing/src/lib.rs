//! What tests and benchmarks put around the device side of Pollux.
//!
//! | module | holds |
//! |---|---|
//! | [`blk`] | a block driver on a ring of [`pollux_driver`]: headers, data in any cut, status |
//! | [`disk`] | a backend linked into the process: a disk in memory, well-behaved or not |
//! | [`media`] | media that fail, hang, shrink and come back, as a real plugin |
//! | [`build`] | plugins built for the occasion |
//! | [`front_end`] | the same over vhost-user |
//! | [`raw_front_end`] | a front end without manners |
//! | [`neighbours`] | two devices served by the same workers, one of which is attacked |
//! | [`registers`] | a block device behind the registers of PCI or MMIO, and a driver in front of them |
//! | [`rig`] | a block device with all of these around it, polled by hand or by workers |
//! | [`inflight`] | the record of requests in flight, which outlives the device's process |
//! | [`host`] | a machine that a configuration file is checked against |
//! | [`sockets`] | sockets of processes that have ended |
//! | [`turns`] | a worker without its thread |
//!
//! Mistakes of the caller panic here, as in any test. Unsafe code is in the modules that are marked so below.
#![deny(unsafe_code)]

pub mod blk;
pub mod build;
#[allow(unsafe_code)]
pub mod disk;
#[allow(unsafe_code)]
pub mod front_end;
pub mod host;
pub mod inflight;
pub mod media;
pub mod neighbours;
#[allow(unsafe_code)]
pub mod raw_front_end;
pub mod registers;
pub mod rig;
pub mod sockets;
pub mod turns;

// For the macro below.
#[doc(hidden)]
pub use pollux_driver::RingKind;

/// Makes two tests of each function named, which takes a [`RingKind`]: one for each kind.
#[macro_export]
macro_rules! on_both_rings {
    ($($name:ident),+ $(,)?) => {
        mod split {
            $(#[test] fn $name() { super::$name($crate::RingKind::Split) })+
        }
        mod packed {
            $(#[test] fn $name() { super::$name($crate::RingKind::Packed) })+
        }
    };
}
