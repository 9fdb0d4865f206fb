//! The front end of a vhost-user-blk backend: what QEMU is to it, with a driver in the place of a guest.
mod error;
mod facts;
mod inflight;
mod link;

use crate::{ideal, queue::Queue, slots::Slots};
pub use error::Error;
pub use facts::Facts;
use facts::{CONFIG_BYTES, PROTOCOL_FEATURES, TAKEN};
use inflight::Inflight;
use link::Link;
use pollux_core::{
    memory::GuestMemory,
    ring::{MAX_QUEUE_SIZE, RingKind},
};
use pollux_driver::slots::{CHAIN_LENGTH, EitherRing, Ring};
use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{
            VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures as Protocol,
        },
    },
};
use virtio_bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// Protocol features that are taken if they are offered.
const PROTOCOL_TAKEN: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::INFLIGHT_SHMFD);

/// Guest memory is a multiple of this: SPDK registers memory in such pieces.
const MEMORY_GRAIN: u64 = 2 << 20;

/// Whether requests go through indirect descriptor tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Indirect {
    /// If the device offers it, as Linux does.
    #[default]
    Auto,
    /// Or the device is not measured.
    Always,
    /// Chains in the queue's own table.
    Never,
}

/// What a front end sets up.
#[derive(Clone, Debug)]
pub struct FrontEndOptions {
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of each; `None`: what the depth needs, at least 128.
    pub queue_size: Option<u16>,
    /// Requests that each queue has room for.
    pub depth: u16,
    /// Bytes of data that each request has room for.
    pub block_bytes: u32,
    /// The kind of ring; a device that does not offer packed ones is not measured with them.
    pub ring: RingKind,
    /// Whether requests are to be given back in the order in which they are made; a device that does not offer that is
    /// not measured.
    pub in_order: bool,
    /// Indirect descriptor tables.
    pub indirect: Indirect,
    /// Notification by event index, if the device offers it.
    pub event_idx: bool,
    /// Bytes of huge pages that the memory is made of.
    pub hugepages: Option<u64>,
    /// How long to wait for an answer.
    pub patience: Duration,
}

impl Default for FrontEndOptions {
    fn default() -> Self {
        FrontEndOptions {
            queues: 1,
            queue_size: None,
            depth: 32,
            block_bytes: 4096,
            ring: RingKind::Split,
            in_order: false,
            indirect: Indirect::Auto,
            event_idx: true,
            hugepages: None,
            patience: Duration::from_secs(10),
        }
    }
}

impl FrontEndOptions {
    fn queue_size(&self, indirect: bool) -> Result<u16, Error> {
        let needed = u32::from(self.depth) * if indirect { 1 } else { u32::from(CHAIN_LENGTH) };
        let least = needed.next_power_of_two();
        if least > MAX_QUEUE_SIZE.into() {
            return Err(Error::TooDeep(self.depth.into()));
        }
        match self.queue_size {
            Some(size) if u32::from(size) < needed => {
                let why = if indirect { "" } else { ", three for each request without indirect tables" };
                Err(Error::Depth { depth: self.depth, needed: least, why })
            }
            Some(size) => Ok(size),
            None => Ok((least as u16).max(128)),
        }
    }
}

/// What was agreed on a connection.
struct Agreed {
    features: u64,
    slots: bool,
    facts: Facts,
}

/// Who serves the queues.
#[derive(Debug)]
enum Peer {
    /// A backend behind a socket.
    Backend(Link),
    /// A loop in this process, which goes with the front end.
    Ideal(#[expect(dead_code, reason = "ends when dropped")] Option<ideal::Device>),
}

/// A front end: memory and queues, and the connection to the backend that serves them.
#[derive(Debug)]
pub struct FrontEnd {
    path: PathBuf,
    options: FrontEndOptions,
    peer: Peer,
    features: u64,
    facts: Facts,
    memory: GuestMemory,
    queues: Vec<Queue>,
    inflight: Option<Inflight>,
}

impl Peer {
    /// Sends a message. The ideal device needs none.
    fn say<T>(
        &mut self,
        message: &'static str,
        send: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, Error> {
        match self {
            Peer::Backend(link) => link.say(message, send),
            Peer::Ideal(_) => Err(Error::System { what: message, cause: std::io::ErrorKind::NotConnected.into() }),
        }
    }

    fn is_alive(&self) -> bool {
        match self {
            Peer::Backend(link) => link.is_alive(),
            Peer::Ideal(_) => true,
        }
    }
}

impl FrontEnd {
    /// Connects to the backend that listens on `path`, and starts its queues.
    ///
    /// # Errors
    /// Nobody is there, it does not offer what is needed, or it refuses.
    pub fn connect(path: &Path, options: &FrontEndOptions) -> Result<Self, Error> {
        let mut link = Link::connect(path, options.queues, options.patience)?;
        let agreed = negotiate(&mut link, path, options)?;
        let mut made = Self::with(Peer::Backend(link), path, options, agreed.facts, agreed.features)?;
        made.start(agreed.slots)?;
        Ok(made)
    }

