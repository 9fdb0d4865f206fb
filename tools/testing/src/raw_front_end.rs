//! A vhost-user front end without manners, for tests: it sends any header, payload and descriptors, and reads answers
//! only when it is told to.
use super::{
    blk::{BlkDriver, Cut, Finished, IN, PATIENCE, wait_for},
    front_end::{QUEUE_SIZE, regions, shared_memory},
};
use pollux_core::memory::GuestMemory;
use pollux_driver::RingKind;
use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use std::{
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
};
use vhost::{
    VhostUserMemoryRegionInfo,
    vhost_user::message::{FrontendReq as Request, VhostUserProtocolFeatures as Protocol},
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Header flags of an honest message.
pub const VERSION: u32 = 1;
/// Header flag of a message that wants to be acknowledged.
pub const NEED_REPLY: u32 = 8;
/// VHOST_USER_F_PROTOCOL_FEATURES
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Requests that the driver of a [`RawGuest`] can have in flight.
const DEPTH: usize = 8;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of which request.
    pub code: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A connection to a back end.
#[derive(Debug)]
pub struct RawFrontEnd {
    /// The socket.
    pub stream: UnixStream,
}

impl RawFrontEnd {
    /// Connects, and says nothing. Reads fail the test after [`PATIENCE`].
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("a back end listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        RawFrontEnd { stream }
    }

    /// Connects and negotiates REPLY_ACK, so that [`ask`](Self::ask) has an answer.
    pub fn acknowledged(path: &Path) -> Self {
        let raw = Self::connect(path);
        let features = Protocol::REPLY_ACK | Protocol::MQ | Protocol::CONFIGURE_MEM_SLOTS | Protocol::INFLIGHT_SHMFD;
        raw.send(Request::SET_PROTOCOL_FEATURES, &features.bits().to_ne_bytes(), &[]);
        raw
    }

    /// Sends bytes, with descriptors beside the first one. Whether they could be sent: not if the other side is gone.
    pub fn send_bytes(&self, bytes: &[u8], files: &[RawFd]) -> bool {
        // SAFETY: the caller keeps the descriptors open.
        let files: Vec<_> = files.iter().map(|&file| unsafe { BorrowedFd::borrow_raw(file) }).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(files.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&files)), "room for descriptors");
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
        sent.is_ok_and(|sent| sent == bytes.len() || (&self.stream).write_all(&bytes[sent..]).is_ok())
    }

    /// Sends a message with any header.
    pub fn send_message(&self, code: u32, flags: u32, size: u32, payload: &[u8], files: &[RawFd]) -> bool {
        let header = words32(&[code, flags, size]);
        self.send_bytes(&[&header[..], payload].concat(), files)
    }

    /// Sends a message that wants no acknowledgement.
    pub fn send(&self, request: Request, payload: &[u8], files: &[RawFd]) -> bool {
        self.send_message(request as u32, VERSION, payload.len() as u32, payload, files)
    }

    /// Reads the next answer. `None`: the back end has closed the connection.
    pub fn receive(&self) -> Option<Reply> {
        let mut header = [0; 12];
        self.read(&mut header)?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        assert_eq!(word(4), VERSION | 4, "flags of an answer");
        let mut payload = vec![0; word(8) as usize];
        self.read(&mut payload)?;
        Some(Reply { code: word(0), payload })
    }

    fn read(&self, bytes: &mut [u8]) -> Option<()> {
        match (&self.stream).read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("no answer after {PATIENCE:?}"),
            Err(_) => None,
        }
    }

    /// Sends a message and waits for its acknowledgement: 0 if it was done. `None`: the connection is closed.
    pub fn ask(&self, request: Request, payload: &[u8], files: &[RawFd]) -> Option<u64> {
        let size = payload.len() as u32;
        self.send_message(request as u32, VERSION | NEED_REPLY, size, payload, files);
        let reply = self.receive()?;
        assert_eq!(reply.code, request as u32, "an answer to what was asked");
        reply.payload.try_into().ok().map(u64::from_ne_bytes)
    }

    /// Whether the back end still listens: it answers a question, after whatever it had to answer before.
    pub fn is_alive(&self) -> bool {
        let question = Request::GET_QUEUE_NUM as u32;
        if !self.send_message(question, VERSION, 0, &[], &[]) {
            return false;
        }
        while let Some(reply) = self.receive() {
            if reply.code == question {
                return true;
            }
        }
        false
    }
}

/// Words as they are sent.
pub fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Words as they are sent.
pub fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The payload of SET_VRING_ADDR: descriptor table, available ring, used ring.
pub fn vring_addresses(index: u32, [descriptors, available, used]: [u64; 3]) -> Vec<u8> {
    [words32(&[index, 0]), words64(&[descriptors, used, available, 0])].concat()
}

/// The payload of SET_MEM_TABLE.
pub fn memory_table(regions: &[VhostUserMemoryRegionInfo]) -> Vec<u8> {
    let mut payload = words32(&[regions.len() as u32, 0]);
    regions.iter().for_each(|region| payload.extend(memory_region(region)));
    payload
}

