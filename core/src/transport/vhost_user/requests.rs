//! What each request of the front end does (vhost-user document, "Front-end message types").
use super::{
    event::event,
    failure::{Failure, malformed, refused},
    inflight::InflightRegion,
    session::Session,
    table::{SLOTS_MAX, regions_of},
    told::{CONFIG_BYTES, RECORD_BYTES},
    vring::Kick,
    wire::Message,
};
use crate::{
    memory::{DirtyLog, sealed_file},
    queue::QueueUpdate,
    ring::{MAX_QUEUE_SIZE, RingKind},
    transport::STATUS_NEEDS_RESET,
};
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserInflight, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVirtioFeatures, VhostUserVringAddr,
    VhostUserVringState,
};
use vm_memory::ByteValued;

/// Most fields of the configuration space that we remember as written: more than any device has.
const CONFIG_WRITES_MAX: usize = 16;
/// In the payload of a request with a descriptor for a ring: no descriptor comes with it.
const NO_FILE: u64 = 1 << 8;

/// The protocol features that we support.
fn protocol_features() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as F;
    F::MQ
        | F::LOG_SHMFD
        | F::REPLY_ACK
        | F::BACKEND_REQ
        | F::CONFIG
        | F::INFLIGHT_SHMFD
        | F::RESET_DEVICE
        | F::CONFIGURE_MEM_SLOTS
        | F::STATUS
}

/// The answer to a request that has one.
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
    pub(super) file: Option<File>,
}

type Answer = Result<Option<Reply>, Failure>;

fn number(value: u64) -> Answer {
    Ok(Some(Reply { payload: value.to_ne_bytes().into(), file: None }))
}

fn bytes(body: &impl ByteValued, rest: &[u8], file: Option<File>) -> Answer {
    Ok(Some(Reply { payload: [body.as_slice(), rest].concat(), file }))
}

impl Session {
    /// Carries out a message.
    pub(super) fn request(&mut self, message: Message) -> Answer {
        use FrontendReq as Request;
        let Some(request) = message.request() else {
            return Err(refused("this request is not known"));
        };
        match request {
            Request::GET_FEATURES => {
                let own = VhostUserVirtioFeatures::LOG_ALL | VhostUserVirtioFeatures::PROTOCOL_FEATURES;
                return number(self.device.features() | own.bits());
            }
            Request::GET_PROTOCOL_FEATURES => return number(protocol_features().bits()),
            Request::GET_QUEUE_NUM => return number(self.vrings.len() as u64),
            Request::GET_MAX_MEM_SLOTS => return number(SLOTS_MAX as u64),
            Request::GET_STATUS => return self.get_status(),
            Request::GET_CONFIG => return self.get_config(&message),
            Request::GET_VRING_BASE => return self.get_vring_base(&message),
            Request::GET_INFLIGHT_FD => return self.get_inflight(&message),
            Request::SET_LOG_BASE => return self.set_log_base(message),
            Request::SET_FEATURES => self.set_features(&message)?,
            Request::SET_PROTOCOL_FEATURES => self.set_protocol_features(&message)?,
            Request::SET_OWNER => {}
            Request::RESET_OWNER => self.disable_rings(),
            Request::RESET_DEVICE => self.reset_device(),
            Request::SET_STATUS => self.set_status(&message)?,
            Request::SET_CONFIG => self.set_config(&message)?,
            Request::SET_MEM_TABLE => self.set_mem_table(message)?,
            Request::ADD_MEM_REG => self.add_mem_region(message)?,
            Request::REM_MEM_REG => self.remove_mem_region(&message)?,
            // Errors of logging have nowhere to go but our own log: the descriptor is closed.
            Request::SET_LOG_FD => {}
            Request::SET_VRING_NUM => self.set_vring_num(&message)?,
            Request::SET_VRING_ADDR => self.set_vring_addr(&message)?,
            Request::SET_VRING_BASE => self.set_vring_base(&message)?,
            Request::SET_VRING_KICK => self.set_vring_kick(message)?,
            Request::SET_VRING_CALL => self.set_vring_call(message)?,
            Request::SET_VRING_ERR => self.set_vring_err(message)?,
            Request::SET_VRING_ENABLE => self.set_vring_enable(&message)?,
            Request::SET_INFLIGHT_FD => self.set_inflight(message)?,
            Request::SET_BACKEND_REQ_FD => self.set_backend_channel(message)?,
            _ => return Err(refused("this device does not offer that")),
        }
        Ok(None)
    }