    /// A front end of the ideal device, which polls on `cpu`, or on any.
    ///
    /// # Errors
    /// No memory or thread.
    pub fn ideal(kind: ideal::Kind, cpu: Option<usize>, options: &FrontEndOptions) -> Result<Self, Error> {
        let facts = Facts {
            capacity: ideal::CAPACITY,
            block_bytes: 512,
            queues: options.queues.into(),
            flush: true,
            in_order: options.in_order,
            indirect: options.indirect != Indirect::Never,
            event_idx: options.event_idx,
            packed: options.ring == RingKind::Packed,
            ..Facts::default()
        };
        let mut made = Self::with(Peer::Ideal(None), Path::new("the ideal device"), options, facts, 0)?;
        let rings: Vec<_> = made.queues.iter().map(|queue| queue.ring().config()).collect();
        let device = ideal::Device::start(kind, options.ring, &made.memory, &rings, cpu)
            .map_err(|cause| Error::System { what: "start a thread", cause })?;
        made.peer = Peer::Ideal(Some(device));
        Ok(made)
    }

    /// Memory and queues for a device of these facts.
    fn with(peer: Peer, path: &Path, options: &FrontEndOptions, facts: Facts, features: u64) -> Result<Self, Error> {
        let size = options.queue_size(facts.indirect)?;
        let kind = facts.ring();
        let ring_bytes = EitherRing::bytes(kind, size, options.depth);
        let each = ring_bytes + Slots::bytes(options.depth, options.block_bytes);
        let grain = options.hugepages.unwrap_or(MEMORY_GRAIN).max(MEMORY_GRAIN);
        let bytes = (each * u64::from(options.queues)).next_multiple_of(grain);
        let memory = GuestMemory::create(&[(0, bytes)], options.hugepages)?;
        let queues = (0..u64::from(options.queues))
            .map(|index| {
                let base = index * each;
                let slots = (size, options.depth);
                let mut ring = EitherRing::new(kind, &memory, base, slots, facts.indirect, facts.event_idx);
                if facts.in_order {
                    ring.set_in_order();
                }
                Queue::new(ring, Slots::new(&memory, base + ring_bytes, options.depth, options.block_bytes))
            })
            .collect::<Result<_, _>>()
            .map_err(|cause| Error::System { what: "create an event file descriptor", cause })?;
        let (path, options) = (path.to_owned(), options.clone());
        Ok(FrontEnd { path, options, peer, features, facts, memory, queues, inflight: None })
    }

    /// Connects again after the backend was lost, as QEMU does: the same memory, the same record of requests in flight,
    /// and the queues from their used index on. Requests in flight stay so. Without such a record they are named to the
    /// backend once more, which a guest could not do.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); and the backend must offer what it did before. It may be tried again.
    pub fn reconnect(&mut self, path: &Path) -> Result<(), Error> {
        let mut link = Link::connect(path, self.options.queues, self.options.patience)?;
        let agreed = negotiate(&mut link, path, &self.options)?;
        let changed =
            |what, before: String, after: String| Error::Changed { path: path.to_owned(), what, before, after };
        if agreed.features != self.features {
            let text = |features: u64| format!("{features:#x}");
            return Err(changed("its features", text(self.features), text(agreed.features)));
        }
        if agreed.facts != self.facts {
            return Err(changed("its device", format!("{:?}", self.facts), format!("{:?}", agreed.facts)));
        }
        self.peer = Peer::Backend(link);
        self.path = path.to_owned();
        if self.inflight.is_none() {
            let known = self.queues.iter_mut().all(|queue| queue.ring_mut().replay());
            if !known {
                let feature = "VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD";
                let hint = "without it the requests in flight on a packed ring are lost with the backend";
                return Err(Error::Feature { path: path.to_owned(), feature, hint });
            }
        }
        self.start(agreed.slots)
    }

