//! Times of threads and of cache lines.
use std::time::Duration;

/// User and system time of the calling thread so far.
pub fn thread_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).expect("Linux has this clock").into()
}

/// The time in nanoseconds that a cache line takes from one CPU to another and back.
pub fn round_trip_ns(first: usize, second: usize) -> f64 {
    pollux_loadgen::roundtrip::round_trip_ns(first, second).expect("two CPUs that can be used")
}
