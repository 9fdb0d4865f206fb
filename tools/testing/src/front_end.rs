//! A vhost-user front end for tests: the guest and the program that runs it, with a block driver on each queue.
use super::blk::{BlkDriver, Cut, Finished, wait_for};
use pollux_core::{
    device::DeviceModel,
    memory::{GuestMap, GuestMemory},
    transport::vhost_user::{
        Server,
        socket::{Listener, SocketSpec},
    },
};
use pollux_driver::RingKind;
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::Arc,
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{
            FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
            VhostUserVirtioFeatures,
        },
    },
};
use virtio_bindings::{virtio_config::VIRTIO_F_IN_ORDER, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Requests that each driver can have in flight.
const DEPTH: usize = 64;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 128;
const LOG_VRING: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

/// The back end: serves a device on the socket `path`.
pub fn serve(model: impl DeviceModel + 'static, path: &Path) -> Server {
    serve_files(model, path, false)
}

/// As [`serve`], to front ends that may share any file as memory if `any_file`.
pub fn serve_files(model: impl DeviceModel + 'static, path: &Path, any_file: bool) -> Server {
    let spec = SocketSpec { path: path.to_owned(), mode: None, user: None, group: None, any_file };
    Server::start(Box::new(model), Listener::bind(&spec).expect("a socket"), spec.any_file).expect("a server")
}

/// What the guest keeps through every crash of the back end.
#[expect(missing_debug_implementations, reason = "the crate's front end has none")]
pub struct FrontEnd {
    kind: RingKind,
    /// Speaks to the back end.
    pub wire: Frontend,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// A driver for each queue.
    pub drivers: Vec<BlkDriver>,
    /// What each queue is kicked by.
    pub kicks: Vec<EventFd>,
    /// What each queue is signalled by.
    pub calls: Vec<EventFd>,
    /// What each queue reports its failure by.
    pub errors: Vec<EventFd>,
    inflight: Option<(VhostUserInflight, File)>,
    features: u64,
}

impl FrontEnd {
    /// Connects and negotiates all that is offered but packed rings. No ring is started.
    pub fn new(path: &Path, queues: usize) -> Self {
        Self::with_rings(RingKind::Split, path, queues)
    }

    /// As [`new`](Self::new), for the kind of ring named.
    pub fn with_rings(kind: RingKind, path: &Path, queues: usize) -> Self {
        let each = BlkDriver::bytes(QUEUE_SIZE, DEPTH).next_multiple_of(4096);
        // Two regions, with a hole between them and the rest of the file behind.
        let memory = shared_memory(&[(0, each as usize * queues), (1 << 32, 1 << 20)]);
        let event = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("eventfd");
        let events = || (0..queues).map(|_| event()).collect::<Vec<_>>();
        let mut front = FrontEnd {
            kind,
            wire: connect(path, queues),
            drivers: Vec::new(),
            kicks: events(),
            calls: events(),
            errors: events(),
            inflight: None,
            features: 0,
            memory,
        };
        front.negotiate();
        let event_idx = front.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let memory = &front.memory;
        let in_order = front.features & 1 << VIRTIO_F_IN_ORDER != 0;
        front.drivers = (0..queues)
            .map(|index| {
                let mut driver = BlkDriver::new(kind, memory, index as u64 * each, QUEUE_SIZE, DEPTH, event_idx);
                if in_order {
                    driver.ring.set_in_order();
                }
                driver
            })
            .collect();
        front
    }

    fn negotiate(&mut self) {
        self.wire.set_owner().expect("SET_OWNER");
        let offered = self.wire.get_features().expect("GET_FEATURES");
        let protocol = self.wire.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        // BACKEND_REQ is for those who bring a channel.
        self.wire.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
        let other_kind = RingKind::Packed.feature() & !self.kind.feature();
        self.features = offered & !VhostUserVirtioFeatures::LOG_ALL.bits() & !other_kind;
        self.wire.set_features(self.features).expect("SET_FEATURES");
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.wire.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
    }

    /// The features that were accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The regions of the guest's memory, as the memory table has them.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        regions(&self.memory)
    }

    /// Sends the memory table.
    pub fn send_memory(&self) {
        self.wire.set_mem_table(&self.regions()).expect("SET_MEM_TABLE");
    }

    /// Asks for an in-flight region and hands it over.
    pub fn track_inflight(&mut self) {
        let ask = VhostUserInflight::new(0, 0, self.drivers.len() as u16, QUEUE_SIZE);
        let (inflight, file) = self.wire.get_inflight_fd(&ask).expect("GET_INFLIGHT_FD");
        self.wire.set_inflight_fd(&inflight, file.as_raw_fd()).expect("SET_INFLIGHT_FD");
        self.inflight = Some((inflight, file));
    }

    /// Where the rings of a queue are, as the front end sees them.
    pub fn addresses(&self, index: usize, log: bool) -> VringConfigData {
        let config = self.drivers[index].ring.config();
        let user = |address: u64| {
            let region = self.regions()[0];
            region.userspace_addr + address - region.guest_phys_addr
        };
        VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: if log { LOG_VRING } else { 0 },
            desc_table_addr: user(config.descriptors),
            used_ring_addr: user(config.device_area),
            avail_ring_addr: user(config.driver_area),
            log_addr: log.then_some(config.device_area),
        }
    }

    /// Describes a queue, up to and with its kick.
    pub fn set_up(&self, index: usize, base: u32) {
        let wire = &self.wire;
        wire.set_vring_num(index, QUEUE_SIZE).expect("SET_VRING_NUM");
        self.set_base(index, base);
        wire.set_vring_addr(index, &self.addresses(index, false)).expect("SET_VRING_ADDR");
        wire.set_vring_err(index, &self.errors[index]).expect("SET_VRING_ERR");
        wire.set_vring_call(index, &self.calls[index]).expect("SET_VRING_CALL");
        self.send_kick(index);
    }

    /// Says where a queue is to go on. By hand, since the crate's front end knows only the 16 bits of a split ring.
    pub fn set_base(&self, index: usize, base: u32) {
        let words = [FrontendReq::SET_VRING_BASE as u32, 1 | NEED_REPLY, 8, index as u32, base];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // SAFETY: the descriptor is open as long as `self` is borrowed.
        let socket = unsafe { BorrowedFd::borrow_raw(self.wire.as_raw_fd()) };
        rustix::io::write(socket, &bytes).expect("SET_VRING_BASE");
        let mut answer = [0; 20];
        rustix::io::read(socket, &mut answer).expect("an answer");
        assert_eq!(answer[12..], [0; 8], "SET_VRING_BASE");
    }

    /// Sends the kick descriptor of a queue.
    pub fn send_kick(&self, index: usize) {
        self.wire.set_vring_kick(index, &self.kicks[index]).expect("SET_VRING_KICK");
    }

    /// Enables or disables a queue.
    pub fn enable(&mut self, index: usize, enabled: bool) {
        self.wire.set_vring_enable(index, enabled).expect("SET_VRING_ENABLE");
    }

    /// All of it, for all queues.
    pub fn start(&mut self) {
        self.send_memory();
        for index in 0..self.drivers.len() {
            self.set_up(index, self.drivers[index].ring.base(false));
            self.enable(index, true);
        }
    }

    /// After a back end is gone: connects to the next one, and starts it where the last one was, as QEMU does. The base
    /// of each ring is its used index.
    pub fn reconnect(&mut self, path: &Path) {
        self.wire = connect(path, self.drivers.len());
        self.negotiate();
        if let Some((inflight, file)) = &self.inflight {
            self.wire.set_inflight_fd(inflight, file.as_raw_fd()).expect("SET_INFLIGHT_FD");
        }
        self.send_memory();
        for index in 0..self.drivers.len() {
            self.set_up(index, self.drivers[index].ring.base(false));
            self.enable(index, true);
        }
    }

    /// Stops a queue and returns its base.
    pub fn stop(&self, index: usize) -> u32 {
        self.wire.get_vring_base(index).expect("GET_VRING_BASE")
    }

    /// Kicks a queue, wanted or not.
    pub fn kick(&self, index: usize) {
        self.kicks[index].write(1).expect("a kick");
    }

    /// Submits on a queue, with a kick if the device asks for one.
    pub fn submit(&mut self, index: usize, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> u16 {
        let (head, kick) = self.drivers[index].submit(kind, sector, out, cut).expect("room for a request");
        if kick {
            self.kick(index);
        }
        head
    }

    /// Waits for the next finished request of a queue.
    pub fn finish(&mut self, index: usize) -> Finished {
        wait_for("a request", || self.drivers[index].pop())
    }

    /// Does one request from beginning to end.
    pub fn request(&mut self, index: usize, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> Finished {
        self.submit(index, kind, sector, out, cut);
        self.finish(index)
    }

    /// Reads the configuration space.
    pub fn config(&mut self, offset: u32, length: u32) -> Vec<u8> {
        let room = vec![0; length as usize];
        self.wire.get_config(offset, length, VhostUserConfigFlags::WRITABLE, &room).expect("GET_CONFIG").1
    }
}

fn connect(path: &Path, queues: usize) -> Frontend {
    let stream = UnixStream::connect(path).expect("a back end listens");
    Frontend::from_stream(stream, queues as u64)
}

/// Memory in a file that its owner can change at will, as front ends share it, at ranges of guest addresses with their
/// lengths.
pub fn shared_memory(ranges: &[(u64, usize)]) -> GuestMemory {
    let file = Arc::new(File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file in memory")));
    file.set_len(ranges.iter().map(|range| range.1 as u64).sum()).expect("a length");
    let mut offset = 0;
    let parts: Vec<_> = ranges
        .iter()
        .map(|&(address, length)| {
            let start = offset;
            offset += length as u64;
            (GuestAddress(address), length, Some(FileOffset::from_arc(file.clone(), start)))
        })
        .collect();
    GuestMemory::from_map(Arc::new(GuestMap::from_ranges_with_files(parts).expect("guest memory")))
}

/// The regions of guest memory, as a memory table has them.
pub fn regions(memory: &GuestMemory) -> Vec<VhostUserMemoryRegionInfo> {
    let region = |region: &vm_memory::GuestRegionMmap| {
        let file = region.file_offset().expect("memory with a file");
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd() as RawFd,
        }
    };
    memory.map().iter().map(region).collect()
}
