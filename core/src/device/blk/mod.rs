//! The block device (virtio 1.3, 5.2): its features, its configuration space, and the set-up of its queues.
//!
//! The data path is in [`queue`], what a request says in `request`.
#[allow(unsafe_code)]
mod chain;
mod config;
mod failures;
mod portions;
#[allow(unsafe_code)]
pub mod queue;
mod request;
#[allow(unsafe_code)]
mod rooms;
mod tally;

use super::{ActivateError, Activation, ActiveQueue, ConfigFields, DeviceModel, ToldConfig};
use crate::{
    block::{Disk, DiskQueue, OpenQueue},
    memory::GuestMemory,
    queue::{
        Position, QueueOptions, QueueSet, QueueUpdate,
        shell::QueueShell,
        virtqueue::{Virtqueue, VirtqueueSetup},
    },
    ring::{InOrder, PackedRing, QueueConfig, Ring, RingError, RingKind, SplitRing},
    stats::{BlkStats, QueueIdentity, QueueRecord, StatsSegment},
    worker::{Task, WorkerHandle},
};
use config::Config;
use failures::FailureLog;
use pollux_abi::block_v1::{BlockInfo, POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_WRITE_ZEROES};
use queue::{BlkQueue, BlkSetup};
use request::Limits;
use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tracing::{error, info, warn};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_config::VIRTIO_F_IN_ORDER,
    virtio_ids::VIRTIO_ID_BLOCK,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};

/// How a block device is set up.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// The device's name in the configuration.
    pub name: String,
    /// What GET_ID answers, at most 20 bytes; empty for the name.
    pub serial: String,
    /// The workers that the queues are dealt out to, in turn. At least one, unless the queues are polled by hand.
    pub workers: Vec<WorkerHandle>,
    /// How its queues are set up.
    pub queues: QueueOptions,
}

/// What the transport's thread writes and workers read, once a batch; and what they share of failures.
#[derive(Debug)]
struct Shared {
    /// Whether completed writes may stay in a volatile cache.
    writeback: AtomicBool,
    capacity_sectors: AtomicU64,
    failures: FailureLog,
}

/// A block device model.
#[derive(Debug)]
pub struct Blk {
    options: BlkOptions,
    disk: Arc<dyn Disk>,
    queue_sizes: Vec<u16>,
    features: u64,
    limits: Limits,
    config: Config,
    shared: Arc<Shared>,
    stats: Vec<QueueRecord<BlkStats>>,
    queues: QueueSet,
    /// What the queues run with, while the device is active.
    activation: Option<Activation>,
}

impl Blk {
    /// A device in front of `disk`. Its statistics go to `segment`.
    pub fn new(options: BlkOptions, disk: Arc<dyn Disk>, segment: &StatsSegment) -> Self {
        let limits = Limits::new(disk.info(), options.queues.size);
        let features = features(disk.info(), &limits, &options);
        let config = Config::new(disk.info(), &limits, features, options.queues.count);
        let queues = QueueSet::new(&options.name, &options.workers);
        let device = &options.name;
        let identity = |index| QueueIdentity { device, index, worker: queues.worker_name(index) };
        let stats = (0..options.queues.count).filter_map(|index| segment.add_queue(identity(index))).collect();
        let capacity_sectors = AtomicU64::new(limits.capacity_sectors);
        Blk {
            queue_sizes: vec![options.queues.size; options.queues.count],
            features,
            limits,
            config,
            shared: Arc::new(Shared {
                writeback: AtomicBool::new(true),
                capacity_sectors,
                failures: FailureLog::new(&options.name),
            }),
            stats,
            queues,
            activation: None,
            disk,
            options,
        }
    }

    /// Builds the data path of one queue, which belongs to whoever polls it.
    ///
    /// # Errors
    /// The ring is not usable, or the backend refuses a queue.
    pub fn queue(&self, activation: &Activation, queue: ActiveQueue) -> Result<Box<dyn Task>, String> {
        // One slot more than the ring has, for the flush at the end.
        let depth = u32::from(queue.config.size) + 1;
        let opened = self.disk.clone().open_queue(queue.index as u32, depth).map_err(|error| error.to_string())?;
        match opened {
            OpenQueue::Backend(backend) => self.queue_before(backend, activation, queue),
        }
    }

