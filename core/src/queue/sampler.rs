//! Which batches have their latency measured.
use crate::stats::clock;

/// Takes the time of one batch in a given number. `[worker]`
#[derive(Debug)]
pub(crate) struct Sampler {
    /// One batch in this many; 0: none.
    interval: u32,
    countdown: u32,
    scale: clock::Scale,
}

impl Sampler {
    pub(super) fn new(interval: u32) -> Self {
        Sampler { interval, countdown: interval, scale: clock::Scale::new() }
    }

    /// The time stamp of a batch that begins now; 0: it is not measured.
    #[inline(always)]
    pub(crate) fn begin(&mut self) -> u64 {
        if self.countdown > 1 {
            self.countdown -= 1;
            return 0;
        }
        self.countdown = self.interval;
        if self.interval == 0 { 0 } else { clock::ticks() }
    }

    /// Nanoseconds since a time stamp that is not 0.
    #[inline(always)]
    pub(crate) fn nanoseconds_since(&self, stamp: u64) -> u64 {
        self.scale.nanoseconds(clock::ticks().wrapping_sub(stamp))
    }
}
