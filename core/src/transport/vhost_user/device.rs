//! The device behind a socket, as all connections to it share it.
use super::told::{CONFIG_BYTES, Space};
use crate::{
    device::{ActiveQueue, ConfigFields, DeviceModel, ToldConfig},
    event::InterruptState,
    log_budget::LogBudget,
    memory::GuestMemory,
    queue::{Position, QueueUpdate},
    ring::QueueConfig,
    transport::{features::TRANSPORT_FEATURES, handle::Place, served::Served},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, getrlimit},
};
use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};
use vmm_sys_util::eventfd::EventFd;

/// How long a front end waits for the requests of one that has gone, and how often it checks.
const LEAVING_MAX: Duration = Duration::from_secs(10);
const LEAVING_LOOK: Duration = Duration::from_millis(20);

/// Most connections to one device at a time: one that uses it, and others that query it or wait to take over.
const SESSIONS_MAX: usize = 16;
/// Connections to all devices of the process. Each has a thread and four descriptors.
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Most of those: they may use a quarter of all descriptors. Determined once.
fn connections_max() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from(descriptors / 16).unwrap_or(usize::MAX)
    })
}

/// Identifies a connection; never used again.
pub(super) type SessionId = u64;

/// The device behind its socket.
pub(super) struct Device {
    name: String,
    features: u64,
    queue_count: usize,
    config_fields: ConfigFields,
    used: Mutex<Used>,
    /// Rung when a connection gives the device up.
    released: Condvar,
    interrupts: Arc<InterruptState>,
    watchers: Mutex<Vec<Watcher>>,
    lines: LogBudget,
    stopping: AtomicBool,
    /// A front end has held up a worker: events of those that follow are signalled with care.
    was_held_up: AtomicBool,
    /// Whether a front end may share a file that is more than memory.
    any_file: bool,
}

/// The device, and which connection uses it.
struct Used {
    served: Served,
    /// The connection whose rings run. Another may query the device and prepare, as the destination of a migration
    /// does, and take over when this one's rings are stopped.
    owner: Option<SessionId>,
    /// The connection whose driver's features and configuration are set in the model.
    configured_by: Option<SessionId>,
    /// The connection whose guest's memory the backend knows, also while no ring runs.
    memory_of: Option<SessionId>,
}

/// What a driver has set before its rings run.
#[derive(Clone, Debug, Default)]
pub(super) struct DriverState {
    /// The features that it accepted.
    pub(super) features: u64,
    /// The configuration space that it was told.
    pub(super) told: ToldConfig,
    /// What it has written to the configuration space on this connection, and where.
    pub(super) config_writes: Vec<(u64, Vec<u8>)>,
}

/// How a connection's thread is reached.
struct Watcher {
    id: SessionId,
    wake: Arc<EventFd>,
    stream: UnixStream,
}

/// What a connection can do with the device while its rings run.
pub(super) struct Owned<'d> {
    used: MutexGuard<'d, Used>,
}

impl Device {
    pub(super) fn new(model: Box<dyn DeviceModel>, any_file: bool) -> Self {
        let (name, config_fields) = (model.name().into(), model.config_fields());
        let (features, queue_count) = (model.features() | TRANSPORT_FEATURES, model.queue_sizes().len());
        let served = Served::new(model);
        Device {
            name,
            features,
            queue_count,
            config_fields,
            interrupts: served.interrupts().clone(),
            used: Mutex::new(Used { served, owner: None, configured_by: None, memory_of: None }),
            released: Condvar::new(),
            watchers: Mutex::default(),
            lines: LogBudget::of_front_end(),
            stopping: AtomicBool::new(false),
            was_held_up: AtomicBool::new(false),
            any_file,
        }
    }