    /// What the device says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The queues, each for one thread.
    pub fn queues_mut(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// Number of descriptors of a queue.
    pub fn queue_size(&self) -> u16 {
        self.queues.first().map_or(0, |queue| queue.ring().config().size)
    }

    /// Requests that the backend has.
    pub fn in_flight(&self) -> u64 {
        self.queues.iter().map(|queue| u64::from(queue.in_flight())).sum()
    }

    /// For each queue, the heads or buffer IDs of the chains that the backend has taken and not given back, as its
    /// record says, which outlives it. None, if it keeps no record.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn taken(&self) -> io::Result<Vec<Vec<u16>>> {
        self.inflight.as_ref().map_or(Ok(Vec::new()), |record| record.heads(self.facts.ring()))
    }

    /// Whether the backend is still connected.
    pub fn is_alive(&self) -> bool {
        self.peer.is_alive()
    }

    /// The connection and the queues, for different threads.
    pub(crate) fn split(&mut self) -> (impl Fn() -> bool + use<'_>, &mut [Queue]) {
        let peer = &self.peer;
        (move || peer.is_alive(), &mut self.queues)
    }

    /// Hands memory and queues over, in the order of QEMU.
    fn start(&mut self, by_slots: bool) -> Result<(), Error> {
        let size = self.queue_size();
        // First: the record of a packed ring has another layout than that of a split one.
        self.peer.say("SET_FEATURES", |link| link.set_features(self.features))?;
        if self.facts.inflight {
            let inflight = match self.inflight.take() {
                Some(inflight) => inflight,
                None => {
                    let wanted = VhostUserInflight::new(0, 0, self.options.queues, size);
                    let (layout, file) = self.peer.say("GET_INFLIGHT_FD", |link| link.get_inflight_fd(&wanted))?;
                    Inflight { layout, file }
                }
            };
            // Kept whatever happens: it may be handed over again.
            let Inflight { layout, file } = self.inflight.insert(inflight);
            self.peer.say("SET_INFLIGHT_FD", |link| link.set_inflight_fd(layout, file.as_raw_fd()))?;
        }
        self.share_memory(by_slots)?;
        for index in 0..self.queues.len() {
            self.start_queue(index)?;
        }
        for queue in &self.queues {
            // The backend may not look at what came before its start.
            queue.kick_device().map_err(|cause| Error::System { what: "kick", cause })?;
        }
        Ok(())
    }

    fn share_memory(&mut self, by_slots: bool) -> Result<(), Error> {
        let regions: Vec<VhostUserMemoryRegionInfo> = self
            .memory
            .regions()
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest_address,
                memory_size: region.length as u64,
                userspace_addr: region.base as u64,
                mmap_offset: region.file_offset,
                mmap_handle: region.file,
            })
            .collect();
        if !by_slots {
            return self.peer.say("SET_MEM_TABLE", |link| link.set_mem_table(&regions)).map(drop);
        }
        for region in &regions {
            self.peer.say("ADD_MEM_REG", |link| link.add_mem_region(region))?;
        }
        Ok(())
    }

    fn start_queue(&mut self, index: usize) -> Result<(), Error> {
        let FrontEnd { peer, queues, memory, .. } = self;
        let queue = &queues[index];
        let config = queue.ring().config();
        // Rings are named by addresses of this process.
        let mut translator = memory.translator();
        let mut here = |address: u64| translator.translate(address, 1).map_or(0, |pointer| pointer as u64);
        let addresses = VringConfigData {
            queue_max_size: config.size,
            queue_size: config.size,
            flags: 0,
            desc_table_addr: here(config.descriptors),
            used_ring_addr: here(config.device_area),
            avail_ring_addr: here(config.driver_area),
            log_addr: None,
        };
        let (kick, call) = queue.events();
        let base = queue.ring().base();
        peer.say("SET_VRING_NUM", |link| link.set_vring_num(index, config.size))?;
        if let Some(base) = base {
            peer.say("SET_VRING_BASE", |link| link.set_vring_base(index, base))?;
        }
        peer.say("SET_VRING_ADDR", |link| link.set_vring_addr(index, &addresses))?;
        // The kick comes last: a queue starts with it, and may have something to tell at once.
        peer.say("SET_VRING_CALL", |link| link.set_vring_call(index, call))?;
        peer.say("SET_VRING_KICK", |link| link.set_vring_kick(index, kick))?;
        peer.say("SET_VRING_ENABLE", |link| link.set_vring_enable(index, true))
    }
}