    fn set_features(&mut self, message: &Message) -> Result<(), Failure> {
        let features = message.body::<VhostUserU64>().map_err(malformed)?.value;
        let old = self.driver_features();
        let own = VhostUserVirtioFeatures::LOG_ALL | VhostUserVirtioFeatures::PROTOCOL_FEATURES;
        let new = features & !own.bits();
        let unknown = new & !self.device.features();
        if unknown != 0 {
            return Err(refused(format!("its driver accepted features that were not offered: {unknown:#x}")));
        }
        if new != old && self.is_running() {
            return Err(refused("features change while rings run"));
        }
        self.features = features;
        if new != old {
            self.device.configure(self.id, &self.driver_state());
        }
        self.update_logs();
        Ok(())
    }

    fn set_protocol_features(&mut self, message: &Message) -> Result<(), Failure> {
        let bits = message.body::<VhostUserU64>().map_err(malformed)?.value;
        let unknown = bits & !protocol_features().bits();
        if unknown != 0 {
            return Err(refused(format!("protocol features {unknown:#x} were not offered")));
        }
        self.protocol_features = VhostUserProtocolFeatures::from_bits_truncate(bits);
        Ok(())
    }

    /// What RESET_OWNER is used for today (it is deprecated).
    fn disable_rings(&mut self) {
        self.stop_rings();
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
    }

    fn set_status(&mut self, message: &Message) -> Result<(), Failure> {
        match message.body::<VhostUserU64>().map_err(malformed)?.value {
            // A reset (virtio 1.3, 2.1.2).
            0 => self.reset_device(),
            status => self.status = status as u8 & !STATUS_NEEDS_RESET,
        }
        Ok(())
    }

    fn get_status(&self) -> Answer {
        let failed = self.device.interrupts().has_failed() && self.owned().is_some();
        number((self.status | if failed { STATUS_NEEDS_RESET } else { 0 }).into())
    }

    fn get_config(&mut self, message: &Message) -> Answer {
        let (config, rest) = message.front::<VhostUserConfig>().map_err(malformed)?;
        let (offset, size) = (config.offset, config.size);
        if rest.len() != size as usize {
            return Err(malformed(format!("its payload has {} bytes for {size} bytes of configuration", rest.len())));
        }
        if offset.checked_add(size).is_none_or(|end| end as usize > CONFIG_BYTES) {
            // A payload of length 0 is an error.
            let refused = VhostUserConfig { size: 0, ..config };
            return bytes(&refused, &[], None);
        }
        let space = self.told.space(&self.device.config());
        let range = offset as usize..(offset + size) as usize;
        self.told.note_read(range.clone(), &space);
        bytes(&config, &space[range], None)
    }

    fn set_config(&mut self, message: &Message) -> Result<(), Failure> {
        let (config, space) = message.front::<VhostUserConfig>().map_err(malformed)?;
        let (offset, size) = (config.offset, config.size);
        if space.len() != size as usize {
            return Err(malformed(format!("its payload has {} bytes for {size} bytes of configuration", space.len())));
        }
        let (offset, space) = (u64::from(offset), space.to_vec());
        self.device.write_config(self.id, &self.driver_state(), offset, &space);
        self.told.note_written(offset as usize, &space, &self.device.config());
        // One by one, in case another connection uses the device for now.
        self.config_writes.retain(|(old, data)| (*old, data.len()) != (offset, space.len()));
        self.config_writes.push((offset, space));
        if self.config_writes.len() > CONFIG_WRITES_MAX {
            self.config_writes.remove(0);
        }
        Ok(())
    }

    fn set_mem_table(&mut self, message: Message) -> Result<(), Failure> {
        let (memory, rest) = message.front::<VhostUserMemory>().map_err(malformed)?;
        let count = memory.num_regions;
        let regions = regions_of(rest, count).map_err(malformed)?;
        if regions.len() != message.files.len() {
            let files = message.files.len();
            return Err(malformed(format!("it comes with {files} file descriptors for {count} memory regions")));
        }
        let table = self
            .table
            .replaced(&regions, message.files, &|file, offset, length| self.map(file, offset, length))
            .map_err(refused)?;
        self.adopt(table)
    }

