//! A limit on log lines that others can cause. A guest that breaks and resets its device for ever, or a plugin that it
//! makes fail, must not fill the host's disk.
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::warn;

/// The number of lines allowed initially, and at most.
const LINES: u32 = 100;

/// How many lines may still be logged. Shared by everything that logs on behalf of one guest's device, machine, or
/// plugin. Not for the hot path: it takes a lock.
#[derive(Debug)]
pub struct LogBudget {
    /// What causes the lines, for the message at their end: `the guest`.
    cause: &'static str,
    /// After each of these intervals, this many lines are added.
    interval: Duration,
    refill: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: u32,
    /// When `left` was last refilled.
    since: Instant,
}

impl LogBudget {
    /// For what a guest can cause: one line a minute after the first hundred.
    pub fn of_guest() -> Self {
        Self::new("the guest", Duration::from_secs(60), 1)
    }

    /// For what a vhost-user front end can cause: likewise.
    pub fn of_front_end() -> Self {
        Self::new("the front end", Duration::from_secs(60), 1)
    }

    /// For requests that a medium fails: likewise.
    pub fn of_medium() -> Self {
        Self::new("the medium", Duration::from_secs(60), 1)
    }

    /// For what a plugin logs: a hundred lines a second.
    pub fn of_plugin() -> Self {
        Self::new("the plugin", Duration::from_secs(1), LINES)
    }

    fn new(cause: &'static str, interval: Duration, refill: u32) -> Self {
        let state = State { left: LINES, since: Instant::now() };
        LogBudget { cause, interval, refill, state: Mutex::new(state) }
    }

    /// Whether a line may be logged, under `name`. It is then counted; the last one is followed by a notice about those
    /// that are suppressed.
    pub fn may_log(&self, name: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let intervals = now.duration_since(state.since).as_secs() / self.interval.as_secs();
        if intervals > 0 {
            let refill = intervals.saturating_mul(self.refill.into()).min(LINES.into()) as u32;
            state.left = (state.left + refill).min(LINES);
            state.since = now;
        }
        if state.left == 0 {
            return false;
        }
        state.left -= 1;
        let is_last = state.left == 0;
        // The reader of the log may be slow, and other threads must not wait for it here.
        drop(state);
        if is_last {
            warn!("{name}: {} has caused {LINES} log lines; most of the next ones are left out", self.cause);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, sync::Arc};

    /// A log whose reader is slow: others ask meanwhile whether they may log.
    struct Slow(Arc<LogBudget>);

    impl io::Write for Slow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            assert!(self.0.state.try_lock().is_ok(), "others may ask meanwhile");
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_the_reader_of_the_line_about_lines_left_out() {
        let budget = Arc::new(LogBudget::of_guest());
        let writer = budget.clone();
        let log = tracing_subscriber::fmt().with_writer(move || Slow(writer.clone())).finish();
        let lines =
            tracing::subscriber::with_default(log, || (0..2 * LINES).filter(|_| budget.may_log("disk0")).count());
        assert_eq!(lines, LINES as usize);
    }
}
