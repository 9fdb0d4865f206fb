//! Virtqueues as a polling device reads them: our own code over cached host pointers.
//!
//! Everything in a ring is written by the guest, at any time. A value is read once, checked once and never read
//! again; a ring that breaks the rules yields a [`RingError`], after which it is not touched any more.
//!
//! | module | holds |
//! |---|---|
//! | `device_side` | what the device does with a ring, whatever its kind |
//! | `config`, `chain`, `error` | where a ring is, what a walk finds out, how a driver breaks a ring |
//! | `kind` | the two kinds of ring |
//! | `split`, `packed` | the rings, each with its record of requests in flight |
//! | `in_order` | a ring whose chains are given back in their order |
//! | `region` | the memory of such records |
//! | `table`, `placement` | descriptor tables, and the parts of a ring in host memory |
mod chain;
mod config;
mod device_side;
mod error;
mod in_order;
mod kind;
mod packed;
mod placement;
mod region;
mod split;
mod table;

pub use chain::{Chain, SegmentList};
pub use config::{MAX_QUEUE_SIZE, QueueConfig, RingStart};
pub use device_side::Ring;
pub use error::RingError;
pub use in_order::{InOrder, UsedRuns};
pub use kind::RingKind;
pub use packed::PackedRing;
pub use region::InflightPlace;
pub use split::SplitRing;
