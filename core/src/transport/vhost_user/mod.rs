//! virtio over vhost-user: the guest of another program, such as QEMU, reaches a device over a UNIX socket. The program
//! is the front end, this process the back end (vhost-user document,
//! <https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>).
//!
//! | module | holds |
//! |---|---|
//! | [`socket`] | the listening socket: made with its owner and mode, or inherited |
//! | [`socket_activation`] | the sockets that a service manager has opened for this process |
//! | `doorkeeper` | turns clients away from those until their devices can be served |
//! | `wire` | messages on their way over the socket |
//! | `session` | one connection: what was negotiated and set up, and the thread that reads its messages |
//! | `requests` | what each message does |
//! | `failure` | why one was not carried out |
//! | `inflight` | the region that keeps the requests in flight |
//! | `vring` | a virtqueue as the front end describes it |
//! | `table` | the front end's memory |
//! | `told` | what the front end and its guest were told of the configuration space |
//! | `event` | the front end's event descriptors |
//! | `device` | the device, as all connections share it |
//!
//! Messages are handled on threads of their own, one per connection: these may wait for a queue to drain or a front end
//! to answer without disturbing a worker or another device. Workers poll the rings as they do for any transport. A
//! change to a running ring is prepared on the control thread and applied between two turns.
//!
//! A front end is trusted as little as a guest. A message that makes no sense ends its connection. One that cannot be
//! carried out is answered with a failure if the front end asks for a reply (REPLY_ACK), and ends the connection
//! otherwise: the front end would continue in the belief that it was carried out.
mod device;
mod doorkeeper;
#[allow(unsafe_code)]
mod event;
mod failure;
mod inflight;
mod requests;
mod session;
pub mod socket;
#[allow(unsafe_code)] // descriptors that are ours by the environment's word
pub mod socket_activation;
mod table;
mod told;
mod vring;
mod wire;

use crate::{device::DeviceModel, event::watchdog, transport::DeviceHandle};
use device::{Device, SessionId};
use session::Session;
use socket::Listener;
use std::{
    collections::HashMap,
    fmt, io,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    sync::{Arc, Weak},
    thread::{self, JoinHandle},
    time::Duration,
};
use tracing::{error, warn};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

/// How long no connection is accepted after one could not be: most likely there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often to check whether all connections have ended, once they should.
const END_PAUSE: Duration = Duration::from_millis(1);

/// One device served on one socket. `[control]`
pub struct Server {
    device: Arc<Device>,
    path: std::path::PathBuf,
    handle: DeviceHandle,
    /// Rung to stop.
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Server({} at {})", self.device.name(), self.path.display())
    }
}

impl Server {
    /// Serves `model` on `listener` until dropped or stopped. `any_file`: see
    /// [`SocketSpec`](socket::SocketSpec::any_file).
    ///
    /// # Errors
    /// Its thread cannot be started.
    pub fn start(model: Box<dyn DeviceModel>, listener: Listener, any_file: bool) -> io::Result<Self> {
        watchdog::start()?;
        let device = Arc::new(Device::new(model, any_file));
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let path = listener.path().to_owned();
        let place: Weak<Device> = Arc::downgrade(&device);
        let handle = DeviceHandle::new(device.name(), place);
        let reception = Reception {
            device: device.clone(),
            handle: handle.clone(),
            listener,
            bell: bell.clone(),
            sessions: HashMap::new(),
        };
        let epoll = reception.epoll()?;
        let name = format!("vhost-{}", device.name());
        let thread = thread::Builder::new().name(name).spawn(move || reception.run(&epoll))?;
        Ok(Server { device, path, handle, bell, thread: Some(thread) })
    }

    /// Where it is served.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The verbs of the device, for the program that runs it.
    pub fn handle(&self) -> DeviceHandle {
        self.handle.clone()
    }

    /// Stops, and returns the model, which can be served again.
    pub fn into_model(mut self) -> Box<dyn DeviceModel> {
        self.stop();
        let mut device = self.device.clone();
        drop(self);
        loop {
            match Arc::try_unwrap(device) {
                Ok(device) => return device.into_model(),
                // A verb is at work, and has the device locked meanwhile.
                Err(used) => device = used,
            }
            thread::sleep(END_PAUSE);
        }
    }

    /// Begins to drain and flush the device and to close all connections. Returns at once, so that several can stop
    /// together.
    pub fn begin_stop(&self) {
        self.device.stop();
        if let Err(error) = self.bell.write(1) {
            warn!("{}: its server cannot be told to stop: {error}", self.device.name());
        }
    }

    /// Drains and flushes the device, closes all connections, removes the socket. Dropping the server does the same.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.begin_stop();
        if thread.join().is_err() {
            error!("{}: its server panicked; please report this", self.device.name());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Accepts connections.
struct Reception {
    device: Arc<Device>,
    handle: DeviceHandle,
    listener: Listener,
    bell: Arc<EventFd>,
    sessions: HashMap<SessionId, JoinHandle<()>>,
}

impl Reception {
    fn epoll(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let watch = |fd: i32, events| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, fd as u64));
        watch(self.listener.as_raw_fd(), EventSet::IN)?;
        watch(self.bell.as_raw_fd(), EventSet::IN)?;
        if let Some(change) = self.device.change_event() {
            // The thread that asks the backend reads it.
            watch(change, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        }
        Ok(epoll)
    }

    fn run(mut self, epoll: &Epoll) {
        let (listener, bell) = (self.listener.as_raw_fd() as u64, self.bell.as_raw_fd() as u64);
        let mut events = [EpollEvent::default(); 4];
        let mut next: SessionId = 1;
        while !self.device.is_stopping() {
            let count = match epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    error!("{}: cannot wait for front ends: {error}; no more are served", self.device.name());
                    break;
                }
            };
            for event in &events[..count] {
                if self.device.is_stopping() {
                    break;
                }
                if event.data() == listener {
                    self.accept(next);
                    next += 1;
                } else if event.data() != bell {
                    self.handle.refresh();
                }
            }
            self.sessions.retain(|_, thread| !thread.is_finished());
        }
        self.end();
    }

    /// Waits for all connections: each drains what it has running, then closes.
    fn end(&mut self) {
        while self.sessions.values().any(|thread| !thread.is_finished()) {
            thread::sleep(END_PAUSE);
        }
        for (_, thread) in self.sessions.drain() {
            if thread.join().is_err() {
                error!("{}: a connection's thread panicked; please report this", self.device.name());
            }
        }
    }

    fn accept(&mut self, id: SessionId) {
        let opened = self.listener.accept().and_then(|stream| self.open(id, stream));
        let name = self.device.name();
        match opened {
            Ok(Some(thread)) => drop(self.sessions.insert(id, thread)),
            Ok(None) if self.device.may_log() => warn!("{name}: a front end is turned away: too many connections"),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock && self.device.may_log() {
                    warn!("{name}: cannot serve a connection: {error}");
                }
                thread::sleep(ACCEPT_PAUSE);
            }
            Ok(None) => {}
        }
    }

    fn open(&self, id: SessionId, stream: UnixStream) -> io::Result<Option<JoinHandle<()>>> {
        stream.set_nonblocking(false)?;
        let Some(session) = Session::new(id, &self.device, stream)? else { return Ok(None) };
        let name = format!("vhost-{}/{id}", self.device.name());
        thread::Builder::new().name(name).spawn(move || session.run()).map(Some)
    }
}
