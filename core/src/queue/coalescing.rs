//! Interrupt coalescing: how long an interrupt that a driver wants is held, so that it covers later requests as well.
//!
//! An interrupt is only held for other requests in flight. By the counts and times of network cards (`ethtool -C`:
//! rx-frames, rx-usecs) and of NVMe (its feature Interrupt Coalescing: aggregation threshold and time) the last
//! interrupt may wait, too, until the time is over: a network card cannot know whether another packet comes. Here
//! nothing completes that the queue was not given, so a lone request is never delayed, and the time counts only while
//! there is something to merge with.
//!
//! An interrupt that the driver has wanted once is pending, and is sent sooner or later, whatever the driver asks for
//! meanwhile: then no wake-up is lost, and drivers have to put up with one too many (virtio 1.3, 2.7.7.1).

/// How interrupts of a queue are merged: `coalesce` in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coalescing {
    /// Not at all: an interrupt that the driver wants is sent at once, one for each batch.
    #[default]
    Off,
    /// At once, except for those in excess of [`INTERRUPTS_PER_SECOND`].
    Adaptive,
    /// Held until this many requests have completed, or for this long.
    Limits {
        /// Requests; at least 1.
        count: u32,
        /// Microseconds from the first of them on; at least 1.
        time_us: u32,
    },
}

/// The rate of interrupts that adaptive coalescing lets through for a queue, on average. An interrupt is held for the
/// inverse of it at most: 20 µs.
///
/// The idea is that of network adapters, which have such a bound for each vector (Linux, e1000e: InterruptThrottleRate,
/// up to 100,000), and of SPDK's vhost, whose delay grows with the rate of requests. The number is a choice that has
/// yet to be measured; the accounting is that of a token bucket.
pub const INTERRUPTS_PER_SECOND: u64 = 50_000;
/// This many may come at once after a pause: interrupts that are rare on average should not wait because two of them
/// happen to be close together.
const BURST: u64 = 8;

/// When to send a pending interrupt that later requests could be merged with.
#[derive(Debug)]
enum Pace {
    AtOnce,
    Limits {
        count: u32,
        ticks: u64,
        /// When the wait began, if it has.
        since: Option<u64>,
    },
    Adaptive {
        /// Ticks from one to the next.
        interval: u64,
        /// No earlier than this, which is at most one interval from now.
        earliest: u64,
    },
}

/// What happens to the driver's notification of a batch that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchNotice {
    /// The driver does not want to be notified.
    Unwanted,
    /// An interrupt is pending from now on.
    Pending,
    /// The pending one covers this batch, too.
    Merged,
}

/// The interrupt of one queue, from the time that its driver wants it until it is sent. The clock is read only while
/// one is pending.
#[derive(Debug)]
pub(super) struct Coalescer {
    pace: Pace,
    is_pending: bool,
    /// Requests that the pending one covers.
    requests: u32,
}

impl Coalescer {
    /// Time is counted in ticks of a clock with this many per second.
    pub(super) fn new(coalescing: Coalescing, ticks_per_second: u64) -> Self {
        let pace = match coalescing {
            Coalescing::Off => Pace::AtOnce,
            Coalescing::Adaptive => {
                Pace::Adaptive { interval: (ticks_per_second / INTERRUPTS_PER_SECOND).max(1), earliest: 0 }
            }
            Coalescing::Limits { count, time_us } => {
                let ticks = u128::from(time_us) * u128::from(ticks_per_second) / 1_000_000;
                Pace::Limits { count, ticks: ticks as u64, since: None }
            }
        };
        Coalescer { pace, is_pending: false, requests: 0 }
    }

    /// Whether nothing is ever held.
    pub(super) fn is_off(&self) -> bool {
        matches!(self.pace, Pace::AtOnce)
    }

    /// Whether an interrupt is to be sent, now or later.
    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// Records a batch of `requests` that the driver can see from now on, and whether it wants to be notified of it.
    #[inline]
    pub(super) fn note(&mut self, requests: u32, is_wanted: bool) -> BatchNotice {
        if self.is_pending {
            self.requests = self.requests.saturating_add(requests);
            return BatchNotice::Merged;
        }
        if !is_wanted {
            return BatchNotice::Unwanted;
        }
        (self.is_pending, self.requests) = (true, requests);
        BatchNotice::Pending
    }

