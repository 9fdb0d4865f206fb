//! Reads that `submit` makes itself because the page cache is likely to have the bytes.
//!
//! A read that finds its bytes there is one system call either way, and `preadv2` is a shorter one than a turn of the
//! ring. That holds for a read on its own: of several, the ring takes all with one call.

/// Longest pause, in reads.
const LONGEST_PAUSE: u32 = 1024;

/// Learns whether it is worthwhile to try. Each read that is tried without success makes the next pause twice as long,
/// so that a workload which the page cache does not hold pays for one call in a thousand reads.
#[derive(Debug, Default)]
pub(crate) struct InlineReads {
    /// Reads that the last miss let pass.
    pause: u32,
    /// Reads that are still to pass.
    left: u32,
}

impl InlineReads {
    /// Whether to try this read.
    #[inline]
    pub(crate) fn try_this(&mut self) -> bool {
        let is_over = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_over
    }

    /// The page cache had the bytes.
    #[inline]
    pub(crate) fn hit(&mut self) {
        self.pause /= 2;
    }

    /// It had not.
    #[cold]
    pub(crate) fn missed(&mut self) {
        self.pause = (self.pause * 2).clamp(1, LONGEST_PAUSE);
        self.left = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_always_miss_are_hardly_ever_tried() {
        let mut reads = InlineReads::default();
        let tried = (0..100_000).filter(|_| {
            let tried = reads.try_this();
            if tried {
                reads.missed();
            }
            tried
        });
        assert!(tried.count() < 120);
    }

    #[test]
    fn a_warm_cache_is_noticed_again() {
        let mut reads = InlineReads::default();
        (0..20_000).for_each(|_| {
            if reads.try_this() {
                reads.missed()
            }
        });
        let tried = (0..20_000).filter(|_| {
            let tried = reads.try_this();
            if tried {
                reads.hit();
            }
            tried
        });
        assert!(tried.count() > 18_000);
    }
}
