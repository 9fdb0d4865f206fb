//! Distributions: of latencies, and of the sizes of batches.
use super::counter::Counter;

/// Histogram precision: 8 buckets for each power of two, which is within 12.5 %.
const SUB_BITS: u32 = 3;
/// Linear buckets in each power of two.
pub const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Values up to 2^40 ns (18 minutes) have buckets of their own; longer ones go to the last.
const MAX_EXPONENT: u32 = 40;
/// Number of buckets of a histogram.
pub const BUCKETS: usize = SUB_BUCKETS * (MAX_EXPONENT - SUB_BITS + 2) as usize;

/// A latency histogram with logarithmic buckets, each power of two divided linearly. Values are nanoseconds.
#[repr(C)]
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
}

impl Histogram {
    fn index(value: u64) -> usize {
        let value = value.min((1 << (MAX_EXPONENT + 1)) - 1);
        let exponent = 63 - (value | ((1 << SUB_BITS) - 1)).leading_zeros();
        if exponent < SUB_BITS {
            return value as usize;
        }
        let sub = (value >> (exponent - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
        (exponent - SUB_BITS + 1) as usize * SUB_BUCKETS + sub
    }

    /// The greatest value that falls into bucket `index`.
    fn upper_bound(index: usize) -> u64 {
        if index < SUB_BUCKETS {
            return index as u64;
        }
        let exponent = (index / SUB_BUCKETS) as u32 + SUB_BITS - 1;
        let sub = (index % SUB_BUCKETS) as u64;
        (1 << exponent) + ((sub + 1) << (exponent - SUB_BITS)) - 1
    }

    /// Counts one latency in nanoseconds.
    #[inline]
    pub fn record(&self, nanoseconds: u64) {
        self.buckets[Self::index(nanoseconds)].add(1);
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        sum(self.buckets.iter().map(Counter::get))
    }

    /// The greatest value of each bucket in nanoseconds, ascending, and how many values it has. For adding up
    /// histograms.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(index, bucket)| (Self::upper_bound(index), bucket.get()))
    }

    /// The value in nanoseconds below which `share` (0 to 1) of all lie, to the precision of a bucket; `None` without
    /// values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        quantile(self.buckets(), self.count(), share)
    }
}

/// Latency histograms, one for each kind of request.
#[repr(C)]
#[derive(Debug)]
pub struct OperationLatency {
    operations: [Histogram; OPERATIONS],
}

/// Reads, writes, flushes, others.
const OPERATIONS: usize = 4;

impl OperationLatency {
    /// Counts one latency in nanoseconds of a request of `operation`: its number in `block/1`; all numbers from 3 on
    /// are one kind.
    #[inline]
    pub fn record(&self, operation: u32, nanoseconds: u64) {
        self.operations[(operation as usize).min(OPERATIONS - 1)].record(nanoseconds);
    }

    /// The histograms of reads, writes, flushes and others.
    pub fn operations(&self) -> [&Histogram; OPERATIONS] {
        self.operations.each_ref()
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        sum(self.operations.iter().map(Histogram::count))
    }

    /// The buckets of all kinds together, as [`Histogram::buckets`].
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let count = |index: usize| sum(self.operations.iter().map(|histogram| histogram.buckets[index].get()));
        (0..BUCKETS).map(move |index| (Histogram::upper_bound(index), count(index)))
    }

    /// As [`Histogram::quantile`], for all kinds together.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        quantile(self.buckets(), self.count(), share)
    }
}

/// The value below which `share` of the `count` values in ascending buckets lie.
fn quantile(buckets: impl Iterator<Item = (u64, u64)>, count: u64, share: f64) -> Option<u64> {
    let rank = ((count as f64 * share).ceil() as u64).max(1);
    let mut seen = 0u64;
    let mut buckets = buckets;
    buckets
        .find(|(_, values)| {
            seen = seen.saturating_add(*values);
            seen >= rank
        })
        .map(|(bound, _)| bound)
}

/// The sum of two counts. Those of another process's segment may be anything.
fn sum(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

/// How many batches of each size there were, by powers of two.
#[repr(C)]
#[derive(Debug)]
pub struct BatchSizes {
    sizes: [Counter; BATCH_SIZES],
}

const BATCH_SIZES: usize = 8;

impl BatchSizes {
    /// Counts a batch of `size` requests, which is 1 or more.
    #[inline(always)]
    pub fn record(&self, size: usize) {
        let index = usize::BITS - size.saturating_sub(1).leading_zeros();
        self.sizes[(index as usize).min(BATCH_SIZES - 1)].add(1);
    }

    /// Number of batches.
    pub fn get(&self) -> u64 {
        sum(self.sizes.iter().map(Counter::get))
    }

    /// The greatest size of each group, ascending (`None` for the last: it has no bound), and how many batches were in
    /// it.
    pub fn sizes(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        let bound = |index: usize| (index + 1 < BATCH_SIZES).then_some(1 << index);
        self.sizes.iter().enumerate().map(move |(index, count)| (bound(index), count.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_its_bucket_to_one_eighth() {
        for value in
            (0..2000).chain((4..41).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << (bit - 2))]))
        {
            let index = Histogram::index(value);
            let upper = Histogram::upper_bound(index);
            assert!(upper >= value, "{value} in bucket {index} up to {upper}");
            assert!(upper - value <= value / 8, "{value} in bucket {index} up to {upper}");
            assert!(index == 0 || Histogram::upper_bound(index - 1) < value, "{value} in bucket {index}");
        }
        assert_eq!(Histogram::index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_documented_bounds_are_those_of_the_buckets() {
        let lower = |index: usize| match index {
            ..SUB_BUCKETS => index as u64,
            _ => ((SUB_BUCKETS + index % SUB_BUCKETS) as u64) << (index / SUB_BUCKETS - 1),
        };
        for index in 1..BUCKETS {
            assert_eq!(Histogram::upper_bound(index - 1) + 1, lower(index), "bucket {index}");
        }
    }

    #[test]
    fn batches_are_grouped_by_size() {
        let batches = BatchSizes { sizes: Default::default() };
        for size in [1, 1, 2, 3, 4, 5, 16, 17, 33, 64, 65, 100_000] {
            batches.record(size);
        }
        let groups: Vec<_> = batches.sizes().collect();
        let expected = [(1, 2), (2, 1), (4, 2), (8, 1), (16, 1), (32, 1), (64, 2)];
        let expected: Vec<_> =
            expected.map(|(size, count)| (Some(size), count)).into_iter().chain([(None, 2)]).collect();
        assert_eq!(groups, expected);
        assert_eq!(batches.get(), 12);
    }
}