    /// Whether the pending one is to be sent now. `has_more`: requests that it could still cover are in flight.
    #[inline]
    pub(super) fn is_due(&mut self, has_more: bool, clock: impl Fn() -> u64) -> bool {
        debug_assert!(self.is_pending);
        if !has_more {
            return true;
        }
        match &mut self.pace {
            Pace::AtOnce => true,
            Pace::Limits { count, .. } if self.requests >= *count => true,
            Pace::Limits { ticks, since, .. } => {
                let now = clock();
                // A clock that was set back, as after the host has slept, looks like a very long time.
                now.wrapping_sub(*since.get_or_insert(now)) >= *ticks
            }
            // It is due at `earliest` or later, and also if that is further away than it can be: the clock was set
            // back.
            Pace::Adaptive { interval, earliest } => {
                let now = clock();
                now >= *earliest || *earliest - now > *interval
            }
        }
    }

    /// The caller sends the pending one now, if there is one.
    #[inline]
    pub(super) fn take(&mut self, clock: impl Fn() -> u64) -> bool {
        if !std::mem::take(&mut self.is_pending) {
            return false;
        }
        match &mut self.pace {
            Pace::AtOnce => {}
            Pace::Limits { since, .. } => *since = None,
            Pace::Adaptive { interval, earliest } => {
                // Each uses up one interval. Unused past intervals allow a burst, and what had to be sent early,
                // because nothing else was in flight, does not delay the next one by more than an interval.
                let now = clock();
                *earliest = (*earliest).clamp(now.saturating_sub(BURST * *interval), now).saturating_add(*interval);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A clock of ten ticks in a microsecond, which stands until it is moved.
    const TICKS_PER_SECOND: u64 = 10_000_000;

    fn limits(count: u32, time_us: u32) -> Coalescer {
        Coalescer::new(Coalescing::Limits { count, time_us }, TICKS_PER_SECOND)
    }

    fn no_clock() -> u64 {
        panic!("the clock costs time, and is not needed here")
    }

    #[test]
    fn nothing_is_held_and_no_clock_is_read_where_it_is_off() {
        let mut coalescer = Coalescer::new(Coalescing::Off, TICKS_PER_SECOND);
        assert!(coalescer.is_off());
        for has_more in [false, true] {
            assert_eq!(coalescer.note(1, false), BatchNotice::Unwanted);
            assert!(!coalescer.is_pending());
            assert_eq!(coalescer.note(1, true), BatchNotice::Pending);
            assert!(coalescer.is_due(has_more, no_clock) && coalescer.take(no_clock) && !coalescer.take(no_clock));
        }
    }

    #[test]
    fn one_that_nothing_can_be_merged_with_is_due_at_once() {
        for coalescing in [Coalescing::Off, Coalescing::Adaptive, Coalescing::Limits { count: 32, time_us: 50 }] {
            let mut coalescer = Coalescer::new(coalescing, TICKS_PER_SECOND);
            for now in 0..1000 {
                assert_eq!(coalescer.note(1, true), BatchNotice::Pending);
                assert!(coalescer.is_due(false, no_clock), "{coalescing:?}");
                assert!(coalescer.take(|| now));
            }
        }
    }

    #[test]
    fn the_count_is_that_of_all_requests_since_the_first_that_the_driver_was_not_told_of() {
        let mut coalescer = limits(8, 50);
        assert_eq!(coalescer.note(100, false), BatchNotice::Unwanted, "those before do not count");
        for _ in 0..3 {
            assert_eq!(coalescer.note(3, true), BatchNotice::Pending);
            assert!(!coalescer.is_due(true, || 0));
            // Whether the driver asks once more does not matter.
            assert_eq!(coalescer.note(4, false), BatchNotice::Merged);
            assert!(!coalescer.is_due(true, || 0));
            assert_eq!(coalescer.note(1, true), BatchNotice::Merged);
            assert!(coalescer.is_due(true, no_clock), "8 are there");
            assert!(coalescer.take(no_clock) && !coalescer.is_pending());
        }
    }

    #[test]
    fn the_time_counts_from_the_first_one() {
        let mut coalescer = limits(8, 50);
        for start in [1000, 700_000, u64::MAX - 200] {
            assert_eq!(coalescer.note(1, true), BatchNotice::Pending);
            assert!(!coalescer.is_due(true, || start));
            assert_eq!(coalescer.note(1, true), BatchNotice::Merged);
            assert!(!coalescer.is_due(true, || start.wrapping_add(499)));
            assert!(coalescer.is_due(true, || start.wrapping_add(500)));
            assert!(coalescer.take(no_clock));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        for coalescing in [Coalescing::Adaptive, Coalescing::Limits { count: 8, time_us: 50 }] {
            let mut coalescer = Coalescer::new(coalescing, TICKS_PER_SECOND);
            // Adaptive: as many as make it hold.
            for _ in 0..20 {
                coalescer.note(1, true);
                coalescer.take(|| 1_000_000);
            }
            coalescer.note(1, true);
            assert!(!coalescer.is_due(true, || 1_000_000), "{coalescing:?}");
            assert!(coalescer.is_due(true, || 1000), "{coalescing:?}");
        }
    }

    /// Wants an interrupt every `gap` ticks for a second, while other requests are in flight. Returns how many were
    /// sent, and the longest wait.
    fn adaptive(gap: u64) -> (u64, u64) {
        let mut coalescer = Coalescer::new(Coalescing::Adaptive, TICKS_PER_SECOND);
        let now = Cell::new(5_000_000);
        let (mut sent, mut since, mut longest) = (0, 0, 0);
        while now.get() < 5_000_000 + TICKS_PER_SECOND {
            now.set(now.get() + 1);
            if now.get().is_multiple_of(gap) && coalescer.note(1, true) == BatchNotice::Pending {
                since = now.get();
            }
            if coalescer.is_pending() && coalescer.is_due(true, || now.get()) {
                assert!(coalescer.take(|| now.get()));
                sent += 1;
                longest = longest.max(now.get() - since);
            }
        }
        (sent, longest)
    }

    #[test]
    fn adaptive_holds_nothing_back_below_its_rate_and_keeps_to_the_rate_above() {
        let interval = TICKS_PER_SECOND / INTERRUPTS_PER_SECOND;
        for gap in [10 * interval, 2 * interval, interval] {
            assert_eq!(adaptive(gap), (TICKS_PER_SECOND / gap, 0), "one in {gap} ticks");
        }
        for gap in [interval / 2, interval / 7, 1] {
            let (sent, longest) = adaptive(gap);
            let most = INTERRUPTS_PER_SECOND + BURST + 1;
            assert!((INTERRUPTS_PER_SECOND..=most).contains(&sent), "{sent} with one in {gap} ticks");
            assert!(longest <= interval, "{longest} ticks");
        }
    }

    #[test]
    fn adaptive_lets_a_burst_through_after_a_pause_and_none_that_is_longer() {
        let mut coalescer = Coalescer::new(Coalescing::Adaptive, TICKS_PER_SECOND);
        for pause in 1..5 {
            let now = pause * TICKS_PER_SECOND;
            let mut sent = 0;
            while coalescer.note(1, true) == BatchNotice::Pending && coalescer.is_due(true, || now) {
                assert!(coalescer.take(|| now));
                sent += 1;
            }
            assert_eq!(sent, BURST + 1);
            // Those that must not wait are sent nevertheless, and delay the next one by no more than others do.
            for _ in 0..100 {
                coalescer.take(|| now);
                coalescer.note(1, true);
            }
            let interval = TICKS_PER_SECOND / INTERRUPTS_PER_SECOND;
            assert!(!coalescer.is_due(true, || now + interval - 1) && coalescer.is_due(true, || now + interval));
            coalescer.take(|| now + interval);
        }
    }
}
