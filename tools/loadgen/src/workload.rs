//! What is asked of a device: reads and writes of one size, in some order, over some range.
pub use crate::slots::SECTOR_BYTES;
use crate::slots::{Kind, Operation};
use serde::Serialize;

/// The order of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// One after the other; at the end, from the start again.
    Sequential,
    /// Uniformly random.
    Random,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// The order of blocks.
    pub order: Order,
    /// Percentage of reads, 0 to 100; the others are writes.
    pub read_share: u8,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Start of the range in bytes.
    pub offset: u64,
    /// Length of the range in bytes; `None`: to the end of the device.
    pub size: Option<u64>,
    /// A flush after so many writes.
    pub flush_every: Option<u64>,
    /// Seed of order and mix.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Workload {
            order: Order::Random,
            read_share: 100,
            block_bytes: 4096,
            offset: 0,
            size: None,
            flush_every: None,
            seed: 1,
        }
    }
}

impl Workload {
    /// Whether it writes.
    pub fn writes(&self) -> bool {
        self.read_share < 100
    }
}

/// The blocks that one queue works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of the first one, counted in blocks from the start of the device.
    pub first: u64,
    /// How many there are.
    pub count: u64,
}

impl Span {
    /// The `index`th of `parts` equal parts.
    pub fn part(self, index: u64, parts: u64) -> Span {
        let start = self.count * index / parts;
        Span { first: self.first + start, count: self.count * (index + 1) / parts - start }
    }
}

/// Makes the requests of one queue, one after the other.
#[derive(Clone, Debug)]
pub struct Generator {
    random: fastrand::Rng,
    order: Order,
    read_share: u8,
    block_bytes: u32,
    span: Span,
    /// Offset in the span of the next block in sequence.
    next: u64,
    flush_every: Option<u64>,
    writes: u64,
}

/// A block, and what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read this block.
    Read(u64),
    /// Write this block.
    Write(u64),
    /// Flush.
    Flush,
}

impl Generator {
    /// The requests of the queue with this number, over `span`.
    pub fn new(workload: &Workload, queue: u64, span: Span) -> Self {
        assert!(span.count > 0, "there are blocks");
        Generator {
            random: fastrand::Rng::with_seed(workload.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(queue)),
            order: workload.order,
            read_share: workload.read_share,
            block_bytes: workload.block_bytes,
            span,
            next: 0,
            flush_every: workload.flush_every,
            writes: 0,
        }
    }

    /// The next step. Blocks for which `is_busy` says so are passed over, if any other is left.
    #[inline]
    pub fn next(&mut self, is_busy: impl Fn(u64) -> bool) -> Step {
        if self.flush_every.is_some_and(|every| self.writes >= every) {
            self.writes = 0;
            return Step::Flush;
        }
        let mut offset = match self.order {
            Order::Random => self.random.u64(0..self.span.count),
            Order::Sequential => self.next,
        };
        for _ in 1..self.span.count {
            if !is_busy(self.span.first + offset) {
                break;
            }
            offset = if offset + 1 == self.span.count { 0 } else { offset + 1 };
        }
        self.next = if offset + 1 == self.span.count { 0 } else { offset + 1 };
        let reads = match self.read_share {
            0 => false,
            100.. => true,
            share => self.random.u8(0..100) < share,
        };
        if reads {
            return Step::Read(self.span.first + offset);
        }
        self.writes += 1;
        Step::Write(self.span.first + offset)
    }

    /// The request of a step.
    #[inline]
    pub fn operation(&self, step: Step) -> Operation {
        let (kind, block) = match step {
            Step::Read(block) => (Kind::Read, block),
            Step::Write(block) => (Kind::Write, block),
            Step::Flush => return Operation::FLUSH,
        };
        let sector = block * (u64::from(self.block_bytes) / SECTOR_BYTES);
        Operation { kind, sector, bytes: self.block_bytes }
    }

    /// The block of a request.
    #[inline]
    pub fn block(&self, operation: &Operation) -> u64 {
        operation.sector / (u64::from(self.block_bytes) / SECTOR_BYTES)
    }

    /// The blocks that it works on.
    pub fn span(&self) -> Span {
        self.span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { first: 100, count: 50 };

    fn steps(workload: &Workload, queue: u64, count: usize) -> Vec<Step> {
        let mut generator = Generator::new(workload, queue, SPAN);
        (0..count).map(|_| generator.next(|_| false)).collect()
    }

    #[test]
    fn a_sequence_goes_round() {
        let workload = Workload { order: Order::Sequential, ..Workload::default() };
        let expected: Vec<Step> = (100..150).chain(100..110).map(Step::Read).collect();
        assert_eq!(steps(&workload, 0, 60), expected);
    }

    #[test]
    fn random_blocks_stay_in_the_span_and_reach_all_of_it() {
        let mut seen = [false; 50];
        for step in steps(&Workload::default(), 0, 2000) {
            let Step::Read(block) = step else { panic!("{step:?}") };
            seen[(block - 100) as usize] = true;
        }
        assert_eq!(seen, [true; 50]);
    }

    #[test]
    fn a_seed_gives_the_same_requests_again_and_queues_and_seeds_differ() {
        let mixed = Workload { read_share: 50, ..Workload::default() };
        assert_eq!(steps(&mixed, 0, 100), steps(&mixed, 0, 100));
        assert_ne!(steps(&mixed, 0, 100), steps(&mixed, 1, 100));
        assert_ne!(steps(&mixed, 0, 100), steps(&Workload { seed: 2, ..mixed.clone() }, 0, 100));
    }

    #[test]
    fn the_mix_and_the_flushes_are_as_told() {
        let workload = Workload { read_share: 70, flush_every: Some(10), ..Workload::default() };
        let steps = steps(&workload, 0, 10_000);
        let reads = steps.iter().filter(|step| matches!(step, Step::Read(_))).count();
        let flushes = steps.iter().filter(|step| **step == Step::Flush).count();
        let writes = steps.len() - reads - flushes;
        assert!((6500..7100).contains(&reads), "{reads}");
        assert!(flushes.abs_diff(writes / 10) <= 1, "{flushes} after {writes} writes");
    }

    #[test]
    fn busy_blocks_are_passed_over() {
        let mut generator = Generator::new(&Workload::default(), 0, SPAN);
        for _ in 0..100 {
            assert_eq!(generator.next(|block| block != 117), Step::Read(117));
        }
    }

    #[test]
    fn parts_cover_a_span_without_overlap() {
        let parts: Vec<Span> = (0..4).map(|index| SPAN.part(index, 4)).collect();
        assert_eq!(parts.iter().map(|part| part.count).sum::<u64>(), 50);
        for pair in parts.windows(2) {
            assert_eq!(pair[0].first + pair[0].count, pair[1].first);
        }
    }
}
