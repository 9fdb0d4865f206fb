//! What a worker does when there is nothing to do.
use super::{
    Deadline, TaskId,
    mailbox::Mailbox,
    meter::Meter,
    pause::Pause,
    roster::Roster,
    sleep::{self, Sleeper},
    window::{LONGEST_NS, SpinWindow},
};
use crate::stats::clock;
use std::{
    fmt,
    os::fd::{AsRawFd, RawFd},
    ptr,
    str::FromStr,
};
use tracing::warn;

/// How a worker rests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Never: it polls for ever. The core is busy, the latency lowest.
    #[default]
    Spin,
    /// It polls for as long as that has paid off lately, at most 50 µs, then asks the drivers for kicks and sleeps
    /// until one comes.
    Adaptive,
    /// It sleeps as soon as there is nothing to do. The core is free; the latency is that of a wake-up.
    Interrupt,
}

impl fmt::Display for IdlePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            IdlePolicy::Spin => "spin",
            IdlePolicy::Adaptive => "adaptive",
            IdlePolicy::Interrupt => "interrupt",
        })
    }
}

impl FromStr for IdlePolicy {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "spin" => Ok(IdlePolicy::Spin),
            "adaptive" => Ok(IdlePolicy::Adaptive),
            "interrupt" => Ok(IdlePolicy::Interrupt),
            _ => Err(()),
        }
    }
}

/// Empty turns between two readings of the clock.
const CLOCK_INTERVAL: u32 = 32;

/// The idle state of one worker.
#[derive(Debug)]
pub(super) struct Idle {
    policy: IdlePolicy,
    pause: Pause,
    scale: clock::Scale,
    empty_turns: u32,
    /// When the first of them was, and when the clock was last read.
    idle_since: u64,
    looked_at: u64,
    window: SpinWindow,
    /// How many nanoseconds to poll before the next attempt to sleep.
    patience_ns: u64,
    /// What to sleep on: made again when tasks come or go.
    fds: Vec<libc::pollfd>,
    /// The owners of these descriptors, the bell first.
    owners: Vec<Owner>,
    stale: bool,
}

/// The owner of a descriptor.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Bell,
    Kick(TaskId),
    Backend(TaskId),
}

impl Idle {
    pub(super) fn new(policy: IdlePolicy) -> Self {
        let window = SpinWindow::new();
        Idle {
            policy,
            pause: Pause::new(),
            scale: clock::Scale::new(),
            empty_turns: 0,
            idle_since: 0,
            looked_at: 0,
            patience_ns: patience(policy, &window),
            window,
            fds: Vec::new(),
            owners: Vec::new(),
            stale: true,
        }
    }

    /// After a turn with work.
    #[inline(always)]
    pub(super) fn worked(&mut self) {
        if self.empty_turns > CLOCK_INTERVAL {
            self.polled_through();
        }
        self.empty_turns = 0;
    }

    /// Polling has paid off: no sleep was needed.
    #[cold]
    fn polled_through(&mut self) {
        if self.policy == IdlePolicy::Adaptive {
            self.window.polled(self.scale.nanoseconds(self.looked_at.wrapping_sub(self.idle_since)));
        }
        self.patience_ns = patience(self.policy, &self.window);
    }

    pub(super) fn tasks_changed(&mut self) {
        self.stale = true;
        self.empty_turns = 0;
    }

    /// After a turn without work.
    #[inline(always)]
    pub(super) fn pause(&self) {
        if self.policy == IdlePolicy::Adaptive && self.empty_turns > CLOCK_INTERVAL {
            self.pause.long();
        } else {
            self.pause.short();
        }
    }

    /// After a turn without work: whether it is time to sleep.
    #[inline(always)]
    pub(super) fn wants_sleep(&mut self) -> bool {
        self.policy != IdlePolicy::Spin && self.has_lost_patience()
    }

    fn has_lost_patience(&mut self) -> bool {
        if self.patience_ns == 0 {
            return true;
        }
        if self.empty_turns.is_multiple_of(CLOCK_INTERVAL) {
            self.looked_at = clock::ticks();
            if self.empty_turns == 0 {
                self.idle_since = self.looked_at;
            } else if self.scale.nanoseconds(self.looked_at.wrapping_sub(self.idle_since)) >= self.patience_ns {
                return true;
            }
        }
        // Wraps to a multiple of the interval, which is not 0: only `worked` restarts the window.
        self.empty_turns = if self.empty_turns == u32::MAX { CLOCK_INTERVAL } else { self.empty_turns + 1 };
        false
    }

    /// Sleeps, unless there is work.
    #[cold]
    pub(super) fn sleep(&mut self, tasks: &mut Roster, mailbox: &Mailbox, meter: &mut Meter) {
        if self.stale {
            self.collect_fds(tasks, mailbox);
        }
        meter.stats.resting.set(tasks.resting() as u64);
        meter.show(tasks);
        let start = clock::ticks();
        let mut attempt =
            Attempt { idle: self, tasks, mailbox, armed: 0, earliest: Deadline::NONE, work: 0, failed: false };
        let has_slept = sleep::sleep(&mut attempt);
        let (work, failed, earliest) = (attempt.work, attempt.failed, attempt.earliest);
        if has_slept {
            self.woken(start, earliest, meter);
        } else {
            meter.stats.sleeps_refused.add(1);
        }
        self.patience_ns = patience(self.policy, &self.window);
        self.empty_turns = 0;
        if !has_slept && work == 0 {
            // There is work, or a task that cannot be waited for: asking all tasks again and again would then cost more
            // than polling for a while. The count makes `worked` end this with the first work.
            (self.idle_since, self.looked_at) = (start, start);
            self.patience_ns = LONGEST_NS;
            self.empty_turns = CLOCK_INTERVAL + 1;
        }
        meter.stats.spin_ticks.set(self.patience_ns * (clock::ticks_per_second() / 1_000_000) / 1000);
        if failed {
            self.policy = IdlePolicy::Spin;
        }
    }

