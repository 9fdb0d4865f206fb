//! What the benchmarks share.
//!
//! | module | holds |
//! |---|---|
//! | [`prepared`] | a driver that offers the same requests over and over, and a clock around the device's part alone |
//! | [`mod@backend`] | backends of the real plugins, and reads for their queues |
//! | [`times`] | times of threads and of cache lines |
//! | [`reads`], [`crossing`], [`many_queues`] | pieces that are measured alone |
//! | [`contest`], [`row`] | who is compared with whom; a row of the table |
//! | [`callgrind`] | counting instructions |
//!
//! Unsafe code is in the modules that are marked so below, and nowhere else.
#![deny(unsafe_code)]

pub mod backend;
pub mod callgrind;
pub mod contest;
pub mod crossing;
pub mod many_queues;
pub mod prepared;
#[allow(unsafe_code)]
pub mod reads;
pub mod row;
pub mod times;

pub use backend::{BLOCK_BYTES, backend, plugin, started_reads};
pub use pollux_loadgen::{pinning::pin, roundtrip::median};
pub use prepared::Prepared;
pub use times::{round_trip_ns, thread_time};
