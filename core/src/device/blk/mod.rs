//! The block device (virtio 1.3, 5.2): its features, its configuration space, and the set-up of its queues.
//!
//! The data path is in [`turn`], what a request says in `request`.
mod acceptance;
#[allow(unsafe_code)]
mod chain;
#[allow(unsafe_code)]
mod completion;
mod config;
mod failures;
mod measurement;
mod portions;
#[allow(unsafe_code)]
mod queue;
mod request;
#[allow(unsafe_code)]
mod rooms;
mod shared;
mod slot;
mod tally;
pub mod turn;

use super::{
    config_space::{ConfigFields, ToldConfig},
    measure::Measure,
    shell::{DeviceOptions, DeviceShell, ModelKind, build_on_ring},
};
use crate::{
    block::{Disk, DiskQueue, open::OpenQueue},
    memory::GuestMemory,
    queue::{QueueOptions, VirtqueueSetup},
    ring::Ring,
    stats::{BlkStats, BlkStatsHandle, StatsSegment},
    worker::{Task, WorkerHandle},
};
use config::Config;
use failures::FailureLog;
use measurement::Measurement;
use pollux_abi::block_v1::{BlockInfo, POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_WRITE_ZEROES};
use queue::{BlkQueue, BlkSetup};
use request::MediumLimits;
use shared::Shared;
use std::{
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tracing::{info, warn};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// How a block device is set up.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// The device's name in the configuration.
    pub name: String,
    /// What GET_ID answers, at most 20 bytes; empty for the name.
    pub serial: String,
    /// The workers that the queues are assigned to in turn. At least one, unless the queues are polled by hand.
    pub workers: Vec<WorkerHandle>,
    /// How its queues are set up.
    pub queues: QueueOptions,
}

/// A block device model.
pub type Blk = DeviceShell<BlkKind>;

/// What is particular to it.
#[derive(Debug)]
pub struct BlkKind {
    name: String,
    serial: String,
    queue_size: u16,
    disk: Arc<dyn Disk>,
    features: u64,
    limits: MediumLimits,
    config: Config,
    shared: Arc<Shared>,
    measurement: Arc<Measurement>,
}

impl Blk {
    /// A device in front of `disk`. Its statistics and those of the disk go to `segment`.
    pub fn new(options: BlkOptions, disk: Arc<dyn Disk>, segment: &StatsSegment) -> Self {
        let BlkOptions { name, serial, workers, queues } = options;
        let limits = MediumLimits::new(disk.info(), queues.size);
        let features = features(disk.info(), &limits, queues.count);
        disk.count(segment);
        let kind = BlkKind {
            name: name.clone(),
            serial: if serial.is_empty() { name.clone() } else { serial },
            queue_size: queues.size,
            features,
            limits,
            config: Config::new(disk.info(), &limits, features, queues.count),
            shared: Arc::new(Shared {
                writeback: AtomicBool::new(true),
                capacity_sectors: AtomicU64::new(limits.capacity_sectors),
                failures: FailureLog::new(&name),
            }),
            measurement: Measurement::new(&name, &disk),
            disk,
        };
        DeviceShell::around(kind, DeviceOptions { name, workers, queues }, segment)
    }
}

impl BlkKind {
    /// The data path that was compiled for this kind of disk's queue.
    fn serve<R: Ring>(
        &self,
        setup: VirtqueueSetup,
        stats: BlkStatsHandle,
        backend: impl DiskQueue + 'static,
    ) -> Result<Box<dyn Task>, String> {
        let blk = BlkQueue::new(BlkSetup {
            size: setup.config.size,
            backend,
            limits: self.limits,
            serial: self.serial.clone(),
            shared: self.shared.clone(),
            stats,
        });
        setup.serve::<R>(blk.map_err(|error| error.to_string())?)
    }
}

fn features(info: &BlockInfo, limits: &MediumLimits, queues: usize) -> u64 {
    let writable = limits.writable;
    let mut features = 1u64 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY;
    let mut offer = |bit: u32, when: bool| features |= u64::from(when) << bit;
    offer(VIRTIO_BLK_F_RO, !writable);
    offer(VIRTIO_BLK_F_MQ, queues > 1);
    offer(VIRTIO_BLK_F_FLUSH, info.offers(POLLUX_BLOCK_FLUSH));
    // The cache mode can be changed only where there is a flush to make writes durable with.
    offer(VIRTIO_BLK_F_CONFIG_WCE, writable && info.offers(POLLUX_BLOCK_FLUSH));
    offer(VIRTIO_BLK_F_DISCARD, writable && info.offers(POLLUX_BLOCK_DISCARD));
    offer(VIRTIO_BLK_F_WRITE_ZEROES, writable && info.offers(POLLUX_BLOCK_WRITE_ZEROES));
    features
}

impl ModelKind for BlkKind {
    type Stats = BlkStats;

    fn features(&self) -> u64 {
        self.features
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

    fn build_queue<R: Ring>(&self, setup: VirtqueueSetup, stats: BlkStatsHandle) -> Result<Box<dyn Task>, String> {
        // One slot more than the ring has, for the flush at the end.
        let depth = u32::from(setup.config.size) + 1;
        let opened = OpenQueue::of(&self.disk, setup.index as u32, depth).map_err(|error| error.to_string())?;
        match opened {
            OpenQueue::Backend(backend) => self.serve::<R>(setup, stats, backend),
            OpenQueue::Stack(stack) => self.serve::<R>(setup, stats, stack),
        }
    }

    fn build(&self, features: u64, setup: VirtqueueSetup, stats: BlkStatsHandle) -> Result<Box<dyn Task>, String> {
        build_on_ring(self, features, setup, stats)
    }

    fn add_memory(&self, memory: &GuestMemory) -> Result<(), String> {
        self.disk.add_memory(memory).map_err(|error| error.to_string())
    }

    fn remove_memory_but(&self, memory: Option<&GuestMemory>) {
        self.disk.remove_memory_but(memory);
    }

    fn measure(&self) -> Option<Arc<dyn Measure>> {
        Some(self.measurement.clone())
    }

    fn refresh(&mut self) -> bool {
        let name = &self.name;
        let Some(info) = self.measurement.take() else { return false };
        let old = self.limits.capacity_sectors;
        // Only the capacity may change under a driver (virtio 1.3, 5.2.5: capacity, topology by a configuration
        // change).
        let new = MediumLimits::new(&info, self.queue_size);
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

    fn reset(&mut self) {
        // A new driver finds the cache mode as it was at the start.
        self.shared.writeback.store(true, Ordering::Relaxed);
    }
}
