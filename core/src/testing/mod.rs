//! What tests and benchmarks drive Pollux with: the guest's side.
//!
//! | module | holds |
//! |---|---|
//! | [`driver`] | a driver's side of a ring of either kind, honest or hostile |
//! | [`blk`] | a block driver on top of it: headers, data in any cut, status |
//! | [`disk`] | a backend linked into the process: a disk in memory, well-behaved or not |
//! | [`media`] | media that fail, hang, shrink and come back, as a real plugin |
//! | [`build`] | plugins built for the occasion |
//! | [`front_end`] | the same over vhost-user |
//! | [`raw_front_end`] | a front end without manners |
//! | [`neighbours`] | two devices served by the same workers, one of which is attacked |
//! | [`rig`] | a block device with all of these around it, polled by hand or by workers |
//! | [`turns`] | a worker without its thread |
//!
//! Mistakes of the caller panic here, as in any test.
pub mod blk;
pub mod build;
pub mod disk;
pub mod driver;
pub mod front_end;
pub mod media;
pub mod neighbours;
pub mod raw_front_end;
pub mod rig;
pub mod turns;

/// Makes two tests of each function named, which takes a [`RingKind`](driver::RingKind): one for each kind.
#[macro_export]
macro_rules! on_both_rings {
    ($($name:ident),+ $(,)?) => {
        mod split {
            $(#[test] fn $name() { super::$name($crate::testing::driver::RingKind::Split) })+
        }
        mod packed {
            $(#[test] fn $name() { super::$name($crate::testing::driver::RingKind::Packed) })+
        }
    };
}