    fn add_mem_region(&mut self, mut message: Message) -> Result<(), Failure> {
        let region = single_region(&message)?;
        let file = message.file().map_err(malformed)?;
        let table =
            self.table.with(&region, file, &|file, offset, length| self.map(file, offset, length)).map_err(refused)?;
        self.adopt(table)
    }

    fn remove_mem_region(&mut self, message: &Message) -> Result<(), Failure> {
        // A descriptor may come with it; it is not used.
        let table = self.table.without(&single_region(message)?).map_err(refused)?;
        self.adopt(table)
    }

    fn set_log_base(&mut self, mut message: Message) -> Answer {
        let log = message.body::<VhostUserLog>().map_err(malformed)?;
        let file = message.file().map_err(malformed)?;
        let mapping = self
            .map(&file, log.mmap_offset, log.mmap_size)
            .map_err(|error| refused(format!("the log of dirty pages: {error}")))?;
        self.log = Some(DirtyLog::new(mapping));
        self.update_logs();
        // The document does not specify the answer's payload: QEMU takes any, Cloud Hypervisor wants what was asked.
        bytes(&log, &[], None)
    }

    fn set_vring_num(&mut self, message: &Message) -> Result<(), Failure> {
        let VhostUserVringState { index, num } = message.body().map_err(malformed)?;
        // A packed ring can have any size (virtio 1.3, 2.8.10.1).
        let is_packed = self.ring_kind() == RingKind::Packed;
        let size = u16::try_from(num)
            .ok()
            .filter(|size| (1..=MAX_QUEUE_SIZE).contains(size) && (is_packed || size.is_power_of_two()));
        let size = size.ok_or_else(|| {
            let what = if is_packed { "" } else { "a power of two " };
            refused(format!("a queue size of {num} is not {what}from 1 to {MAX_QUEUE_SIZE}"))
        })?;
        let vring = self.stopped_vring(index)?;
        (vring.size, vring.failed) = (size, false);
        Ok(())
    }

    fn set_vring_addr(&mut self, message: &Message) -> Result<(), Failure> {
        let addresses = message.body::<VhostUserVringAddr>().map_err(malformed)?;
        let (index, was_logged) = (addresses.index, self.vring(addresses.index)?.log_used);
        let vring = self.vring(index)?;
        vring.set_addresses(&addresses).map_err(refused)?;
        if vring.log_used != was_logged {
            self.update_logs();
        }
        Ok(())
    }

    fn set_vring_base(&mut self, message: &Message) -> Result<(), Failure> {
        let VhostUserVringState { index, num } = message.body().map_err(malformed)?;
        // One index of a split ring; two, with their wrap counters, of a packed one.
        if self.ring_kind() == RingKind::Split && num > u16::MAX.into() {
            return Err(refused(format!("a base of {num} has more than 16 bits")));
        }
        self.stopped_vring(index)?.base = Some(num);
        Ok(())
    }

    fn get_vring_base(&mut self, message: &Message) -> Answer {
        let VhostUserVringState { index, .. } = message.body().map_err(malformed)?;
        self.vring(index).map_err(|failure| match failure {
            // The answer cannot express a failure.
            Failure::Refused(reason) => malformed(reason),
            other => other,
        })?;
        self.stop_ring(index as usize);
        let beginning = self.ring_kind().beginning();
        let vring = self.vring(index)?;
        vring.kick = Kick::Unset;
        let state = VhostUserVringState::new(index, vring.base.unwrap_or(beginning));
        bytes(&state, &[], None)
    }

    fn set_vring_kick(&mut self, message: Message) -> Result<(), Failure> {
        let (index, file) = vring_file(message)?;
        let event = file.map(event).transpose().map_err(refused)?.map(Arc::new);
        let vring = self.vring(index)?;
        vring.kick = event.clone().map_or(Kick::Polled, Kick::Event);
        vring.failed = false;
        self.update_ring(index as usize, QueueUpdate::Kick(event));
        Ok(())
    }