    /// The model, when no connection is left.
    pub(super) fn into_model(self) -> Box<dyn DeviceModel> {
        self.used.into_inner().unwrap_or_else(PoisonError::into_inner).served.into_model()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Features of the device and of virtio, without those of vhost-user.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    pub(super) fn queue_count(&self) -> usize {
        self.queue_count
    }

    pub(super) fn any_file(&self) -> bool {
        self.any_file
    }

    pub(super) fn interrupts(&self) -> &InterruptState {
        &self.interrupts
    }

    /// Whether a line may be logged that a front end has caused.
    pub(super) fn may_log(&self) -> bool {
        self.lines.may_log(&self.name)
    }

    /// Whether a front end has held up a worker.
    pub(super) fn was_held_up(&self) -> bool {
        self.was_held_up.load(Ordering::Relaxed)
    }

    /// A front end has held up a worker.
    pub(super) fn note_held_up(&self) {
        self.was_held_up.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which fields of the configuration space change.
    pub(super) fn config_fields(&self) -> ConfigFields {
        self.config_fields.clone()
    }

    /// The configuration space as it is.
    pub(super) fn config(&self) -> Space {
        let mut space = [0; CONFIG_BYTES];
        self.lock().served.model().read_config(0, &mut space);
        space
    }

    /// The driver of connection `id` writes to the configuration space. As with [`configure`](Self::configure), that is
    /// deferred while another connection uses the device.
    pub(super) fn write_config(&self, id: SessionId, state: &DriverState, offset: u64, data: &[u8]) {
        let mut used = self.lock();
        if used.owner.is_none_or(|owner| owner == id) {
            if used.configured_by != Some(id) {
                used.configure(id, state);
            }
            used.served.model_mut().write_config(offset, data, state.features);
        }
    }

    /// The driver of connection `id` has accepted features. While another connection uses the device, that is deferred
    /// until its own start.
    pub(super) fn configure(&self, id: SessionId, state: &DriverState) {
        let mut used = self.lock();
        if used.owner.is_none_or(|owner| owner == id) {
            used.configure(id, state);
        }
    }

    /// The device, if connection `id` uses it.
    pub(super) fn owned(&self, id: SessionId) -> Option<Owned<'_>> {
        let used = self.lock();
        (used.owner == Some(id)).then_some(Owned { used })
    }

    /// The device for connection `id`, which starts to use it unless it does already.
    ///
    /// # Errors
    /// Another connection uses it, or its backend refuses the memory.
    pub(super) fn acquire(
        &self,
        id: SessionId,
        memory: &GuestMemory,
        state: &DriverState,
        wake: &Arc<EventFd>,
    ) -> Result<Owned<'_>, String> {
        let mut used = self.free(id)?;
        match used.owner {
            Some(_) => {}
            None => {
                self.interrupts.reset();
                self.interrupts.set_config_event(Some(wake.clone()));
                let features = state.features;
                // Once more: only now is it known where its rings start.
                let remarks = used.configure(id, state);
                self.remark(&remarks);
                used.memory_of = Some(id);
                used.served.activate(memory.clone(), features)?;
                used.owner = Some(id);
                if tracing::enabled!(tracing::Level::INFO) && self.may_log() {
                    info!("{}: started by the front end, features {features:#x}", self.name);
                }
            }
        }
        Ok(Owned { used })
    }

    /// Logs what the front end's driver or its operator should know.
    pub(super) fn remark(&self, remarks: &[String]) {
        for remark in remarks {
            if self.may_log() {
                warn!("{}: {remark}", self.name);
            }
        }
    }

