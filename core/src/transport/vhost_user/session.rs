//! One connection of a front end: what it has negotiated and set up, and the thread that reads its messages.
//!
//! The messages themselves are in [`requests`](super::requests).
use super::{
    device::{Device, DriverState, Owned, SessionId},
    failure::{Failure, malformed, refused},
    inflight::InflightRegion,
    table::MemoryTable,
    told::Told,
    vring::{Kick, Vring},
    wire::{self, WireError},
};
use crate::{
    device::{ActiveQueue, ToldConfig},
    event::{Conduct, InterruptState, Notifier, watchdog},
    memory::{DirtyLog, ForeignMapping, GuestMemory, Quota, foreign::ForeignError, guard},
    queue::QueueUpdate,
    ring::{RingKind, RingStart},
    transport::features::check_front_end_features,
};
use std::{
    fs::File,
    io,
    mem::take,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};
use tracing::{debug, info, warn};
use vhost::vhost_user::message::{BackendReq, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

/// How often to check whether old memory maps can be released, while there are any, in milliseconds.
const RELEASE_INTERVAL: i32 = 20;
/// How long a front end must be silent, in milliseconds, before it is told of what has changed while it was away: it
/// may not be able to answer in the middle of its start.
const NOTICE_SILENCE: i32 = 20;

/// Most changes of the memory table while a request is in flight that was made before the first of them.
const RETIRING_MAX: u32 = 64;

/// One connection.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) device: Arc<Device>,
    pub(super) stream: UnixStream,
    /// Rung by the device, its workers and the server.
    wake: Arc<EventFd>,
    /// Watches how long the signalling of the front end's events takes.
    conduct: Arc<Conduct>,
    /// As accepted, with the bits of vhost-user.
    pub(super) features: u64,
    pub(super) protocol_features: VhostUserProtocolFeatures,
    /// The device status register, which the front end keeps (virtio 1.3, 2.1).
    pub(super) status: u8,
    /// What it may map.
    quota: Quota,
    pub(super) table: MemoryTable,
    memory: Option<GuestMemory>,
    pub(super) vrings: Vec<Vring>,
    pub(super) inflight: Option<InflightRegion>,
    pub(super) log: Option<DirtyLog>,
    /// Where our own requests go.
    pub(super) backend_channel: Option<UnixStream>,
    /// What it and its driver were told of the configuration space.
    pub(super) told: Told,
    /// What was written to the configuration space, and where.
    pub(super) config_writes: Vec<(u64, Vec<u8>)>,
    config_generation: u32,
    has_failed: bool,
    /// Changes of the memory table since the last time that no old map was in use.
    retiring: u32,
}

