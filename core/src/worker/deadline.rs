//! When a task wants to be called, and the time of a turn.
use crate::stats::clock;
use std::{cell::Cell, time::Duration};
#[cfg(test)]
use testing::read_clock;

/// A time from which on a task wants to be polled, whatever else happens.
///
/// It is a wait that began at a certain time. If the clock jumps back behind that time, the wait is over: a task that
/// is called too early can wait again, and one that is not called for an hour cannot help itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// In ticks of the time stamp counter.
    since: u64,
    ticks: u64,
}

impl Default for Deadline {
    /// Never.
    fn default() -> Self {
        Self::NONE
    }
}

/// Smaller differences are normal between the clocks of two CPUs: they are not jumps.
const SKEW_TICKS: u64 = 1 << 20;

impl Deadline {
    /// Of a task that has none.
    pub(super) const NONE: Deadline = Deadline { since: 0, ticks: u64::MAX };

    /// `wait` from the beginning of this turn on. `[worker]`
    pub fn after(wait: Duration) -> Self {
        let ticks = wait.as_nanos() * u128::from(clock::ticks_per_second()) / 1_000_000_000;
        // Deadlines that are centuries away need not be told apart.
        Deadline { since: now(), ticks: ticks.try_into().unwrap_or(u64::MAX).min(u64::MAX - 1) }
    }

    /// Whether it has come, by the time of this turn. `[worker]`
    pub fn is_due(self) -> bool {
        self.remaining_ticks() == 0
    }

    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Time until it comes, by the time of this turn.
    pub(super) fn remaining(self) -> Duration {
        let nanoseconds = u128::from(self.remaining_ticks()) * 1_000_000_000 / u128::from(clock::ticks_per_second());
        Duration::from_nanos(nanoseconds.try_into().unwrap_or(u64::MAX))
    }

    /// The earlier of the two. `[worker]`
    pub fn or_earlier(self, other: Deadline) -> Deadline {
        if other.remaining_ticks() < self.remaining_ticks() { other } else { self }
    }

    #[inline(always)]
    fn remaining_ticks(self) -> u64 {
        if self.is_none() {
            return u64::MAX;
        }
        let now = now();
        let is_skew = now < self.since && self.since - now < SKEW_TICKS;
        let elapsed = if is_skew { 0 } else { now.wrapping_sub(self.since) };
        self.ticks.saturating_sub(elapsed)
    }
}

thread_local! {
    /// The time of the worker's turn; 0 outside of turns that go by the clock.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// Reads the clock for all calls that ask for the time until [`end_turn`].
pub(super) fn begin_turn() {
    TURN.set(read_clock().max(1));
}

/// From now on, each call that asks for the time reads the clock.
pub(super) fn end_turn() {
    TURN.set(0);
}

/// The time of this turn, in ticks of the time stamp counter: read once for all if a task at rest has a deadline, and
/// otherwise on each call. `[worker]`
pub fn now() -> u64 {
    match TURN.get() {
        0 => read_clock(),
        ticks => ticks,
    }
}

#[cfg(not(test))]
fn read_clock() -> u64 {
    clock::ticks()
}

/// A clock that tests set, each in its own thread.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    thread_local! {
        static SET: Cell<Option<u64>> = const { Cell::new(None) };
        static READS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn read_clock() -> u64 {
        READS.set(READS.get() + 1);
        SET.get().unwrap_or_else(clock::ticks)
    }

    /// The clock shows this many nanoseconds from now on.
    pub(crate) fn set(nanoseconds: u64) {
        SET.set(Some((u128::from(nanoseconds) * u128::from(clock::ticks_per_second()) / 1_000_000_000) as u64));
    }

    /// How often it was read.
    pub(crate) fn reads() -> usize {
        READS.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn it_comes_when_its_time_is_over_and_not_before() {
        testing::set(100 * SECOND);
        let deadline = Deadline::after(Duration::from_millis(5));
        assert!(!deadline.is_due());
        testing::set(100 * SECOND + 4_999_000);
        assert!(!deadline.is_due());
        assert!(deadline.remaining() < Duration::from_micros(2), "{:?}", deadline.remaining());
        testing::set(100 * SECOND + 5_001_000);
        assert!(deadline.is_due());
        assert_eq!(deadline.remaining(), Duration::ZERO);
        assert!(Deadline::after(Duration::ZERO).is_due(), "no wait at all");
        assert!(!Deadline::after(Duration::MAX).is_due(), "a wait without an end");
    }

    #[test]
    fn a_clock_that_jumps_ends_a_wait_and_never_prolongs_it() {
        testing::set(100 * SECOND);
        let deadline = Deadline::after(Duration::from_secs(10));
        testing::set(3600 * SECOND);
        assert!(deadline.is_due(), "forward");
        testing::set(0);
        assert!(deadline.is_due(), "back to the start");
        testing::set(50 * SECOND);
        assert!(deadline.is_due(), "back by less");
        testing::set(100 * SECOND - 10_000);
        assert!(!deadline.is_due(), "what the clocks of two CPUs may differ by is no jump");
    }

    #[test]
    fn the_clock_is_read_once_a_turn_however_many_ask() {
        let before = testing::reads();
        for turn in 1..=3 {
            begin_turn();
            (0..100).for_each(|_| _ = now());
            end_turn();
            assert_eq!(testing::reads() - before, turn);
        }
    }
}
