//! A request to stop, from a signal or from the program, that a machine can wait for.
use crate::terminal;
use libc::c_int;
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering},
    },
    time::Duration,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How long after the first request a signal is a second one. Some senders send two at once, as systemd does with
/// SendSIGHUP, or a wrapper and the terminal; people take longer.
const SECOND_AFTER: Duration = Duration::from_millis(500);

const NOT_REQUESTED: i32 = 0;
const BY_PROGRAM: i32 = -1;

/// The one `Shutdown` that signals go to. Never freed: a handler may be running on any thread.
static FOR_SIGNALS: AtomicPtr<Inner> = AtomicPtr::new(ptr::null_mut());

#[derive(Debug)]
struct Inner {
    event: EventFd,
    /// NOT_REQUESTED, BY_PROGRAM, or the number of the signal.
    reason: AtomicI32,
    /// When the first request came, in nanoseconds of the monotonic clock; 0 before.
    requested_at: AtomicU64,
}

/// A request to stop that many may hold and any may make. It is made once and stays made.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Inner>);

impl Shutdown {
    /// A request that only [`Shutdown::request`] makes.
    pub fn new() -> io::Result<Shutdown> {
        Ok(Shutdown(Arc::new(Inner {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            reason: AtomicI32::new(NOT_REQUESTED),
            requested_at: AtomicU64::new(0),
        })))
    }

    /// A request that SIGTERM, SIGINT, SIGHUP and SIGXCPU make as well; those that are ignored stay ignored. SIGTERM or
    /// SIGINT half a second after the first request, or later, ends the process at once, with status 128 + its number
    /// and the terminal restored. A later call takes the signals over.
    pub fn on_signals() -> io::Result<Shutdown> {
        Shutdown::on(&[libc::SIGTERM, libc::SIGINT, libc::SIGXCPU, libc::SIGHUP])
    }

    /// As [`on_signals`](Self::on_signals), without SIGHUP, which has media measured.
    pub fn on_termination() -> io::Result<Shutdown> {
        Shutdown::on(&[libc::SIGTERM, libc::SIGINT, libc::SIGXCPU])
    }

    fn on(signals: &[c_int]) -> io::Result<Shutdown> {
        let shutdown = Shutdown::new()?;
        let inner = Arc::into_raw(shutdown.0.clone()).cast_mut();
        // Pairs with the load in the handler.
        FOR_SIGNALS.store(inner, Ordering::Release);
        for &signal in signals.iter().filter(|signal| !is_ignored(**signal)) {
            // SAFETY: the structure is whole, and the handler only calls async-signal-safe functions.
            let result = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, ptr::null_mut())
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(shutdown)
    }

    /// Asks for a stop. Any thread, any time.
    pub fn request(&self) {
        self.0.request(BY_PROGRAM);
    }

    /// As [`request`](Self::request), for a signal that came another way than to the handler.
    pub fn request_by(&self, signal: i32) {
        self.0.request(signal);
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.reason.load(Ordering::Acquire) != NOT_REQUESTED
    }

    /// Waits until a stop is asked for.
    pub fn wait(&self) {
        let mut poll = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        while !self.is_requested() {
            // SAFETY: one whole pollfd. An interruption by a signal handler is a reason to look again.
            unsafe { libc::poll(&mut poll, 1, -1) };
        }
    }

    /// The signal that asked for a stop, if it was one.
    pub fn signal(&self) -> Option<i32> {
        match self.0.reason.load(Ordering::Acquire) {
            NOT_REQUESTED | BY_PROGRAM => None,
            signal => Some(signal),
        }
    }
}

impl AsRawFd for Shutdown {
    /// Readable once a stop was asked for, and from then on: it must never be read empty.
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

impl Inner {
    /// The first request counts. Async-signal-safe. Returns how long ago the first was.
    fn request(&self, reason: i32) -> Duration {
        let now = now_nanoseconds();
        // The time decides which request is first, so that no request is ever seen without a time.
        let first = self.requested_at.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.reason.store(reason, Ordering::Release);
        }
        // A write to an eventfd fails only when its counter is full, and then it is readable anyway.
        let _ = self.event.write(1);
        Duration::from_nanos(now.saturating_sub(first.err().unwrap_or(now)))
    }
}

/// Whether a signal is ignored, which may have been set up by the process that started this one.
pub fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeroes is a valid sigaction; the call fills it in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// The monotonic clock, which is never 0. Async-signal-safe, which `Instant::now` does not promise to be.
fn now_nanoseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one whole timespec. The clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    (now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64).max(1)
}

extern "C" fn on_signal(signal: c_int) {
    // SAFETY: the location of errno is always valid; the interrupted code must find its value unchanged.
    let errno = unsafe { &mut *libc::__errno_location() };
    let found = *errno;
    // SAFETY: a pointer in FOR_SIGNALS comes from Arc::into_raw and its reference is never given back.
    let since = unsafe { FOR_SIGNALS.load(Ordering::Acquire).as_ref() }.map(|inner| inner.request(signal));
    // A lost terminal or a service manager sends SIGHUP along with others, and the kernel SIGXCPU each second; they are
    // not meant as a demand to end at once.
    if matches!(signal, libc::SIGTERM | libc::SIGINT) && since.is_some_and(|since| since >= SECOND_AFTER) {
        terminal::restore();
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { libc::_exit(128 + signal) };
    }
    *errno = found;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(shutdown: &Shutdown) -> bool {
        let mut poll = libc::pollfd { fd: shutdown.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one whole pollfd.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn a_request_is_seen_by_every_holder_and_stays() {
        let shutdown = Shutdown::new().expect("made");
        let other = shutdown.clone();
        let waiting = std::thread::spawn({
            let shutdown = shutdown.clone();
            move || shutdown.wait()
        });
        assert!(!readable(&shutdown) && !shutdown.is_requested());
        other.request();
        assert!(shutdown.is_requested() && readable(&shutdown) && readable(&shutdown));
        assert_eq!(shutdown.signal(), None);
        waiting.join().expect("it did not panic");
    }

    #[test]
    fn a_signal_is_a_request_that_knows_its_number() {
        // SAFETY: nothing else in this process wants these. Whoever runs the tests may have them ignored.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
        }
        let shutdown = Shutdown::on_signals().expect("handlers");
        // SAFETY: the handler is installed; raise returns after it ran.
        unsafe { libc::raise(libc::SIGHUP) };
        assert!(readable(&shutdown));
        assert_eq!(shutdown.signal(), Some(libc::SIGHUP));
        // SAFETY: as above. Another one that comes with the first does not end this process.
        unsafe { libc::raise(libc::SIGTERM) };
        assert_eq!(shutdown.signal(), Some(libc::SIGHUP));
    }
}
