//! How the queues of a device are set up.
use super::coalescing::Coalescing;

/// How the queues of a device are set up, whatever its kind: read once from the configuration, and used by the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Number of queues.
    pub count: usize,
    /// Size of each queue, a power of two.
    pub size: u16,
    /// One batch in this many has its latency measured; 0: none.
    pub latency_sample: u32,
    /// How interrupts are merged.
    pub coalescing: Coalescing,
    /// Whether the driver may have its requests given back in the order in which it made them (IN_ORDER).
    pub in_order: bool,
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions { count: 1, size: 256, latency_sample: 16, coalescing: Coalescing::Off, in_order: false }
    }
}
