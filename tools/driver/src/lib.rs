//! The driver's side of virtqueues, for tests and for measuring.
//!
//! | module | holds |
//! |---|---|
//! | `layout`, `place` | descriptors as they lie in memory, and buffers that are to be described; a place in a packed ring |
//! | `memory` | guest memory as a driver reaches it |
//! | `split_memory`, `packed_memory` | a ring of either kind in memory: every access, with its order |
//! | `order` | the chains of a device that keeps their order |
//! | `split`, `packed`, `either`, `in_order` | the drivers of tests: chains of any buffers, rules that can be broken |
//! | [`slots`] | the driver of `pollux bench`: requests have fixed places, and nothing is allocated |
//!
//! Of pollux-core it knows what guest memory is, and how a device is told where its ring lies: nothing of how devices
//! read rings. Unsafe code is in the modules that are marked so below.
#![deny(unsafe_code)]

mod either;
mod in_order;
mod layout;
#[allow(unsafe_code)]
mod memory;
mod order;
mod packed;
#[allow(unsafe_code)]
mod packed_memory;
mod place;
pub mod slots;
mod split;
#[allow(unsafe_code)]
mod split_memory;

pub use either::{RingDriver, ring_bytes};
pub use in_order::InOrder;
pub use layout::{AVAILABLE, Buffer, Descriptor, INDIRECT, NEXT, PackedDescriptor, USED, WRITE};
pub use packed::PackedDriver;
pub use place::Place;
pub use pollux_core::ring::RingKind;
pub use split::SplitDriver;
