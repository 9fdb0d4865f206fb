//! The features that the driver accepts.

/// FLUSH, EVENT_IDX and VERSION_1: what this driver knows.
pub const FEATURES: u64 = 1 << 9 | 1 << 29 | 1 << 32;
