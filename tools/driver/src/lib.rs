//! The driver's side of a virtqueue, for tests and benchmarks. It can follow the rules, and can break each of them.
//!
//! | module | holds |
//! |---|---|
//! | `layout` | descriptors as they lie in memory, and buffers that are to be described |
//! | `place` | a place in a packed ring |
//! | `in_order` | what a driver remembers of chains whose device keeps their order |
//! | `split`, `packed`, `either` | the driver of a split ring, of a packed ring, of a ring of either kind |
//!
//! What tests drive rings with is here; [`slots`] has what `pollux bench` measures with.
//!
//! Unsafe code is in the modules that are marked so below.
#![deny(unsafe_code)]

mod either;
mod in_order;
mod layout;
#[allow(unsafe_code)]
mod packed;
mod place;
#[allow(unsafe_code)]
pub mod slots;
#[allow(unsafe_code)]
mod split;

pub use either::{RingDriver, ring_bytes};
pub use in_order::Order;
pub use layout::{AVAILABLE, Buffer, Descriptor, INDIRECT, NEXT, PackedDescriptor, USED, WRITE};
pub use packed::PackedDriver;
pub use place::Place;
pub use split::SplitDriver;

pub use pollux_core::ring::RingKind;