    fn set_vring_call(&mut self, message: Message) -> Result<(), Failure> {
        let (index, file) = vring_file(message)?;
        let call = file.map(event).transpose().map_err(refused)?.map(Arc::new);
        self.vring(index)?.call = call.clone();
        self.update_ring(index as usize, QueueUpdate::Notifier(self.notifier(&call)));
        Ok(())
    }

    fn set_vring_err(&mut self, message: Message) -> Result<(), Failure> {
        let (index, file) = vring_file(message)?;
        self.vring(index)?.error = file.map(event).transpose().map_err(refused)?;
        Ok(())
    }

    fn set_vring_enable(&mut self, message: &Message) -> Result<(), Failure> {
        let VhostUserVringState { index, num } = message.body().map_err(malformed)?;
        let vring = self.vring(index)?;
        match num {
            0 => {
                vring.enabled = false;
                self.stop_ring(index as usize);
            }
            1 => (vring.enabled, vring.failed) = (true, false),
            _ => return Err(refused(format!("{num} is neither on nor off"))),
        }
        Ok(())
    }

    fn get_inflight(&self, message: &Message) -> Answer {
        let asked = message.body::<VhostUserInflight>().map_err(malformed)?;
        let (queues, queue_size) = (asked.num_queues, asked.queue_size);
        let queue_bytes = InflightRegion::bytes(self.ring_kind(), queues, queue_size).map_err(malformed)?;
        let bytes_needed = queue_bytes + RECORD_BYTES;
        // Sealed, so that the front end, which shares it, cannot shrink it.
        let file = sealed_file(c"pollux-inflight", bytes_needed)
            .map_err(|error| malformed(format!("there is no memory for {bytes_needed} bytes: {error}")))?;
        let reply = VhostUserInflight::new(bytes_needed, 0, queues, queue_size);
        bytes(&reply, &[], Some(file))
    }

    fn set_inflight(&mut self, mut message: Message) -> Result<(), Failure> {
        let given = message.body::<VhostUserInflight>().map_err(malformed)?;
        let file = message.file().map_err(malformed)?;
        if self.is_running() {
            return Err(refused("rings are running"));
        }
        let (queues, queue_size) = (given.num_queues, given.queue_size);
        let needed = InflightRegion::bytes(self.ring_kind(), queues, queue_size).map_err(refused)?;
        if given.mmap_size < needed {
            let size = given.mmap_size;
            return Err(refused(format!("an in-flight region of {size} bytes for what takes {needed}")));
        }
        let mapping = self
            .map(&file, given.mmap_offset, given.mmap_size)
            .map_err(|error| refused(format!("the in-flight region: {error}")))?;
        self.told.adopt(&mapping, needed);
        self.inflight = Some(InflightRegion { mapping, queue_size, queues });
        Ok(())
    }

    fn set_backend_channel(&mut self, mut message: Message) -> Result<(), Failure> {
        let file = message.file().map_err(malformed)?;
        let channel = UnixStream::from(OwnedFd::from(file));
        // It is written to by a thread that must not wait for it, and a descriptor that is not a socket is refused
        // here.
        channel.local_addr().and_then(|_| channel.set_nonblocking(true)).map_err(|error| {
            refused(format!("its file descriptor for requests of the back end is not a UNIX socket: {error}"))
        })?;
        self.backend_channel = Some(channel);
        Ok(())
    }
}

fn single_region(message: &Message) -> Result<VhostUserMemoryRegion, Failure> {
    // The first 8 bytes are padding; the crate's validator is for ADD_MEM_REG, and its structure derefs to the region.
    let region = message.body::<VhostUserSingleMemoryRegion>().map_err(malformed)?;
    Ok(*region)
}

/// The ring that a descriptor is for, and the descriptor, if there is one.
fn vring_file(mut message: Message) -> Result<(u32, Option<File>), Failure> {
    let value = message.body::<VhostUserU64>().map_err(malformed)?.value;
    if value & NO_FILE != 0 {
        if !message.files.is_empty() {
            return Err(malformed("it says that there is no file descriptor, and comes with one"));
        }
        return Ok(((value & 0xff) as u32, None));
    }
    let file = message.file().map_err(malformed)?;
    Ok(((value & 0xff) as u32, Some(file)))
}
