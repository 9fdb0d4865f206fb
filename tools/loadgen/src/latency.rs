//! Latencies: an HDR histogram, which keeps every value to a tenth of a percent, as far out as p99.99 needs.
use hdrhistogram::Histogram;

/// Longer ones count as this: 1000 s in nanoseconds.
const LONGEST: u64 = 1_000_000_000_000;
const DIGITS: u8 = 3;

/// The quantiles that reports show, and their names.
pub const QUANTILES: [(f64, &str); 5] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99")];

/// Latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Latencies(Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("bounds and precision are constant and good"))
    }
}

impl Latencies {
    /// Counts one. Never allocates.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that `share` (0 to 1) of all do not exceed; `None` without values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(share))
    }

    /// The least value.
    pub fn min(&self) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.min())
    }

    /// The greatest value.
    pub fn max(&self) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.max())
    }

    /// The mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.mean())
    }

    /// Values, to the precision of the histogram, with how often each was seen, ascending.
    pub fn values(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }

    /// Values gathered into steps of a logarithmic scale, `per_decade` in each power of ten, from the first to the last
    /// that is not empty: lower bound, upper bound, count.
    pub fn log_buckets(&self, per_decade: u32) -> Vec<(f64, f64, u64)> {
        let steps = f64::from(per_decade);
        let index = |value: u64| ((value.max(1) as f64).log10() * steps).floor() as i32;
        let bound = |index: i32| 10f64.powf(f64::from(index) / steps);
        let mut buckets: Vec<(i32, u64)> = Vec::new();
        for (value, count) in self.values() {
            let at = index(value);
            while buckets.last().is_some_and(|&(last, _)| last + 1 < at) {
                let next = buckets.last().map_or(at, |&(last, _)| last + 1);
                buckets.push((next, 0));
            }
            match buckets.last_mut() {
                Some((last, sum)) if *last == at => *sum += count,
                _ => buckets.push((at, count)),
            }
        }
        buckets.into_iter().map(|(at, count)| (bound(at), bound(at + 1), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thousand() -> Latencies {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|value| latencies.record(value * 100));
        latencies
    }

    #[test]
    fn quantiles_are_right_to_a_tenth_of_a_percent() {
        let latencies = thousand();
        for (share, expected) in [(0.5, 50_000), (0.9, 90_000), (0.999, 99_900), (1.0, 100_000)] {
            let found = latencies.quantile(share).expect("values");
            assert!(found.abs_diff(expected) <= expected / 1000, "{share}: {found}");
        }
        assert_eq!((latencies.count(), Latencies::default().quantile(0.5)), (1000, None));
    }

    #[test]
    fn what_is_longer_than_the_longest_is_kept() {
        let mut latencies = Latencies::default();
        latencies.record(u64::MAX);
        latencies.record(0);
        assert_eq!(latencies.count(), 2);
    }

    #[test]
    fn log_buckets_hold_every_value_once_without_gaps() {
        let mut latencies = thousand();
        latencies.record(50_000_000);
        let buckets = latencies.log_buckets(10);
        assert_eq!(buckets.iter().map(|bucket| bucket.2).sum::<u64>(), 1001);
        for pair in buckets.windows(2) {
            assert!((pair[0].1 - pair[1].0).abs() < 1e-6 * pair[0].1, "{pair:?}");
        }
        assert!(buckets[0].2 > 0 && buckets.last().is_some_and(|last| last.2 == 1));
    }
}