    /// The data path that was compiled for this kind of disk's queue.
    fn queue_before<Q: DiskQueue + 'static>(
        &self,
        backend: Q,
        activation: &Activation,
        queue: ActiveQueue,
    ) -> Result<Box<dyn Task>, String> {
        let serial = if self.options.serial.is_empty() { &self.options.name } else { &self.options.serial };
        let stats = self.stats.get(queue.index).ok_or("there is no room in the statistics")?;
        let blk = BlkSetup {
            size: queue.config.size,
            backend,
            limits: self.limits,
            serial: serial.clone(),
            shared: self.shared.clone(),
            stats: stats.block.clone(),
        };
        let setup = VirtqueueSetup {
            name: format!("{} queue {}", self.options.name, queue.index),
            config: queue.config,
            start: queue.start,
            event_idx: activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            memory: activation.memory.clone(),
            kick: queue.kick,
            notifier: queue.notifier,
            interrupts: activation.interrupts.clone(),
            stats: stats.common.clone(),
            options: self.options.queues,
        };
        let in_order = activation.features & 1 << VIRTIO_F_IN_ORDER != 0;
        let task = match (RingKind::of_features(activation.features), in_order) {
            (RingKind::Split, false) => task::<SplitRing, Q>(setup, blk),
            (RingKind::Split, true) => task::<InOrder<SplitRing>, Q>(setup, blk),
            (RingKind::Packed, false) => task::<PackedRing, Q>(setup, blk),
            (RingKind::Packed, true) => task::<InOrder<PackedRing>, Q>(setup, blk),
        };
        task.map_err(|error| error.to_string())
    }

    fn error(&self, reason: impl ToString) -> ActivateError {
        ActivateError { device: self.options.name.clone(), reason: reason.to_string() }
    }
}

fn task<R: Ring, Q: DiskQueue + 'static>(setup: VirtqueueSetup, blk: BlkSetup<Q>) -> Result<Box<dyn Task>, RingError> {
    Ok(Box::new(QueueShell::new(Virtqueue::<R>::new(setup)?, BlkQueue::new(blk)?)))
}

fn features(info: &BlockInfo, limits: &Limits, options: &BlkOptions) -> u64 {
    let writable = limits.writable;
    let mut features = 1u64 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY;
    let mut offer = |bit: u32, when: bool| features |= u64::from(when) << bit;
    offer(VIRTIO_BLK_F_RO, !writable);
    offer(VIRTIO_BLK_F_MQ, options.queues.count > 1);
    offer(VIRTIO_F_IN_ORDER, options.queues.in_order);
    offer(VIRTIO_BLK_F_FLUSH, info.offers(POLLUX_BLOCK_FLUSH));
    // The cache mode can be changed only where there is a flush to make writes durable with.
    offer(VIRTIO_BLK_F_CONFIG_WCE, writable && info.offers(POLLUX_BLOCK_FLUSH));
    offer(VIRTIO_BLK_F_DISCARD, writable && info.offers(POLLUX_BLOCK_DISCARD));
    offer(VIRTIO_BLK_F_WRITE_ZEROES, writable && info.offers(POLLUX_BLOCK_WRITE_ZEROES));
    features
}