impl Drop for FrontEnd {
    /// Stops the queues, as a front end that goes in peace does. A backend that is gone need not answer.
    fn drop(&mut self) {
        for index in 0..self.queues.len() {
            if !self.is_alive() || self.peer.say("GET_VRING_BASE", |link| link.get_vring_base(index)).is_err() {
                return;
            }
        }
    }
}

/// From the first message to what the device says of itself.
fn negotiate(link: &mut Link, path: &Path, options: &FrontEndOptions) -> Result<Agreed, Error> {
    let missing = |feature, hint| Error::Feature { path: path.to_owned(), feature, hint };
    let offered = link.say("GET_FEATURES", |link| link.get_features())?;
    if offered & 1 << VIRTIO_F_VERSION_1 == 0 {
        return Err(missing("VIRTIO_F_VERSION_1", "legacy devices cannot be measured"));
    }
    if offered & 1 << PROTOCOL_FEATURES == 0 {
        return Err(missing("VHOST_USER_F_PROTOCOL_FEATURES", "without these a front end cannot read the capacity"));
    }
    let protocol = link.say("GET_PROTOCOL_FEATURES", |link| link.get_protocol_features())? & PROTOCOL_TAKEN;
    if !protocol.contains(Protocol::CONFIG) {
        return Err(missing("VHOST_USER_PROTOCOL_F_CONFIG", "is this a vhost-user-blk backend?"));
    }
    link.say("SET_PROTOCOL_FEATURES", |link| link.set_protocol_features(protocol))?;
    if protocol.contains(Protocol::REPLY_ACK) {
        // From here on every message is answered, so that a refusal is found where it happens.
        link.say("REPLY_ACK", |link| {
            link.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            Ok(())
        })?;
    }
    let vrings = match protocol.contains(Protocol::MQ) {
        true => link.say("GET_QUEUE_NUM", Frontend::get_queue_num)?,
        false => 1,
    };
    link.say("SET_OWNER", |link| link.set_owner())?;
    let slots = protocol.contains(Protocol::CONFIGURE_MEM_SLOTS)
        && link.say("GET_MAX_MEM_SLOTS", Frontend::get_max_mem_slots)? > 0;
    let buffer = [0; CONFIG_BYTES];
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = link.say("GET_CONFIG", |link| link.get_config(0, CONFIG_BYTES as u32, flags, &buffer))?;
    let features = driver_features(offered, options).map_err(|(feature, hint)| missing(feature, hint))?;
    let queues = facts::config_queues(&config, features).min(vrings);
    if u64::from(options.queues) > queues {
        return Err(Error::Queues { path: path.to_owned(), asked: options.queues, offered: queues });
    }
    let facts = Facts::new(&config, features, queues, protocol.contains(Protocol::INFLIGHT_SHMFD));
    Ok(Agreed { features, slots, facts })
}

/// The features that the driver takes.
///
/// # Errors
/// The one that is wanted and not offered, and what to do.
fn driver_features(offered: u64, options: &FrontEndOptions) -> Result<u64, (&'static str, &'static str)> {
    let mut features = offered & TAKEN;
    let indirect = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    match options.indirect {
        Indirect::Auto => {}
        Indirect::Always if offered & indirect == 0 => {
            return Err(("VIRTIO_F_INDIRECT_DESC", "use --indirect auto or never"));
        }
        Indirect::Always => {}
        Indirect::Never => features &= !indirect,
    }
    if !options.event_idx {
        features &= !(1 << VIRTIO_RING_F_EVENT_IDX);
    }
    if offered & options.ring.feature() != options.ring.feature() {
        return Err(("VIRTIO_F_RING_PACKED", "use --ring split"));
    }
    let in_order = u64::from(options.in_order) << VIRTIO_F_IN_ORDER;
    if offered & in_order != in_order {
        return Err(("VIRTIO_F_IN_ORDER", "leave --in-order out, or set in_order = true on a device of pollux serve"));
    }
    Ok(features | options.ring.feature() | in_order)
}
