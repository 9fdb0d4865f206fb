//! The block device (virtio 1.3, 5.2): its features, its configuration space, and the set-up of its queues.
//!
//! The data path is in [`queue`], what a request says in `request`.
#[allow(unsafe_code)]
mod chain;
mod config;
#[allow(unsafe_code)]
pub mod queue;
mod request;
mod tally;

use super::{ActivateError, Activation, ActiveQueue, DeviceModel};
use crate::{
    plugin::BlockBackend,
    stats::{QueueStatsHandle, StatsSegment},
    worker::{TaskId, WorkerHandle},
};
use config::Config;
use pollux_abi::block_v1::{POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_WRITE_ZEROES};
use queue::{BlkQueue, QueueSetup};
use request::Limits;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tracing::error;
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    },
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
    /// Number of queues.
    pub queues: usize,
    /// Size of each queue, a power of two.
    pub queue_size: u16,
    /// The workers that the queues are dealt out to, in turn. At least one, unless the queues are polled by hand.
    pub workers: Vec<WorkerHandle>,
    /// One batch in so many has its latency measured; 0: none.
    pub latency_sample: u32,
}

/// A block device model.
#[derive(Debug)]
pub struct Blk {
    options: BlkOptions,
    backend: Arc<BlockBackend>,
    queue_sizes: Vec<u16>,
    features: u64,
    limits: Limits,
    config: Config,
    /// Whether completed writes may stay in a volatile cache. Written by the transport's thread, read by workers once
    /// a batch.
    writeback: Arc<AtomicBool>,
    stats: Vec<QueueStatsHandle>,
    tasks: Vec<(WorkerHandle, TaskId)>,
    /// A queue was lost whose backend may still touch the guest's memory: the device does not start again.
    lost: bool,
}

impl Blk {
    /// A device in front of `backend`. Its statistics go to `segment`.
    pub fn new(options: BlkOptions, backend: Arc<BlockBackend>, segment: &StatsSegment) -> Self {
        let limits = Limits::new(backend.info(), options.queue_size);
        let features = features(&backend, &limits, &options);
        let config = Config::new(backend.info(), &limits, features, options.queues);
        let stats = (0..options.queues)
            .filter_map(|index| {
                let worker =
                    options.workers.get(index % options.workers.len().max(1)).map_or("", |worker| worker.name());
                segment.add(&format!("{}/{index} {worker}", options.name))
            })
            .collect();
        Blk {
            queue_sizes: vec![options.queue_size; options.queues],
            features,
            limits,
            config,
            writeback: Arc::new(AtomicBool::new(true)),
            stats,
            tasks: Vec::new(),
            lost: false,
            backend,
            options,
        }
    }

    /// Builds the data path of one queue, which belongs to whoever polls it.
    ///
    /// # Errors
    /// The ring is not usable, or the backend refuses a queue.
    pub fn queue(&self, activation: &Activation, queue: ActiveQueue) -> Result<BlkQueue, String> {
        // One slot more than the ring has, for the flush at the end.
        let depth = u32::from(queue.config.size) + 1;
        let backend = self.backend.open_queue(queue.index as u32, depth).map_err(|error| error.to_string())?;
        let serial = if self.options.serial.is_empty() { &self.options.name } else { &self.options.serial };
        let setup = QueueSetup {
            name: format!("{} queue {}", self.options.name, queue.index),
            config: queue.config,
            event_idx: activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            memory: activation.memory.clone(),
            backend,
            limits: self.limits,
            serial: serial.clone(),
            writeback: self.writeback.clone(),
            kick: queue.kick,
            notifier: queue.notifier,
            interrupts: activation.interrupts.clone(),
            stats: self.stats.get(queue.index).cloned().ok_or("there is no room in the statistics")?,
            latency_sample: self.options.latency_sample,
        };
        BlkQueue::new(setup).map_err(|error| error.to_string())
    }

    fn attach(&mut self, activation: &Activation, queue: ActiveQueue) -> Result<(), String> {
        let index = queue.index;
        let in_queue = |reason: String| format!("queue {index}: {reason}");
        let workers = &self.options.workers;
        let worker = workers[index % workers.len()].clone();
        let task = self.queue(activation, queue).map_err(in_queue)?;
        let id = worker.attach(Box::new(task)).map_err(|error| in_queue(error.to_string()))?;
        self.tasks.push((worker, id));
        Ok(())
    }
}

fn features(backend: &BlockBackend, limits: &Limits, options: &BlkOptions) -> u64 {
    let info = backend.info();
    let writable = limits.writable;
    let mut features = 1u64 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY;
    let mut offer = |bit: u32, when: bool| features |= u64::from(when) << bit;
    offer(VIRTIO_BLK_F_RO, !writable);
    offer(VIRTIO_BLK_F_MQ, options.queues > 1);
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
        self.config.read(offset, data, self.writeback.load(Ordering::Relaxed));
    }

    fn write_config(&mut self, offset: u64, data: &[u8], features: u64) {
        // Only `writeback` can be written, and only if CONFIG_WCE was negotiated (virtio 1.3, 5.2.4.2).
        if features & 1 << VIRTIO_BLK_F_CONFIG_WCE != 0
            && let Some(&value) = config::writeback_byte(offset, data)
        {
            self.writeback.store(value & 1 != 0, Ordering::Relaxed);
        }
    }

    fn features_accepted(&mut self, features: u64) {
        // A driver without FLUSH cannot make its writes durable, so they must be that when they complete; its
        // `writeback` starts at 0 (virtio 1.3, 5.2.5.2 and 5.2.6.2).
        self.writeback.store(features & 1 << VIRTIO_BLK_F_FLUSH != 0, Ordering::Relaxed);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let failed = |reason| ActivateError { device: self.options.name.clone(), reason };
        if self.lost {
            return Err(failed(
                "a queue of it was lost before, and its backend may still use the guest's memory".into(),
            ));
        }
        let queues = std::mem::take(&mut activation.queues);
        let result = self
            .backend
            .set_memory(Some(&activation.memory))
            .map_err(|error| error.to_string())
            .and_then(|()| queues.into_iter().try_for_each(|queue| self.attach(&activation, queue)));
        result.map_err(|reason| {
            self.deactivate();
            ActivateError { device: self.options.name.clone(), reason }
        })
    }

    fn deactivate(&mut self) {
        for (worker, id) in self.tasks.drain(..) {
            if worker.detach(id, &self.options.name).is_none() {
                error!(
                    "{}: a queue was lost on worker {}; the device stays out of service",
                    self.options.name,
                    worker.name()
                );
                self.lost = true;
            }
        }
        // A new driver finds the cache mode as it was at the start.
        self.writeback.store(true, Ordering::Relaxed);
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.deactivate();
        if self.lost {
            return;
        }
        if let Err(error) = self.backend.set_memory(None) {
            error!("{}: {error}", self.options.name);
        }
    }
}