impl DeviceModel for Blk {
    fn name(&self) -> &str {
        &self.options.name
    }

    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data, self.shared.writeback.load(Ordering::Relaxed));
    }

    fn write_config(&mut self, offset: u64, data: &[u8], features: u64) {
        // Only `writeback` can be written, and only if CONFIG_WCE was negotiated (virtio 1.3, 5.2.4.2).
        if features & 1 << VIRTIO_BLK_F_CONFIG_WCE != 0
            && let Some(&value) = config::writeback_byte(offset, data)
        {
            self.shared.writeback.store(value & 1 != 0, Ordering::Relaxed);
        }
    }

    fn features_accepted(&mut self, features: u64) {
        // A driver without FLUSH cannot make its writes durable, so they must be that when they complete; its
        // `writeback` starts at 0 (virtio 1.3, 5.2.5.2 and 5.2.6.2).
        self.shared.writeback.store(features & 1 << VIRTIO_BLK_F_FLUSH != 0, Ordering::Relaxed);
    }

    fn config_fields(&self) -> ConfigFields {
        config::FIELDS
    }

    fn config_was_told(&mut self, features: u64, told: &ToldConfig) -> Vec<String> {
        // Without CONFIG_WCE, features alone say what the cache mode is (virtio 1.3, 5.2.6.2).
        let has = |feature: u32| features & 1 << feature != 0;
        let sets_cache_mode = has(VIRTIO_BLK_F_CONFIG_WCE) && has(VIRTIO_BLK_F_FLUSH);
        let (is_durable, remarks) = match told {
            ToldConfig::Nothing => (false, vec![]),
            ToldConfig::Unknown if sets_cache_mode => (true, vec![config::UNKNOWN_CACHE_MODE.into()]),
            ToldConfig::Unknown => (false, vec![]),
            ToldConfig::Space(space) => (!config::is_writeback(space), self.config.broken_promises(space, features)),
        };
        if sets_cache_mode && is_durable {
            self.shared.writeback.store(false, Ordering::Relaxed);
        }
        remarks
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.queues.has_lost() {
            return Err(self.error("a queue of it was lost before, and its backend may still use the guest's memory"));
        }
        self.disk.add_memory(&activation.memory).map_err(|error| self.error(error))?;
        self.disk.remove_memory_but(Some(&activation.memory));
        self.activation = Some(activation);
        Ok(())
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let Some(activation) = &self.activation else { return Err(self.error("a queue starts before its device")) };
        let index = queue.index;
        let task = self.queue(activation, queue);
        let attached = task.and_then(|task| self.queues.attach(index, task));
        attached.map_err(|reason| self.error(format!("queue {index}: {reason}")))
    }

    fn stop_queue(&mut self, index: usize) -> Option<Position> {
        self.queues.detach(index)
    }

    fn update_queue(&mut self, index: usize, update: QueueUpdate) {
        self.queues.update(index, update);
    }

    fn set_memory(&mut self, memory: &GuestMemory, config: &dyn Fn(usize) -> QueueConfig) -> Result<(), ActivateError> {
        let Some(activation) = &mut self.activation else { return Ok(()) };
        self.disk
            .add_memory(memory)
            .map_err(|error| ActivateError { device: self.options.name.clone(), reason: error.to_string() })?;
        activation.memory = memory.clone();
        self.queues.set_memory(memory, config);
        self.release_memory();
        Ok(())
    }

    fn release_memory(&mut self) -> bool {
        let waits = self.queues.collect_retired();
        if let Some(activation) = &self.activation
            && !waits
        {
            self.disk.remove_memory_but(Some(&activation.memory));
        }
        waits
    }

    fn forget_memory(&mut self) {
        if self.activation.is_none() && !self.queues.has_lost() {
            self.disk.remove_memory_but(None);
        }
    }

    fn refresh(&mut self) -> bool {
        let name = &self.options.name;
        let info = match self.disk.describe() {
            Ok(info) => info,
            Err(error) => {
                warn!("{name}: stays as it is: {error}");
                return false;
            }
        };
        let old = self.limits.capacity_sectors;
        // Only the capacity may change under a driver (virtio 1.3, 5.2.5: capacity, topology by a configuration
        // change).
        let new = Limits::new(&info, self.options.queues.size);
        let (old_block, new_block) = (self.limits.block_bytes(), new.block_bytes());
        if new_block > old_block {
            warn!(
                "{name}: its medium has blocks of {new_block} bytes now, and its guest was told of {old_block}: \
                 requests for parts of a block fail; restart the guest and this process"
            );
        }
        let new = self.limits.in_whole_blocks(new.capacity_sectors);
        self.limits.capacity_sectors = new;
        if new == old {
            return false;
        }
        info!("{name}: its capacity has changed from {old} to {new} sectors of 512 bytes");
        self.config.set_capacity(new);
        self.shared.capacity_sectors.store(new, Ordering::Relaxed);
        true
    }

    fn change_event(&self) -> Option<RawFd> {
        Some(self.disk.change_event())
    }

    fn deactivate(&mut self) {
        self.queues.detach_all();
        self.activation = None;
    }

    fn reset(&mut self) {
        // A new driver finds the cache mode as it was at the start.
        self.shared.writeback.store(true, Ordering::Relaxed);
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.deactivate();
        if self.queues.has_lost() {
            error!("{}: the memory of its last guest stays mapped, since a queue was lost", self.options.name);
            return;
        }
        self.disk.remove_memory_but(None);
    }
}