    /// The device, as soon as no other connection than `id` uses it. If the front end of that one has gone, this waits
    /// for its requests to end.
    fn free(&self, id: SessionId) -> Result<MutexGuard<'_, Used>, String> {
        let start = Instant::now();
        let mut used = self.lock();
        while let Some(owner) = used.owner.filter(|owner| *owner != id) {
            if !self.has_gone(owner) || start.elapsed() > LEAVING_MAX || self.is_stopping() {
                return Err("another front end is using the device; stop that one first".into());
            }
            used = self.released.wait_timeout(used, LEAVING_LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(used)
    }

    /// Whether the front end of a connection has closed it.
    fn has_gone(&self, id: SessionId) -> bool {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watcher) = watchers.iter().find(|watcher| watcher.id == id) else { return true };
        let mut sockets = [PollFd::new(&watcher.stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut sockets, Some(&now)).is_ok() && sockets[0].revents().contains(PollFlags::HUP)
    }

    /// Connection `id` does not use the device any more: its queues are drained and flushed.
    pub(super) fn release(&self, id: SessionId) {
        if let Some(mut owned) = self.owned(id) {
            owned.used.served.deactivate();
            owned.used.owner = None;
            self.released.notify_all();
            self.interrupts.set_config_event(None);
            if tracing::enabled!(tracing::Level::INFO) && self.may_log() {
                info!("{}: stopped", self.name);
            }
        }
    }

    /// Connection `id` ends: what remains of its guest's memory is given up. The memory of a front end that only stops
    /// its rings is kept, since a backend may take long to prepare it.
    pub(super) fn leave(&self, id: SessionId) {
        self.release(id);
        let mut used = self.lock();
        if used.memory_of == Some(id) {
            used.memory_of = None;
            used.served.model_mut().forget_memory();
        }
        // What its driver has set does not concern the next one.
        if used.configured_by == Some(id) && used.owner.is_none() {
            used.configured_by = None;
            used.served.model_mut().reset();
        }
    }

    /// The event by which the backend asks for a refresh.
    pub(super) fn change_event(&self) -> Option<std::os::fd::RawFd> {
        self.lock().served.model().change_event()
    }

    /// Adds a connection. `false`: there are too many already, or the server stops.
    pub(super) fn watch(&self, id: SessionId, wake: &Arc<EventFd>, stream: UnixStream) -> bool {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        // The first connection of a device is accepted however many the others have.
        let most = if watchers.is_empty() { usize::MAX } else { connections_max() };
        let is_full = watchers.len() >= SESSIONS_MAX || CONNECTIONS.load(Ordering::Relaxed) >= most;
        // Partner: `stop` sets it before it takes the same lock.
        if is_full || self.is_stopping() {
            return false;
        }
        CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        watchers.push(Watcher { id, wake: wake.clone(), stream });
        true
    }

    pub(super) fn unwatch(&self, id: SessionId) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = watchers.len();
        watchers.retain(|watcher| watcher.id != id);
        CONNECTIONS.fetch_sub(before - watchers.len(), Ordering::Relaxed);
    }

    fn wake_all(&self) {
        for watcher in &*self.watchers.lock().unwrap_or_else(PoisonError::into_inner) {
            if let Err(error) = watcher.wake.write(1) {
                debug!("{}: connection {} was not woken: {error}", self.name, watcher.id);
            }
        }
    }

    /// All connections end. The front ends are not told before the rings are drained: until then, nobody else may look
    /// at them.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for watcher in &*self.watchers.lock().unwrap_or_else(PoisonError::into_inner) {
            // This ends only our own reads, for a thread that waits for the rest of a message. There is nothing to end
            // if the socket is closed.
            let _ = watcher.stream.shutdown(Shutdown::Read);
        }
        self.wake_all();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

impl Place for Device {
    fn with(&self, action: &mut dyn FnMut(&mut Served)) {
        action(&mut self.lock().served);
    }

    /// Tells every connection.
    fn config_changed(&self) {
        self.wake_all();
    }

    fn set_memory(&self, _memory: &GuestMemory) -> Result<(), String> {
        Err("its memory comes from its front end".into())
    }
}

impl Used {
    fn configure(&mut self, id: SessionId, state: &DriverState) -> Vec<String> {
        self.configured_by = Some(id);
        let model = self.served.model_mut();
        model.features_accepted(state.features);
        let remarks = model.config_was_told(state.features, &state.told);
        for (offset, data) in &state.config_writes {
            model.write_config(*offset, data, state.features);
        }
        remarks
    }
}

impl Owned<'_> {
    /// The driver turns out to have started elsewhere. Returns which parts of what it was told there cannot be kept.
    pub(super) fn config_was_told(&mut self, features: u64, told: &ToldConfig) -> Vec<String> {
        self.used.served.model_mut().config_was_told(features, told)
    }

    pub(super) fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), String> {
        self.used.served.start_queue(queue)
    }

    pub(super) fn stop_queue(&mut self, index: usize) -> Option<Position> {
        self.used.served.stop_queue(index)
    }

    pub(super) fn update_queue(&mut self, index: usize, update: QueueUpdate) {
        self.used.served.update_queue(index, update);
    }

    pub(super) fn set_memory(
        &mut self,
        memory: &GuestMemory,
        config: &dyn Fn(usize) -> QueueConfig,
    ) -> Result<(), String> {
        self.used.served.set_memory(memory, config)
    }

    /// Releases what no request needs any more; returns whether more remains to be released.
    pub(super) fn release_memory(&mut self) -> bool {
        self.used.served.model_mut().release_memory()
    }
}
