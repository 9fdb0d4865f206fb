//! Requests that fail: a log line for each episode instead of one for each request.
use crate::log_budget::LogBudget;
use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tracing::error;

/// A failure after this time without one of its kind begins a new episode.
const QUIET: Duration = Duration::from_secs(60);
/// How often the log counts failures while they continue.
const INTERVAL: Duration = Duration::from_secs(10);
/// Number of kinds of failures that are told apart at a time.
const EPISODES: usize = 16;

/// Singular and plural of each operation, by its number in `block/1`.
const OPERATIONS: [[&str; 2]; 6] = [
    ["a read", "reads"],
    ["a write", "writes"],
    ["a flush", "flushes"],
    ["a discard", "discards"],
    ["a write-zeroes", "write-zeroes"],
    ["a request", "requests"],
];
const FLUSH: usize = 2;
pub(super) const OTHER: usize = OPERATIONS.len() - 1;

/// Why requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The medium reports it, by a positive errno.
    Errno(i32),
    /// It did not reach the medium, since the device refused it.
    Refused(&'static str),
}

impl Cause {
    fn words(self) -> String {
        match self {
            Cause::Errno(errno) => io::Error::from_raw_os_error(errno).to_string(),
            Cause::Refused(reason) => reason.into(),
        }
    }

    fn verb(self) -> [&'static str; 2] {
        match self {
            Cause::Errno(_) => ["failed", "failed"],
            Cause::Refused(_) => ["was refused", "were refused"],
        }
    }
}

/// Failures of one kind, one soon after the other.
#[derive(Debug)]
struct Episode {
    operation: usize,
    cause: Cause,
    /// Failures that no line has counted yet.
    unreported: u64,
    last_offset: u64,
    last_failure: Instant,
    last_line: Instant,
    /// The least time to the next line. It grows, so that failures far apart do not get a line each.
    gap: Duration,
}

impl Episode {
    fn new(operation: usize, offset: u64, cause: Cause, now: Instant) -> Self {
        Episode {
            operation,
            cause,
            unreported: 0,
            last_offset: offset,
            last_failure: now,
            last_line: now,
            gap: Duration::ZERO,
        }
    }

    fn place(&self) -> String {
        if self.operation == FLUSH { String::new() } else { format!(" at offset {}", self.last_offset) }
    }

    fn first_line(&self) -> String {
        let (operation, verb) = (OPERATIONS[self.operation][0], self.cause.verb()[0]);
        format!("{operation}{} {verb}: {}", self.place(), self.cause.words())
    }

    /// A line about the failures that have not been counted, if there are any.
    fn next_line(&mut self, now: Instant) -> Option<String> {
        let count = std::mem::take(&mut self.unreported);
        if count == 0 {
            return None;
        }
        self.last_line = now;
        self.gap = (self.gap * 2).clamp(Duration::from_secs(1), QUIET);
        let ([one, more], verb) = (OPERATIONS[self.operation], self.cause.verb());
        let (noun, verb) = match count {
            1 => (one.trim_start_matches("a "), verb[0]),
            _ => (more, verb[1]),
        };
        let last = match (self.operation, count) {
            (FLUSH, _) => String::new(),
            (_, 1) => format!(",{}", self.place()),
            _ => format!(", the last{}", self.place()),
        };
        Some(format!("{count} more {noun} {verb} since{last}: {}", self.cause.words()))
    }
}

/// What has been logged about the failures of a device, shared by its queues. Only for failures: it takes a lock.
///
/// Failures of the medium and refusals by the device are kept apart, so that refused requests do not use up the lines
/// for the medium.
#[derive(Debug)]
pub(super) struct FailureLog {
    failed: Book,
    refused: Book,
}

impl FailureLog {
    pub(super) fn new(device: &str) -> Self {
        FailureLog {
            failed: Book::new(device, LogBudget::of_medium()),
            refused: Book::new(device, LogBudget::of_guest()),
        }
    }

    /// A request has failed.
    #[cold]
    pub(super) fn note(&self, operation: usize, offset: u64, cause: Cause) {
        let book = match cause {
            Cause::Errno(_) => &self.failed,
            Cause::Refused(_) => &self.refused,
        };
        book.write(book.lines_for(operation.min(OTHER), offset, cause, Instant::now()));
    }

    /// Logs the number of failures that have not been logged yet, if that is due or `is_end`. For moments in which
    /// there is nothing to do.
    #[inline]
    pub(super) fn report(&self, is_end: bool) {
        for book in [&self.failed, &self.refused] {
            if book.has_unreported.load(Ordering::Relaxed) {
                book.report(is_end);
            }
        }
    }
}

/// The episodes that have one budget of lines.
#[derive(Debug)]
struct Book {
    device: String,
    lines: LogBudget,
    episodes: Mutex<Vec<Episode>>,
    /// Whether any of them has failures that no line has counted.
    has_unreported: AtomicBool,
}

impl Book {
    fn new(device: &str, lines: LogBudget) -> Self {
        Book { device: device.into(), lines, episodes: Mutex::default(), has_unreported: AtomicBool::new(false) }
    }

    #[cold]
    fn report(&self, is_end: bool) {
        let now = Instant::now();
        let mut episodes = self.episodes.lock().unwrap_or_else(PoisonError::into_inner);
        let due = episodes.iter_mut().filter(|episode| is_end || now - episode.last_line >= episode.gap);
        let lines = due.filter_map(|episode| episode.next_line(now)).collect();
        self.has_unreported.store(episodes.iter().any(|episode| episode.unreported > 0), Ordering::Relaxed);
        drop(episodes);
        self.write(lines);
    }

