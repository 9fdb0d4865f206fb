//! Threads on CPUs of their own.

/// Pins the calling thread.
pub fn pin(cpu: usize) {
    pollux_core::cpus::pin(cpu).unwrap_or_else(|error| panic!("CPU {cpu} cannot be used: {error}"));
}
