//! How a front end behaves when its events are signalled, and what follows from it.
//!
//! Writing to an eventfd is the fastest way to signal it, but the write waits if the front end has filled the counter
//! and made the descriptor block. The [watchdog] frees the thread. A front end that has held up a thread once is no
//! longer trusted: its connection ends, and from then on, every event that is handed over for its device is signalled
//! by the kernel, as the completion event of an asynchronous read of no bytes (IOCB_FLAG_RESFD). That cannot wait,
//! since a counter without room just stays full; it takes about three times as long as a write.
use super::watchdog;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::debug;
use vmm_sys_util::eventfd::EventFd;

/// What is known about one front end. Shared by its connection and the queues that signal its events.
#[derive(Debug)]
pub(crate) struct Conduct {
    /// Its events are signalled in the way that cannot block.
    is_distrusted: AtomicBool,
    /// It has held up a thread.
    has_held_up: AtomicBool,
    /// Wakes the thread of its connection, which ends it.
    wake: Arc<EventFd>,
}

impl Conduct {
    /// A front end whose connection is woken by `wake`, an event that is not shared with anyone else. `is_distrusted`:
    /// its device was attacked in this way before.
    pub(crate) fn new(wake: Arc<EventFd>, is_distrusted: bool) -> Self {
        Conduct { is_distrusted: AtomicBool::new(is_distrusted), has_held_up: AtomicBool::new(false), wake }
    }

    /// Whether its connection must end, since it has held up a thread.
    pub(crate) fn has_held_up(&self) -> bool {
        self.has_held_up.load(Ordering::Acquire)
    }

    /// Signals one of its events, from a thread that is watched.
    #[inline]
    pub(crate) fn signal(&self, event: &EventFd) {
        if self.is_distrusted.load(Ordering::Relaxed) {
            signal_without_waiting(event);
        } else if let Err(error) = watchdog::signal(event)
            && error.kind() == io::ErrorKind::Interrupted
        {
            self.held_up();
        }
        // Any other error: the counter is full, so the front end has been told.
    }

    #[cold]
    fn held_up(&self) {
        self.is_distrusted.store(true, Ordering::Relaxed);
        // Partner: the load in `has_held_up`, by the thread that is woken.
        self.has_held_up.store(true, Ordering::Release);
        if let Err(error) = self.wake.write(1) {
            debug!("the connection of a front end that has held up a thread is not woken: {error}");
        }
    }
}

thread_local! {
    static SIGNALLER: Option<Signaller> = Signaller::new();
}

#[cold]
fn signal_without_waiting(event: &EventFd) {
    let is_done = SIGNALLER.with(|signaller| signaller.as_ref().is_some_and(|signaller| signaller.signal(event)));
    if is_done {
        return;
    }
    // Without asynchronous I/O (a kernel or a filter that has none), an attacker has to hit the moment between these
    // two calls, and each hit costs the connection. SAFETY: the descriptor is open as long as `event` is borrowed.
    let file = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let set = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::NONBLOCK));
    if let Err(error) = set.map_err(io::Error::from).and_then(|()| watchdog::signal(event)) {
        debug!("a signal was dropped: {error}");
    }
}

/// A context of asynchronous I/O (io_setup(2)) for one thread, with a file to read no bytes from.
#[derive(Debug)]
struct Signaller {
    context: libc::c_ulong,
    nothing: File,
}

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64);

/// IOCB_CMD_PREAD, which the structure's default is, reads.
const READ: u16 = 0;
/// IOCB_FLAG_RESFD: `event` is signalled at the end.
const SIGNALS: u32 = 1;

impl Signaller {
    fn new() -> Option<Self> {
        let nothing = File::open("/dev/null").ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the call fills in a context of its own.
        match unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } {
            0 => Some(Signaller { context, nothing }),
            _ => None,
        }
    }

    /// Signals an event. Returns whether the kernel has done so.
    fn signal(&self, event: &EventFd) -> bool {
        let request = Iocb {
            opcode: READ,
            file: self.nothing.as_raw_fd() as u32,
            flags: SIGNALS,
            event: event.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let mut requests = [&raw const request];
        // `struct io_event`: four words.
        let mut completion = [0u64; 4];
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the context is ours, and one request of 0 bytes, which the kernel copies.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_mut_ptr()) };
        // SAFETY: room for the one completion that is asked for. It makes room in the context for the next request.
        unsafe {
            let completion: *mut u64 = completion.as_mut_ptr();
            libc::syscall(libc::SYS_io_getevents, self.context, 0, 1, completion, &raw const no_time);
        }
        submitted == 1
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        // SAFETY: our own context, in which nothing is in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        thread,
        time::{Duration, Instant},
    };

    /// An event that is full, and whose writers wait.
    fn full() -> Arc<EventFd> {
        let event = EventFd::new(0).expect("an eventfd");
        event.write(u64::MAX - 1).expect("room");
        Arc::new(event)
    }

    #[test]
    fn a_front_end_that_holds_up_a_thread_does_so_once() {
        watchdog::start().expect("a thread");
        let _guard = watchdog::guard_front_end();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
        let conduct = Arc::new(Conduct::new(wake.clone(), false));
        let (one, events) = (conduct.clone(), [full(), full(), full()]);
        let signalling = thread::spawn(move || {
            let _watch = watchdog::watch();
            events.iter().for_each(|event| one.signal(event));
            let start = Instant::now();
            (0..1000).for_each(|number| one.signal(&events[number % 3]));
            start.elapsed()
        });
        let elapsed = signalling.join().expect("no panic");
        assert!(elapsed < Duration::from_secs(5), "a thousand signals to full events took {elapsed:?}");
        assert!(conduct.has_held_up());
        assert_eq!(wake.read().expect("woken"), 1, "it was held up once");
    }

    #[test]
    fn a_front_end_that_is_not_trusted_still_has_its_signals() {
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
        let conduct = Conduct::new(wake.clone(), true);
        let event = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        (0..1000).for_each(|_| conduct.signal(&event));
        assert_eq!(event.read().expect("signals"), 1000);
        assert!(!conduct.has_held_up());
    }
}