impl Session {
    /// A connection that was just made. `None`: there is no room for it.
    pub(super) fn new(id: SessionId, device: &Arc<Device>, stream: UnixStream) -> io::Result<Option<Self>> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        if !device.watch(id, &wake, stream.try_clone()?) {
            return Ok(None);
        }
        Ok(Some(Session {
            id,
            device: device.clone(),
            stream,
            conduct: Arc::new(Conduct::new(wake.clone(), device.was_held_up())),
            wake,
            features: 0,
            protocol_features: VhostUserProtocolFeatures::empty(),
            status: 0,
            quota: Quota::of_front_end(),
            table: MemoryTable::default(),
            memory: None,
            vrings: (0..device.queue_count()).map(|_| Vring::default()).collect(),
            inflight: None,
            log: None,
            backend_channel: None,
            told: Told::new(device.config_fields()),
            config_writes: Vec::new(),
            config_generation: device.interrupts().config_generation(),
            has_failed: false,
            retiring: 0,
        }))
    }

    /// Serves the front end until it goes, or the server stops. Then the rings are drained and flushed, and only after
    /// that is the connection closed.
    pub(super) fn run(self) {
        let _watch = (watchdog::watch(), watchdog::guard_front_end());
        // Dropped before the watch ends: while the rings are drained, workers still signal this front end's events.
        let mut session = self;
        debug!("{}: connection {} is open", session.name(), session.id);
        match session.listen() {
            Ok(()) => {}
            Err(Failure::Wire(WireError::Closed)) => debug!("{}: connection {} is closed", session.name(), session.id),
            Err(Failure::Malformed(reason) | Failure::Refused(reason)) if session.device.may_log() => {
                warn!("{}: the connection to a front end is given up: {reason}", session.name());
            }
            Err(Failure::Wire(error)) if session.device.may_log() => {
                warn!("{}: the connection to a front end is given up: {error}", session.name());
            }
            Err(_) => {}
        }
    }

    pub(super) fn name(&self) -> &str {
        self.device.name()
    }

    fn listen(&mut self) -> Result<(), Failure> {
        let failed = |error: io::Error| refused(format!("cannot wait for messages: {error}"));
        let epoll = Epoll::new().map_err(failed)?;
        let watch = |fd: i32, events: EventSet| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, fd as u64)).map_err(failed)
        };
        let (stream, wake) = (self.stream.as_raw_fd(), self.wake.as_raw_fd());
        watch(stream, EventSet::IN)?;
        watch(wake, EventSet::IN)?;
        // Many threads wait for this event: it is never read, and each notices its edges.
        watch(guard::damage_event().map_err(failed)?.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        let mut events = [EpollEvent::default(); 4];
        loop {
            let timeout = match self.retiring {
                0 if self.owes_notice() => NOTICE_SILENCE,
                0 => -1,
                _ => RELEASE_INTERVAL,
            };
            let count = match epoll.wait(timeout, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(failed)?,
            };
            if self.device.is_stopping() {
                return Ok(());
            }
            if count == 0 && self.owes_notice() {
                self.told.notice_sent();
                self.send_config_change();
            }
            let is_ready = |fd: i32| events[..count].iter().any(|event| event.data() == fd as u64);
            if is_ready(wake) {
                self.answer_wake()?;
            }
            if self.table.is_damaged() {
                return Err(refused("it took memory away that rings or buffers were in"));
            }
            if is_ready(stream) {
                self.answer_message()?;
            }
            self.release_memory();
        }
    }

    /// Something about the device has changed: its configuration space, or whether it works at all. Or the front end
    /// has held up a worker, which ends the connection.
    fn answer_wake(&mut self) -> Result<(), Failure> {
        // EAGAIN: an earlier look has dealt with it.
        let _ = self.wake.read();
        if self.conduct.has_held_up() {
            self.device.note_held_up();
            return Err(refused(
                "it has held up the thread that signalled one of its events, whose counter was full and whose \
                 descriptor blocked; make event descriptors non-blocking",
            ));
        }
        let device = self.device.clone();
        let interrupts: &InterruptState = device.interrupts();
        let generation = interrupts.config_generation();
        if std::mem::replace(&mut self.config_generation, generation) != generation {
            self.send_config_change();
        }
        let has_failed = interrupts.has_failed() && self.owned().is_some();
        if has_failed && !self.has_failed {
            self.vrings.iter().for_each(|vring| self.signal_error(vring));
        }
        self.has_failed = has_failed;
        Ok(())
    }

    /// Whether the front end can be told of something that its driver has missed; the driver needs running rings for
    /// that.
    fn owes_notice(&self) -> bool {
        self.told.is_notice_due() && self.backend_channel.is_some() && self.is_running()
    }

    fn send_config_change(&self) {
        if let Some(channel) = &self.backend_channel
            && let Err(error) = wire::request(channel, BackendReq::CONFIG_CHANGE_MSG as u32)
        {
            debug!("{}: the front end cannot be told of a changed configuration: {error}", self.name());
        }
    }

    /// Reads one message and answers it.
    fn answer_message(&mut self) -> Result<(), Failure> {
        let message = wire::receive(&self.stream)?;
        let (code, name, needs_reply) = (message.code, message.name(), message.needs_reply());
        let acknowledges = needs_reply && self.protocol_features.contains(VhostUserProtocolFeatures::REPLY_ACK);
        tracing::trace!("{}: connection {}: {name}", self.name(), self.id);
        let result = match self.request(message) {
            // Its own answer tells the result.
            Ok(Some(reply)) => return self.reply(code, &reply.payload, reply.file.as_ref()),
            Ok(None) => self.start_rings(),
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) if acknowledges => self.reply(code, &0u64.to_ne_bytes(), None),
            Ok(()) => Ok(()),
            Err(Failure::Refused(reason)) if acknowledges => {
                if self.device.may_log() {
                    warn!("{}: {name} of the front end is refused: {reason}", self.name());
                }
                self.reply(code, &1u64.to_ne_bytes(), None)
            }
            Err(Failure::Refused(reason)) => Err(refused(format!("{name}: {reason}"))),
            Err(Failure::Malformed(reason)) => Err(malformed(format!("{name}: {reason}"))),
            Err(failure) => Err(failure),
        }
    }

    fn reply(&self, code: u32, payload: &[u8], file: Option<&File>) -> Result<(), Failure> {
        Ok(wire::reply(&self.stream, code, payload, file, &|| self.device.is_stopping())?)
    }

    /// Maps a file of the front end's.
    pub(super) fn map(&self, file: &File, offset: u64, length: u64) -> Result<Arc<ForeignMapping>, ForeignError> {
        ForeignMapping::map_for(&self.quota, self.device.any_file(), file, offset, length).map(Arc::new)
    }

    /// The features of virtio that were accepted.
    pub(super) fn driver_features(&self) -> u64 {
        let own = VhostUserVirtioFeatures::LOG_ALL | VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        self.features & !own.bits()
    }

    /// What the model must know about the driver.
    pub(super) fn driver_state(&self) -> DriverState {
        let beginning = self.ring_kind().beginning();
        let has_moved = |vring: &&Vring| vring.base.is_some_and(|base| base != beginning);
        let is_strange = self.vrings.iter().filter(has_moved).any(|vring| !vring.has_run);
        let told =
            self.told.belief(self.vrings.iter().any(|vring| has_moved(&vring)), is_strange, &self.device.config());
        DriverState { features: self.driver_features(), told, config_writes: self.config_writes.clone() }
    }

    /// The kind of ring that its driver uses.
    pub(super) fn ring_kind(&self) -> RingKind {
        RingKind::of_features(self.features)
    }

    pub(super) fn has_feature(&self, feature: VhostUserVirtioFeatures) -> bool {
        self.features & feature.bits() != 0
    }

    pub(super) fn owned(&self) -> Option<Owned<'_>> {
        self.device.owned(self.id)
    }

    /// Starts every ring that has become ready. A message that asks for an answer makes none ready.
    fn start_rings(&mut self) -> Result<(), Failure> {
        // Without the protocol features there is no message to enable a ring with.
        let by_default = !self.has_feature(VhostUserVirtioFeatures::PROTOCOL_FEATURES);
        let mut result = Ok(());
        for index in 0..self.vrings.len() {
            if self.memory.is_some()
                && self.vrings[index].is_ready(by_default)
                && let Err(reason) = self.start_ring(index)
            {
                self.vrings[index].failed = true;
                self.signal_error(&self.vrings[index]);
                self.release_idle();
                // The first reason is as good as any; the others are tried nevertheless.
                result = result.and(Err(refused(format!("queue {index} cannot start: {reason}"))));
            }
        }
        result
    }

    fn start_ring(&mut self, index: usize) -> Result<(), String> {
        let features = self.driver_features();
        check_front_end_features(features, self.device.features()).map_err(|error| format!("its driver {error}"))?;
        let memory = self.memory.clone().ok_or("there is no memory")?;
        let vring = &self.vrings[index];
        let start = RingStart {
            base: vring.base,
            resumed: true,
            inflight: self.inflight.as_ref().map(|region| region.place(index)).transpose()?,
            log: self.active_log(),
            log_used: vring.log_used,
        };
        let kick = match &vring.kick {
            Kick::Event(event) => Some(event.clone()),
            Kick::Unset | Kick::Polled => None,
        };
        let notifier = self.notifier(&vring.call);
        let queue = ActiveQueue { index, config: vring.config(&self.table), start, kick, notifier };
        let (begins, state) = (!self.is_running(), self.driver_state());
        let is_unknown = state.told == ToldConfig::Unknown;
        let mut owned = self.device.acquire(self.id, &memory, &state, &self.wake)?;
        if !begins && is_unknown {
            self.device.remark(&owned.config_was_told(features, &state.told));
        }
        owned.start_queue(queue)?;
        drop(owned);
        (self.vrings[index].running, self.vrings[index].has_run) = (true, true);
        if begins || is_unknown {
            self.told.started(&state.told, &self.device.config());
        }
        debug!("{}: queue {index} is started, features {features:#x}", self.name());
        Ok(())
    }

    /// Stops a ring once all of its requests have completed. Its position becomes its base.
    pub(super) fn stop_ring(&mut self, index: usize) {
        if take(&mut self.vrings[index].running)
            && let Some(mut owned) = self.device.owned(self.id)
            && let Some(position) = owned.stop_queue(index)
        {
            drop(owned);
            self.vrings[index].base = Some(position.base);
            debug!("{}: queue {index} is stopped at {:#x}", self.name(), position.base);
        }
        self.release_idle();
    }

    pub(super) fn stop_rings(&mut self) {
        (0..self.vrings.len()).for_each(|index| self.stop_ring(index));
    }

    /// Gives the device up when none of its rings runs.
    fn release_idle(&mut self) {
        if !self.is_running() {
            self.device.release(self.id);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.vrings.iter().any(|vring| vring.running)
    }

    /// The driver starts over: all rings are stopped and disabled, and its settings are forgotten.
    pub(super) fn reset_device(&mut self) {
        self.stop_rings();
        for vring in &mut self.vrings {
            (vring.kick, vring.enabled, vring.failed, vring.base) = (Kick::Unset, false, false, None);
        }
        // The cache mode stays. A front end such as QEMU also resets to pause, and shows its guest the mode that was
        // last set, not the one that we would go back to.
        self.status = 0;
        if tracing::enabled!(tracing::Level::INFO) && self.device.may_log() {
            info!("{}: reset", self.name());
        }
    }

    /// Switches to another memory table, also while rings run.
    pub(super) fn adopt(&mut self, table: MemoryTable) -> Result<(), Failure> {
        let memory = table.memory().map_err(refused)?;
        self.bound_retiring()?;
        let vrings = &self.vrings;
        let changed = self.owned().map(|mut owned| owned.set_memory(&memory, &|index| vrings[index].config(&table)));
        if let Some(changed) = changed {
            changed.map_err(refused)?;
            self.retiring += 1;
            self.release_memory();
        }
        self.table = table;
        self.memory = Some(memory);
        // Rings that were outside the memory before may lie in it now.
        self.vrings.iter_mut().for_each(|vring| vring.failed = false);
        Ok(())
    }

    /// Releases old memory maps that no request needs any more.
    fn release_memory(&mut self) {
        if self.retiring > 0 && !self.owned().is_some_and(|mut owned| owned.release_memory()) {
            self.retiring = 0;
        }
    }

    /// Waits for requests in flight when too many memory maps are kept for them: a front end could otherwise pile up
    /// mappings, of which a process can only have a limited number, each with a descriptor.
    fn bound_retiring(&mut self) -> Result<(), Failure> {
        while self.retiring >= RETIRING_MAX {
            if self.device.is_stopping() {
                return Err(refused("the server stops"));
            }
            thread::sleep(Duration::from_millis(RELEASE_INTERVAL as u64));
            self.release_memory();
        }
        Ok(())
    }

    /// The log, if pages are to be logged.
    fn active_log(&self) -> Option<DirtyLog> {
        self.log.clone().filter(|_| self.has_feature(VhostUserVirtioFeatures::LOG_ALL))
    }

    /// Tells running rings where to log.
    pub(super) fn update_logs(&mut self) {
        let log = self.active_log();
        if let Some(mut owned) = self.owned() {
            for (index, vring) in self.vrings.iter().enumerate().filter(|(_, vring)| vring.running) {
                owned.update_queue(index, QueueUpdate::Log(log.clone(), vring.log_used));
            }
        }
    }

    /// Changes a setting of a ring, if it runs.
    pub(super) fn update_ring(&self, index: usize, update: QueueUpdate) {
        if let Some(mut owned) = self.owned().filter(|_| self.vrings[index].running) {
            owned.update_queue(index, update);
        }
    }

    /// How the driver is told of used buffers.
    pub(super) fn notifier(&self, call: &Option<Arc<EventFd>>) -> Notifier {
        let foreign = |call: &Arc<EventFd>| Notifier::foreign(call.clone(), self.conduct.clone());
        call.as_ref().map_or_else(Notifier::silent, foreign)
    }

    /// Tells the front end that a ring does not work (SET_VRING_ERR).
    fn signal_error(&self, vring: &Vring) {
        if let Some(event) = &vring.error {
            self.conduct.signal(event);
        }
    }

    /// The ring of that index.
    pub(super) fn vring(&mut self, index: u32) -> Result<&mut Vring, Failure> {
        let count = self.vrings.len();
        let vring = self.vrings.get_mut(index as usize);
        vring.ok_or_else(|| refused(format!("there is no queue {index}: the device has {count}")))
    }

    /// As [`vring`](Self::vring), for what only a stopped ring takes.
    pub(super) fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, Failure> {
        let vring = self.vring(index)?;
        if vring.running { Err(refused(format!("queue {index} is running"))) } else { Ok(vring) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_rings();
        self.device.leave(self.id);
        self.device.unwatch(self.id);
    }
}
