//! Interrupts threads that are held up by somebody else's eventfd.
//!
//! A write to an eventfd waits if its counter is full and its file description blocks. A front end shares the description of the
//! events that it hands over, and can make it so at any time, after whatever we have checked. No flag of a call overrides that (for a
//! read, RWF_NOWAIT does). So threads that write to such events say when they begin and end, and whoever waits for something else
//! anyway [looks](interrupt_stuck) now and then whether one has made no progress, and interrupts its call by a signal: it fails with
//! EINTR, and the event is not written to any more.
use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use vmm_sys_util::eventfd::EventFd;

/// The signal. Ignored by default, and used for nothing else here.
const SIGNAL: libc::c_int = libc::SIGURG;

/// A thread that is watched.
#[derive(Debug)]
struct Watched {
    thread: libc::pthread_t,
    /// Odd during a call. Grows by one at its begin and at its end.
    calls: Arc<AtomicU64>,
    /// What the last look found.
    seen: u64,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

thread_local! {
    static CALLS: Arc<AtomicU64> = Arc::default();
}

/// A thread is watched as long as it has this.
#[derive(Debug)]
pub(crate) struct Watch(());

/// Watches the calling thread. Nothing of it is done twice.
pub(crate) fn watch() -> Watch {
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
    lock().push(Watched { thread, calls, seen: 0 });
    Watch(())
}

impl Drop for Watch {
    fn drop(&mut self) {
        let calls = CALLS.with(Clone::clone);
        // With the lock: nobody sends a signal to a thread that has ended.
        lock().retain(|watched| !Arc::ptr_eq(&watched.calls, &calls));
    }
}

fn lock() -> std::sync::MutexGuard<'static, Vec<Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a call that somebody else may hold up.
#[inline]
fn watched<T>(call: impl FnOnce() -> T) -> T {
    // Partner of both: the load in `interrupt_stuck`. A look that comes in between finds the call under way, or finds it at the next.
    let advance = || CALLS.with(|calls| calls.store(calls.load(Ordering::Relaxed) + 1, Ordering::Release));
    advance();
    let result = call();
    advance();
    result
}

/// Signals an event that somebody else may make full and blocking. A thread that is not watched may wait for ever.
///
/// # Errors
/// EINTR: it was, and has held up this thread. EAGAIN: it is full, and says so.
pub(crate) fn signal(event: &EventFd) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // Not by `EventFd::write`, which begins anew when it is interrupted.
    // SAFETY: eight bytes of ours, and a descriptor that is open as long as `event` is borrowed.
    match watched(|| unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) }) {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Interrupts every watched thread that was in a call at the last look, and is in the same one now. `[any thread]`, a few times a
/// second while there are front ends.
pub(crate) fn interrupt_stuck() {
    for watched in lock().iter_mut() {
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
        thread,
        time::{Duration, Instant},
    };

    #[test]
    fn a_call_that_waits_is_interrupted_and_one_that_goes_on_is_not() {
        let (ours, _theirs) = UnixStream::pair().expect("sockets");
        let stuck = thread::spawn(move || {
            let _watch = watch();
            (&ours).write_all(b"before").expect("room");
            watched(|| (&ours).read(&mut [0])).map_err(|error| error.kind())
        });
        let busy = thread::spawn(|| {
            let _watch = watch();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(50) {
                watched(|| ());
            }
        });
        let start = Instant::now();
        while !stuck.is_finished() && start.elapsed() < Duration::from_secs(20) {
            interrupt_stuck();
            thread::yield_now();
        }
        assert_eq!(stuck.join().expect("no panic"), Err(ErrorKind::Interrupted));
        busy.join().expect("no panic");
    }
}
