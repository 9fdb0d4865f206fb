//! How long an adaptive worker polls without work before it sleeps.

/// The possible windows, in nanoseconds. The longest is about what a sleep and its wake-up cost: to poll for as long is
/// at most twice as bad as the best choice (ski rental).
const CHOICES_NS: [u64; 6] = [2_000, 5_000, 10_000, 20_000, 35_000, LONGEST_NS];
/// The longest.
pub(super) const LONGEST_NS: u64 = 50_000;
/// What a sleep costs: entering it, and the time until the worker runs again.
const SLEEP_NS: u64 = 50_000;
/// Gaps that are remembered in full; older ones count half, then a quarter, and so on.
const MEMORY: u32 = 32;

/// The window that would have cost least for the gaps between work of the recent past: polling costs its time, and so
/// does a sleep.
///
/// The idea of learning the distribution of gaps is that of Karlin, Li, Manasse and Owicki, "Empirical studies of
/// competitive spinning for a shared-memory multiprocessor" (1991).
#[derive(Debug)]
pub(super) struct SpinWindow {
    /// Number of gaps not longer than each choice, nor in one before it; the last: longer than all.
    gaps: [u32; CHOICES_NS.len() + 1],
    choice: usize,
}

impl SpinWindow {
    pub(super) fn new() -> Self {
        SpinWindow { gaps: [0; _], choice: CHOICES_NS.len() - 1 }
    }

    /// How long to poll.
    pub(super) fn nanoseconds(&self) -> u64 {
        CHOICES_NS[self.choice]
    }

    /// Work came after polling for this long.
    pub(super) fn polled(&mut self, nanoseconds: u64) {
        self.note(nanoseconds);
    }

    /// Work came after polling and a sleep of these lengths.
    pub(super) fn slept(&mut self, polled_ns: u64, slept_ns: u64) {
        // Half of a short sleep is the wake-up itself, at a guess. If the guess is too high, a longer window than
        // necessary catches the next ones, and those are measured.
        self.note(polled_ns + slept_ns / 2);
    }

    fn note(&mut self, gap_ns: u64) {
        let group = CHOICES_NS.iter().position(|&choice| gap_ns <= choice).unwrap_or(CHOICES_NS.len());
        self.gaps[group] += 1;
        if self.gaps.iter().sum::<u32>() >= MEMORY {
            self.gaps.iter_mut().for_each(|count| *count /= 2);
        }
        let best = (0..CHOICES_NS.len()).rev().min_by_key(|&choice| self.cost(choice));
        self.choice = best.unwrap_or_default();
    }

    /// What the remembered gaps would have cost with this choice.
    fn cost(&self, choice: usize) -> u64 {
        let cost = |(group, &count): (usize, &u32)| {
            let each = if group <= choice { CHOICES_NS[group] } else { CHOICES_NS[choice] + SLEEP_NS };
            u64::from(count) * each
        };
        self.gaps.iter().enumerate().map(cost).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gaps: impl IntoIterator<Item = u64>) -> SpinWindow {
        let mut window = SpinWindow::new();
        for gap in gaps {
            let polled = gap.min(window.nanoseconds());
            match gap > polled {
                false => window.polled(polled),
                // A sleep takes a wake-up longer than what is left of the gap.
                true => window.slept(polled, gap - polled + 20_000),
            }
        }
        window
    }

    #[test]
    fn it_is_long_before_anything_is_known() {
        assert_eq!(SpinWindow::new().nanoseconds(), LONGEST_NS);
    }

    #[test]
    fn a_device_that_is_seldom_used_is_not_polled_for() {
        assert_eq!(after([4_000_000; 3]).nanoseconds(), CHOICES_NS[0]);
        // Every 80 us is too seldom as well: polling would cost as much as sleeping, and then the sleep.
        assert_eq!(after([80_000; 100]).nanoseconds(), CHOICES_NS[0]);
    }

    #[test]
    fn short_gaps_are_polled_through_and_no_longer() {
        // With a long one now and then, for which the window is to be no longer than need be.
        let mixed = |short: u64| after([[short; 9].as_slice(), &[2_000_000]].concat().into_iter().cycle().take(100));
        assert_eq!(mixed(4_000).nanoseconds(), 5_000);
        assert_eq!(mixed(8_000).nanoseconds(), 10_000);
        assert_eq!(mixed(30_000).nanoseconds(), 35_000);
        assert_eq!(after([30_000; 100]).nanoseconds(), LONGEST_NS, "nothing is lost by it");
    }

    #[test]
    fn it_learns_anew_within_a_few_dozen_gaps() {
        let after_idle = after([4_000_000; 100].into_iter().chain([8_000; 40]));
        assert!(after_idle.nanoseconds() >= 10_000, "{after_idle:?}");
        let after_load = after([8_000; 100].into_iter().chain([4_000_000; 2 * MEMORY as usize]));
        assert_eq!(after_load.nanoseconds(), CHOICES_NS[0]);
    }
}
