//! A guest-side block driver in user space, which measures and verifies any vhost-user-blk backend.
//!
//! | module | holds |
//! |---|---|
//! | [`frontend`] | the front end: negotiation, shared memory, queues, coming back after a crash of the backend |
//! | [`slots`] | the memory of requests: header, status, data |
//! | [`queue`] | a queue with its requests: submit, publish and kick, pop |
//! | [`workload`] | what is asked for: the mix, the range, the order |
//! | [`verify`] | records in blocks, and whether they came back |
//! | [`load`] | a workload on a front end: a thread a queue, warm-up, time |
//! | [`latency`], [`series`] | latencies; throughput over time |
//! | [`pinning`] | threads on CPUs of their own |
//! | [`ideal`] | the device that no other can beat, to measure others against |
//! | [`roundtrip`], [`machine`] | what the machine is worth at the moment |
//! | [`campaign`] | rounds: several depths, one target or two in turn |
//! | [`report`] | table, histogram, JSON, HTML |
//! | [`units`] | numbers for people |
//!
//! Unsafe code is in the modules that are marked so below, and nowhere else.
#![deny(unsafe_code)]

pub mod campaign;
pub mod frontend;
#[allow(unsafe_code)]
pub mod ideal;
pub mod latency;
pub mod load;
pub mod machine;
pub mod pinning;
pub mod queue;
pub mod report;
pub mod roundtrip;
pub mod series;
#[allow(unsafe_code)]
pub mod slots;
pub mod units;
pub mod verify;
#[allow(unsafe_code)]
mod wait;
pub mod workload;

pub use frontend::{Error, FrontEnd, FrontEndOptions, Indirect};
pub use load::{Ended, Load, LoadLimits, Outcome};
pub use workload::Workload;
