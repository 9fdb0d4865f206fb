//! Turns clients away from sockets that are not served yet.
//!
//! A client whose connection is not accepted although the socket listens waits in the middle of its first message. QEMU
//! does so with its big lock held, and its guest stands still. If the connection is closed, QEMU tries again later, and
//! the guest continues meanwhile.
use super::socket::Listener;
use std::{
    collections::HashMap,
    fmt, io,
    os::{fd::AsRawFd, unix::net::UnixListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tracing::{debug, warn};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

/// How long it waits after a client could not be accepted: most likely there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and closes them at once, until dropped. `[control]`
pub(super) struct Doorkeeper {
    /// Rung to stop.
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Doorkeeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Doorkeeper")
    }
}

impl Doorkeeper {
    /// Turns clients away from all of these sockets.
    ///
    /// # Errors
    /// There are no more descriptors, or no thread can be started.
    pub(super) fn start<'l>(listeners: impl Iterator<Item = &'l Listener>) -> io::Result<Self> {
        let (epoll, bell) = (Epoll::new()?, Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?));
        let mut doors = HashMap::new();
        for listener in listeners {
            let door = listener.try_clone()?;
            doors.insert(door.as_raw_fd() as u64, door);
        }
        let watch =
            |number: u64| epoll.ctl(ControlOperation::Add, number as i32, EpollEvent::new(EventSet::IN, number));
        watch(bell.as_raw_fd() as u64)?;
        doors.keys().try_for_each(|&door| watch(door))?;
        let stop = bell.clone();
        let thread = thread::Builder::new()
            .name("pollux-doorkeeper".into())
            .spawn(move || turn_away(&epoll, &doors, stop.as_raw_fd() as u64))?;
        Ok(Doorkeeper { bell, thread: Some(thread) })
    }
}

impl Drop for Doorkeeper {
    fn drop(&mut self) {
        if let Err(error) = self.bell.write(1) {
            warn!("clients are still turned away: {error}");
            return;
        }
        // A panic has been reported by its hook, and is the end of the thread all the same.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn turn_away(epoll: &Epoll, doors: &HashMap<u64, UnixListener>, stop: u64) {
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return warn!("clients are not turned away while devices start: {error}"),
        };
        for event in &events[..count] {
            if event.data() == stop {
                return;
            }
            // Nothing else accepts, and a UNIX socket keeps clients that have gone in its queue: this does not wait.
            if let Some(Err(error)) = doors.get(&event.data()).map(UnixListener::accept) {
                debug!("a client is not turned away: {error}");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}