    /// Records a failure. Returns the line to be logged, so that it is written without the lock: the reader of the log
    /// may be slow.
    fn lines_for(&self, operation: usize, offset: u64, cause: Cause, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let mut episodes = self.episodes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = episodes.iter().position(|episode| (episode.operation, episode.cause) == (operation, cause));
        if let Some(at) = known
            && now - episodes[at].last_failure < QUIET
        {
            let episode = &mut episodes[at];
            (episode.last_failure, episode.last_offset) = (now, offset);
            episode.unreported += 1;
            if now - episode.last_line >= INTERVAL.max(episode.gap) {
                lines.extend(episode.next_line(now));
            }
            self.has_unreported.store(true, Ordering::Relaxed);
            return lines;
        }
        let is_full = episodes.len() == EPISODES;
        let oldest = || episodes.iter().enumerate().min_by_key(|(_, episode)| episode.last_failure).map(|(at, _)| at);
        if let Some(at) = known.or_else(|| oldest().filter(|_| is_full)) {
            lines.extend(episodes.swap_remove(at).next_line(now));
        }
        let episode = Episode::new(operation, offset, cause, now);
        lines.push(episode.first_line());
        episodes.push(episode);
        lines
    }

    fn write(&self, lines: Vec<String>) {
        for line in lines {
            if self.lines.may_log(&self.device) {
                error!("{}: {line}", self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 0;
    const WRITE: usize = 1;
    const NO_SPACE: Cause = Cause::Errno(libc::ENOSPC);

    /// A log, and what it says at a time in seconds.
    struct Said(Book, Instant);

    impl Said {
        fn new() -> Self {
            Said(Book::new("blk0", LogBudget::of_medium()), Instant::now())
        }

        fn fails(&self, operation: usize, offset: u64, cause: Cause, at: f64) -> Vec<String> {
            self.0.lines_for(operation, offset, cause, self.1 + Duration::from_secs_f64(at))
        }
    }

    #[test]
    fn an_episode_has_a_line_at_once_and_a_count_later() {
        let said = Said::new();
        let first = "a write at offset 4096 failed: No space left on device (os error 28)";
        assert_eq!(said.fails(WRITE, 4096, NO_SPACE, 0.0), [first]);
        for second in 1..10 {
            assert!(said.fails(WRITE, 8192, NO_SPACE, second.into()).is_empty());
        }
        let more = "10 more writes failed since, the last at offset 512: No space left on device (os error 28)";
        assert_eq!(said.fails(WRITE, 512, NO_SPACE, 10.0), [more]);
        assert!(said.fails(WRITE, 512, NO_SPACE, 19.0).is_empty());
        let one = "1 more write failed since, at offset 512: No space left on device (os error 28)";
        assert_eq!(said.fails(WRITE, 1024, NO_SPACE, 80.0), [one, &first.replace("4096", "1024")], "a new episode");
    }

    #[test]
    fn kinds_are_told_apart_and_only_so_many() {
        let said = Said::new();
        assert_eq!(said.fails(READ, 0, NO_SPACE, 0.0).len(), 1);
        assert_eq!(said.fails(WRITE, 0, NO_SPACE, 0.0).len(), 1);
        assert_eq!(said.fails(FLUSH, 0, Cause::Errno(5), 0.0), ["a flush failed: Input/output error (os error 5)"]);
        let refused = said.fails(READ, 0, Cause::Refused("it ends beyond the capacity"), 0.0);
        assert_eq!(refused, ["a read at offset 0 was refused: it ends beyond the capacity"]);
        for errno in 40..140 {
            said.fails(READ, 0, Cause::Errno(errno), 1.0);
        }
        assert_eq!(said.0.episodes.lock().expect("no panic").len(), EPISODES);
    }

    #[test]
    fn thousands_of_failures_a_second_are_few_lines() {
        let said = Said::new();
        let lines = (0..600_000).map(|index| said.fails(WRITE, 0, NO_SPACE, f64::from(index) / 1000.0).len());
        assert!((5..30).contains(&lines.sum::<usize>()));
    }

    #[test]
    fn what_is_left_over_is_told_at_the_end() {
        let log = FailureLog::new("blk0");
        log.note(WRITE, 0, NO_SPACE);
        log.note(WRITE, 0, NO_SPACE);
        assert!(log.failed.has_unreported.load(Ordering::Relaxed));
        log.report(false);
        assert!(!log.failed.has_unreported.load(Ordering::Relaxed), "nobody has anything to do: it is told at once");
        log.note(WRITE, 0, NO_SPACE);
        log.report(false);
        assert!(log.failed.has_unreported.load(Ordering::Relaxed), "but not again and again");
        log.report(true);
        assert!(!log.failed.has_unreported.load(Ordering::Relaxed));
    }

    #[test]
    fn a_guest_that_is_refused_leaves_the_mediums_lines_alone() {
        let log = FailureLog::new("blk0");
        for offset in 0..1000 {
            log.note(offset % OTHER, 0, Cause::Refused(["it is one thing", "it is another"][offset / OTHER % 2]));
        }
        assert_eq!(log.failed.episodes.lock().expect("no panic").len(), 0);
        let lines = (0..1000).filter(|_| log.failed.lines.may_log("blk0")).count();
        assert_eq!(lines, 100);
    }
}
