//! Frees threads that a front end's eventfd holds up.
//!
//! A write to an eventfd waits if its counter is full and its file description blocks. A front end shares the
//! description of the events that it hands over, and can bring this about at any time, whatever we have checked before.
//! No flag of a call overrides that (for a read, RWF_NOWAIT does). So threads that write to such events record when
//! they begin and end, and a dedicated thread checks now and then whether one of them has made no progress, and
//! interrupts its call by a signal: it fails with EINTR. What happens to that front end is decided by
//! [`Conduct`](super::conduct::Conduct).
//!
//! That thread takes no lock that is held while waiting: a control thread may be waiting for the very worker that is
//! held up.
use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use vmm_sys_util::eventfd::EventFd;

/// The signal. Ignored by default, and used for nothing else here.
const SIGNAL: libc::c_int = libc::SIGURG;
/// Time between two checks while there are front ends. A call is interrupted by the second check that finds it.
const INTERVAL: Duration = Duration::from_millis(50);

/// A thread that is watched.
#[derive(Debug)]
struct Watched {
    thread: libc::pthread_t,
    /// Odd during a call. Grows by one at its beginning and at its end.
    calls: Arc<AtomicU64>,
    /// The value at the last check.
    seen: u64,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());
/// Number of front ends, and how the watching thread learns that there is one.
static FRONT_ENDS: Mutex<usize> = Mutex::new(0);
static ARRIVAL: Condvar = Condvar::new();

thread_local! {
    static CALLS: Arc<AtomicU64> = Arc::default();
}

/// A thread is watched as long as it has this.
#[derive(Debug)]
pub(crate) struct WatchGuard(());

/// Watches the calling thread. The handler is installed only once.
pub(crate) fn watch() -> WatchGuard {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        extern "C" fn nothing(_signal: libc::c_int) {}
        // SAFETY: a handler that does nothing, installed without SA_RESTART, so that a call that waits ends with EINTR.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(SIGNAL, &action, std::ptr::null_mut())
        };
        if installed < 0 {
            tracing::warn!("cannot watch over events of front ends: {}", io::Error::last_os_error());
        }
    });
    let calls = CALLS.with(Clone::clone);
    // SAFETY: always the calling thread.
    let thread = unsafe { libc::pthread_self() };
    lock(&WATCHED).push(Watched { thread, calls, seen: 0 });
    WatchGuard(())
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let calls = CALLS.with(Clone::clone);
        // With the lock, so that no signal is sent to a thread that has ended.
        lock(&WATCHED).retain(|watched| !Arc::ptr_eq(&watched.calls, &calls));
    }
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the checking thread, once for the process.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn start() -> io::Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut is_started = lock(&STARTED);
    if !*is_started {
        thread::Builder::new().name("pollux-watchdog".into()).spawn(look_for_ever)?;
        *is_started = true;
    }
    Ok(())
}

/// While one of these exists, there is a front end whose events are written to.
#[derive(Debug)]
pub(crate) struct FrontEndGuard(());

/// Makes the thread check until the guard is dropped.
pub(crate) fn guard_front_end() -> FrontEndGuard {
    *lock(&FRONT_ENDS) += 1;
    ARRIVAL.notify_one();
    FrontEndGuard(())
}

impl Drop for FrontEndGuard {
    fn drop(&mut self) {
        *lock(&FRONT_ENDS) -= 1;
    }
}

fn look_for_ever() {
    loop {
        drop(ARRIVAL.wait_while(lock(&FRONT_ENDS), |count| *count == 0));
        thread::sleep(INTERVAL);
        interrupt_stuck();
    }
}

/// Makes a call that a front end may hold up.
#[inline]
fn watched<T>(call: impl FnOnce() -> T) -> T {
    // Partner of both: the load in `interrupt_stuck`. A check in between finds the call under way, or the next check
    // does.
    let advance = || CALLS.with(|calls| calls.store(calls.load(Ordering::Relaxed) + 1, Ordering::Release));
    advance();
    let result = call();
    advance();
    result
}

/// Signals an event that a front end may make full and blocking. A thread that is not watched may wait for ever.
///
/// # Errors
/// EINTR: it was full and blocking, and has held up this thread. EAGAIN: it is full, but does not block.
pub(crate) fn signal(event: &EventFd) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // Not by `EventFd::write`, which starts over when it is interrupted.
    // SAFETY: eight bytes of ours, and a descriptor that is open as long as `event` is borrowed.
    match watched(|| unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) }) {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Interrupts every watched thread that was in a call at the last check and is still in the same one.
fn interrupt_stuck() {
    for watched in lock(&WATCHED).iter_mut() {
        let calls = watched.calls.load(Ordering::Acquire);
        if calls % 2 == 1 && calls == watched.seen {
            // SAFETY: the thread takes itself off the list, with the lock, before it ends.
            unsafe { libc::pthread_kill(watched.thread, SIGNAL) };
        }
        watched.seen = calls;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{ErrorKind, Read, Write},
        os::unix::net::UnixStream,
        time::Instant,
    };

    #[test]
    fn a_call_that_waits_is_interrupted_and_one_that_goes_on_is_not() {
        let (ours, _theirs) = UnixStream::pair().expect("sockets");
        start().expect("a thread");
        let _front_end = guard_front_end();
        let stuck = thread::spawn(move || {
            let _watch = watch();
            (&ours).write_all(b"before").expect("room");
            watched(|| (&ours).read(&mut [0])).map_err(|error| error.kind())
        });
        let busy = thread::spawn(|| {
            let _watch = watch();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(150) {
                watched(|| ());
            }
        });
        assert_eq!(stuck.join().expect("no panic"), Err(ErrorKind::Interrupted));
        busy.join().expect("no panic");
    }
}
