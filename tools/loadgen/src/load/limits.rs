//! How a load is run, and how long.
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

/// How a load is run, and how long.
#[derive(Clone, Debug)]
pub struct LoadLimits {
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Time before the measurement.
    pub warm_up: Duration,
    /// Length of the measurement; with `requests` too, whatever comes first.
    pub duration: Option<Duration>,
    /// Requests of all queues together.
    pub requests: Option<u64>,
    /// Requests per second of all queues together: each goes out at its time, and its latency counts from then on, even
    /// if it had to wait for room. `None`: as many as can be.
    pub rate: Option<f64>,
    /// Show the device all requests that can go out at once, not one by one.
    pub batch: bool,
    /// Sleep until the device interrupts, instead of polling.
    pub interrupts: bool,
    /// The CPU of each queue's thread; empty: any.
    pub cpus: Vec<usize>,
    /// How long nothing may come back.
    pub patience: Duration,
    /// Ends it early once it is true. Clones have it in common.
    pub stop: Arc<AtomicBool>,
}

impl Default for LoadLimits {
    fn default() -> Self {
        LoadLimits {
            depth: 32,
            warm_up: Duration::ZERO,
            duration: None,
            requests: None,
            rate: None,
            batch: false,
            interrupts: false,
            cpus: Vec::new(),
            patience: Duration::from_secs(20),
            stop: Arc::default(),
        }
    }
}
