//! The driver's side of a virtqueue, made for measuring: requests have fixed places, and nothing is allocated.
//!
//! | module | holds |
//! |---|---|
//! | `ring` | what such a ring can do, and how a device can break it |
//! | `tables` | indirect tables, one for each slot |
//! | `split`, `packed`, `either` | a split ring, a packed ring, a ring of either kind |
mod either;
#[cfg(test)]
mod order_tests;
mod packed;
mod ring;
mod split;
#[allow(unsafe_code)]
mod tables;
#[cfg(test)]
mod tests;

pub use either::EitherRing;
pub use packed::PackedRing;
pub use ring::{CHAIN_LENGTH, Chain, Ring, RingError};
pub use split::SplitRing;