/// The payload of ADD_MEM_REG and REM_MEM_REG.
pub fn single_region(region: &VhostUserMemoryRegionInfo) -> Vec<u8> {
    [words64(&[0]), memory_region(region)].concat()
}

fn memory_region(region: &VhostUserMemoryRegionInfo) -> Vec<u8> {
    words64(&[region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset])
}

/// A message, with its descriptors.
pub type Step = (Request, Vec<u8>, Vec<RawFd>);

/// A guest with one queue, to be set up message by message.
#[derive(Debug)]
pub struct RawGuest {
    /// Its memory: one region for the rings and requests, one more beside it.
    pub memory: GuestMemory,
    /// Its driver.
    pub driver: BlkDriver,
    /// What its queue is kicked by.
    pub kick: EventFd,
    /// What its queue is signalled by.
    pub call: EventFd,
    /// What its queue reports its failure by.
    pub error: EventFd,
}

impl Default for RawGuest {
    fn default() -> Self {
        Self::new()
    }
}

impl RawGuest {
    /// A guest whose driver has done nothing yet.
    pub fn new() -> Self {
        let bytes = BlkDriver::bytes(QUEUE_SIZE, DEPTH).next_multiple_of(4096);
        let memory = shared_memory(&[(0, bytes as usize), (1 << 32, 1 << 20)]);
        let event = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("eventfd");
        let driver = BlkDriver::new(RingKind::Split, &memory, 0, QUEUE_SIZE, DEPTH, false);
        RawGuest { driver, memory, kick: event(), call: event(), error: event() }
    }

    /// The regions of its memory.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        regions(&self.memory)
    }

    /// Where its rings are, in the order of [`vring_addresses`].
    pub fn addresses(&self) -> [u64; 3] {
        let config = self.driver.ring.config();
        let base = self.regions()[0].userspace_addr;
        [base + config.descriptors, base + config.driver_area, base + config.device_area]
    }

    /// What an honest front end sends, from the first message to a queue `index` that runs.
    pub fn steps(&self, index: u32) -> Vec<Step> {
        self.steps_with(index, 1 << VIRTIO_F_VERSION_1)
    }

    /// As [`steps`](Self::steps), for a driver that accepts these features.
    pub fn steps_with(&self, index: u32, features: u64) -> Vec<Step> {
        let features = PROTOCOL_FEATURES | features;
        let table = self.regions();
        let files = table.iter().map(|region| region.mmap_handle).collect();
        let ring = u64::from(index).to_ne_bytes().to_vec();
        let state = |value: u32| words32(&[index, value]);
        vec![
            (Request::SET_OWNER, vec![], vec![]),
            (Request::SET_FEATURES, words64(&[features]), vec![]),
            (Request::SET_MEM_TABLE, memory_table(&table), files),
            (Request::SET_VRING_NUM, state(QUEUE_SIZE.into()), vec![]),
            (Request::SET_VRING_BASE, state(0), vec![]),
            (Request::SET_VRING_ADDR, vring_addresses(index, self.addresses()), vec![]),
            (Request::SET_VRING_ERR, ring.clone(), vec![self.error.as_raw_fd()]),
            (Request::SET_VRING_CALL, ring.clone(), vec![self.call.as_raw_fd()]),
            (Request::SET_VRING_KICK, ring, vec![self.kick.as_raw_fd()]),
            (Request::SET_VRING_ENABLE, state(1), vec![]),
        ]
    }

    /// Sends all of that. Each is acknowledged, the last one when nobody else uses the device any more.
    pub fn start(&self, raw: &RawFrontEnd, index: u32) {
        self.start_with(raw, index, 1 << VIRTIO_F_VERSION_1);
    }

    /// As [`start`](Self::start), for a driver that accepts these features.
    pub fn start_with(&self, raw: &RawFrontEnd, index: u32, features: u64) {
        let mut steps = self.steps_with(index, features);
        let (last, enable, _) = steps.pop().expect("steps");
        for (request, payload, files) in steps {
            assert_eq!(raw.ask(request, &payload, &files), Some(0), "{request:?}");
        }
        wait_for("the device", || (raw.ask(last, &enable, &[])? == 0).then_some(()));
    }

    /// A guest of which the queue `index` is started, behind a front end of its own.
    pub fn started(path: &Path, index: u32) -> (RawFrontEnd, Self) {
        let raw = RawFrontEnd::acknowledged(path);
        let guest = RawGuest::new();
        guest.start(&raw, index);
        (raw, guest)
    }

    /// Does one request from beginning to end.
    pub fn request(&mut self, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> Finished {
        self.driver.submit(kind, sector, out, cut).expect("room");
        self.kick.write(1).expect("a kick");
        wait_for("a request", || self.driver.pop())
    }

    /// Asks for the first sector, and kicks.
    pub fn read_first_sector(&mut self) {
        self.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
        self.kick.write(1).expect("a kick");
    }
}

/// Fills an event of a guest, and makes it block whoever signals it.
pub fn block(event: &EventFd) {
    // What the start has signalled.
    let _ = event.read();
    event.write(u64::MAX - 1).expect("a full counter");
    // SAFETY: the descriptor is open.
    let flags = unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, libc::O_RDWR) };
    assert_eq!(flags, 0);
}