    /// Learns from a sleep, and counts it.
    fn woken(&mut self, start: u64, earliest: Deadline, meter: &Meter) {
        let ticks = clock::ticks().wrapping_sub(start);
        let stats = &meter.stats;
        stats.sleeps.add(1);
        stats.slept_ticks.add(ticks);
        for (_, owner) in self.fds.iter().zip(&self.owners).filter(|(fd, _)| fd.revents != 0) {
            match owner {
                Owner::Bell => &stats.wakes_by_command,
                Owner::Kick(_) => &stats.wakes_by_kick,
                Owner::Backend(_) => &stats.wakes_by_backend,
            }
            .add(1);
        }
        if earliest.is_due() && self.fds.iter().all(|fd| fd.revents == 0) {
            stats.wakes_by_deadline.add(1);
        }
        if self.policy == IdlePolicy::Adaptive {
            self.window.slept(self.patience_ns, self.scale.nanoseconds(ticks));
        }
    }

    fn collect_fds(&mut self, tasks: &Roster, mailbox: &Mailbox) {
        self.fds.clear();
        self.owners.clear();
        let mut add = |fd: RawFd, owner| {
            self.fds.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
            self.owners.push(owner);
        };
        add(mailbox.bell.as_raw_fd(), Owner::Bell);
        for entry in tasks.entries() {
            let fds = entry.task.sleep_fds();
            if let Some(fd) = fds.kick {
                add(fd, Owner::Kick(entry.id));
            }
            if let Some(fd) = fds.wake {
                add(fd, Owner::Backend(entry.id));
            }
        }
        self.stale = false;
    }
}

fn patience(policy: IdlePolicy, window: &SpinWindow) -> u64 {
    if policy == IdlePolicy::Interrupt { 0 } else { window.nanoseconds() }
}

/// One attempt to sleep.
struct Attempt<'w> {
    idle: &'w mut Idle,
    tasks: &'w mut Roster,
    mailbox: &'w Mailbox,
    /// How many tasks are armed: the first ones.
    armed: usize,
    /// When one of them must be polled, whatever happens.
    earliest: Deadline,
    /// What was found to do, and done, while disarming.
    work: usize,
    failed: bool,
}

impl Attempt<'_> {
    /// Disarms and polls the tasks that have been signalled first: requests are waiting there, and with hundreds of
    /// tasks the others take a while.
    fn serve_signs(&mut self) {
        for (fd, owner) in self.idle.fds.iter_mut().zip(&self.idle.owners) {
            let (Owner::Kick(id) | Owner::Backend(id)) = *owner else { continue };
            if fd.revents != 0
                && let Some(index) = self.tasks.position(id)
            {
                let index = self.tasks.wake(index);
                self.tasks.call(index, |entry| entry.task.disarm());
                self.work += self.tasks.poll_one(index);
            }
        }
    }
}

impl Sleeper for Attempt<'_> {
    fn arm(&mut self) -> bool {
        self.idle.fds.iter_mut().for_each(|fd| fd.revents = 0);
        for index in 0..self.tasks.len() {
            self.armed = index + 1;
            let has_work = self.tasks.call(index, |entry| entry.leaving | entry.task.arm());
            let deadline = self.tasks.ask_deadline(index);
            self.earliest = self.earliest.or_earlier(deadline);
            if has_work | deadline.is_due() {
                // It must not wait for its turn among those at rest. It stays among the first ones.
                self.tasks.wake(index);
                return true;
            }
        }
        false
    }

    fn has_commands(&self) -> bool {
        !self.mailbox.commands.is_empty()
    }

    #[allow(unsafe_code)]
    fn wait(&mut self) {
        let remaining = (!self.earliest.is_none()).then(|| self.earliest.remaining());
        let remaining = remaining.map(|remaining| libc::timespec {
            tv_sec: remaining.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(remaining.subsec_nanos()),
        });
        let timeout = remaining.as_ref().map_or(ptr::null(), ptr::from_ref);
        let fds = &mut self.idle.fds;
        // SAFETY: the slice is valid for its length during the call, and so is the time; the mask stays as it is.
        let result = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, ptr::null()) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != std::io::ErrorKind::Interrupted {
                warn!("cannot sleep: {error}; the worker spins from now on");
                self.failed = true;
            }
        }
    }

    fn clear_bell(&mut self) {
        // Empty: a command was seen without the bell.
        let _ = self.mailbox.bell.read();
    }

    fn disarm(&mut self) {
        if self.armed == self.tasks.len() {
            self.serve_signs();
        }
        for index in 0..self.armed {
            self.tasks.call(index, |entry| entry.task.disarm());
        }
    }
}
