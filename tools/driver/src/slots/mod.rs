//! The driver's side of a virtqueue, made for measuring: requests have fixed places, and nothing is allocated.
//!
//! | module | holds |
//! |---|---|
//! | `ring` | what such a ring can do, and how a device can break it |
//! | `order` | the requests of a device that keeps their order |
//! | `split`, `packed`, `either` | a split ring, a packed ring, a ring of either kind |
mod either;
mod order;
mod packed;
mod ring;
mod split;
#[cfg(test)]
mod tests;

pub use either::EitherRing;
pub use packed::PackedRing;
pub use ring::{CHAIN_LENGTH, Chain, Ring, RingError};
pub use split::SplitRing;
