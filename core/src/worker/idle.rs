//! What a worker does when there is nothing to do.
use super::{Entry, Mailbox};
use crate::stats::clock;
use std::{fmt, os::fd::AsRawFd, os::fd::RawFd, str::FromStr};
use tracing::warn;

/// How a worker rests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Never: it polls for ever. The core is busy, the latency lowest.
    #[default]
    Spin,
    /// It polls for a while, then asks the drivers for kicks and sleeps until one comes.
    Adaptive,
}

impl fmt::Display for IdlePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            IdlePolicy::Spin => "spin",
            IdlePolicy::Adaptive => "adaptive",
        })
    }
}

impl FromStr for IdlePolicy {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "spin" => Ok(IdlePolicy::Spin),
            "adaptive" => Ok(IdlePolicy::Adaptive),
            _ => Err(()),
        }
    }
}

/// How long an adaptive worker polls without work before it sleeps, in nanoseconds. About what a sleep and its
/// wake-up cost: spinning for as long as a wake-up takes is at most twice as bad as the best choice (the ski rental
/// argument).
const SPIN_NS: u64 = 50_000;
/// Empty turns between two looks at the clock.
const CLOCK_INTERVAL: u32 = 32;

/// The idle state of one worker.
#[derive(Debug)]
pub(super) struct Idle {
    policy: IdlePolicy,
    empty_turns: u32,
    idle_since: u64,
    spin_ticks: u64,
    /// What to sleep on: made anew when tasks come or go.
    fds: Vec<libc::pollfd>,
    stale: bool,
}

impl Idle {
    pub(super) fn new(policy: IdlePolicy) -> Self {
        let spin_ticks = clock::ticks_per_second() / 1_000_000 * SPIN_NS / 1000;
        Idle { policy, empty_turns: 0, idle_since: 0, spin_ticks, fds: Vec::new(), stale: true }
    }

    #[inline(always)]
    pub(super) fn worked(&mut self) {
        self.empty_turns = 0;
    }

    pub(super) fn tasks_changed(&mut self) {
        self.stale = true;
        self.empty_turns = 0;
    }

    #[inline(always)]
    pub(super) fn after_empty_turn(&mut self, tasks: &mut [Entry], mailbox: &Mailbox, current: &mut Option<usize>) {
        // A pause tells the core's other thread to go ahead, and keeps this one from hammering lines that a driver
        // writes.
        std::hint::spin_loop();
        if self.policy == IdlePolicy::Adaptive {
            self.consider_sleep(tasks, mailbox, current);
        }
    }

    fn consider_sleep(&mut self, tasks: &mut [Entry], mailbox: &Mailbox, current: &mut Option<usize>) {
        if self.empty_turns.is_multiple_of(CLOCK_INTERVAL) {
            let now = clock::ticks();
            if self.empty_turns == 0 {
                self.idle_since = now;
            } else if now.wrapping_sub(self.idle_since) >= self.spin_ticks {
                self.sleep(tasks, mailbox, current);
                self.empty_turns = 0;
                return;
            }
        }
        // Wraps to a multiple of the interval, which is not 0: only `worked` starts the window anew.
        self.empty_turns = if self.empty_turns == u32::MAX { CLOCK_INTERVAL } else { self.empty_turns + 1 };
    }

    /// Sleeps, unless there is work. `current` names the task that is being called.
    #[cold]
    fn sleep(&mut self, tasks: &mut [Entry], mailbox: &Mailbox, current: &mut Option<usize>) {
        if self.stale {
            self.collect_fds(tasks, mailbox);
        }
        // Arm all first, then look once more: whatever comes after its look makes a descriptor readable. The bell is
        // rung after each push, so a command is seen here or wakes the poll.
        let mut armed = 0;
        let mut awake = false;
        for (index, entry) in tasks.iter_mut().enumerate() {
            *current = Some(index);
            armed += 1;
            if entry.leaving | entry.task.arm() {
                awake = true;
                break;
            }
        }
        if !awake && mailbox.commands.is_empty() {
            self.wait();
            // Empty: somebody's command was seen without the bell.
            let _ = mailbox.bell.read();
        }
        for (index, entry) in tasks[..armed].iter_mut().enumerate() {
            *current = Some(index);
            entry.task.disarm();
        }
        *current = None;
    }

    fn collect_fds(&mut self, tasks: &[Entry], mailbox: &Mailbox) {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        self.fds.clear();
        self.fds.push(entry(mailbox.bell.as_raw_fd()));
        for task in tasks {
            let fds = task.task.sleep_fds();
            self.fds.extend(fds.kick.into_iter().chain(fds.wake).map(entry));
        }
        self.stale = false;
    }

    /// Sleeps until one of the descriptors is readable.
    #[allow(unsafe_code)]
    fn wait(&mut self) {
        // SAFETY: the slice is valid for its length during the call.
        let result = unsafe { libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, -1) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                warn!("cannot sleep: {error}; the worker spins from now on");
                self.policy = IdlePolicy::Spin;
            }
        }
    }
}
