//! What a cache line costs from one CPU to another and back: everything that goes between driver and device is bound by
//! it.
use crate::pinning::pin;
use pollux_core::{cpus, stats::clock};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

const TRIPS: u64 = 2000;
const ROUNDS: u64 = 41;

/// The time in nanoseconds that a cache line takes from one CPU to another and back, as the median of many short
/// measurements. On a virtual machine it changes while one watches: print it beside every result. `None`: there is no
/// such CPU.
pub fn round_trip_ns(first: usize, second: usize) -> Option<f64> {
    let usable = cpus::usable();
    if first == second || ![first, second].iter().all(|cpu| usable.contains(cpu)) {
        return None;
    }
    let ball = Arc::new(AtomicU64::new(0));
    let theirs = ball.clone();
    let partner = thread::spawn(move || {
        pin(second);
        for turn in 0..ROUNDS * TRIPS {
            wait_for(&theirs, 2 * turn + 1);
            theirs.store(2 * turn + 2, Ordering::Release);
        }
    });
    let ours = thread::spawn(move || {
        pin(first);
        let mut results: Vec<f64> = (0..ROUNDS)
            .map(|round| {
                let start = clock::ticks();
                for turn in round * TRIPS..(round + 1) * TRIPS {
                    ball.store(2 * turn + 1, Ordering::Release);
                    wait_for(&ball, 2 * turn + 2);
                }
                clock::Scale::new().nanoseconds(clock::ticks().wrapping_sub(start)) as f64 / TRIPS as f64
            })
            .collect();
        median(&mut results)
    });
    let result = ours.join().ok();
    partner.join().ok().and(result)
}

fn wait_for(ball: &AtomicU64, value: u64) {
    // Partner: the release store of the other thread.
    while ball.load(Ordering::Acquire) != value {
        std::hint::spin_loop();
    }
}

/// The median: of an even number, the greater of the two in the middle. Sorts the values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_takes_time_and_needs_two_cpus() {
        let cpus = cpus::current();
        assert_eq!(round_trip_ns(cpus[0], cpus[0]), None);
        assert_eq!(round_trip_ns(cpus[0], 100_000), None);
        if let [first, second, ..] = cpus[..] {
            assert!(round_trip_ns(first, second).is_some_and(|time| time > 1.0));
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert!(median(&mut []).is_nan());
    }
}
