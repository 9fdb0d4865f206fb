//! What devices consist of, whoever's guest uses them: backends opened, workers started, models made.
use crate::examine::{Examined, open_options};
use pollux_core::{
    config::{self, Config, Device, DeviceKind},
    cpus,
    device::{
        DeviceModel,
        blk::{Blk, BlkOptions},
    },
    plugin::{BackendError, BlockBackend},
    stats::{Capacity, StatsSegment},
    worker::{Worker, WorkerError, WorkerHandle},
};
use std::sync::Arc;

/// Why a configuration without mistakes could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A medium that could be looked at could not be opened: most likely somebody else uses it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A worker could not be started.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// What polls the devices' queues and counts. To be dropped after the devices: workers serve them to the end.
pub(crate) struct Dataplane {
    pub(crate) stats: StatsSegment,
    /// For their destructors.
    _workers: Vec<Worker>,
}

impl Dataplane {
    /// Opens the backends, starts the workers, and makes the device models, which are in the order of the
    /// configuration. What they count goes to `stats`, which has the [`capacity`] for it. On an error all that was made
    /// is undone.
    pub(crate) fn new(examined: &Examined, stats: StatsSegment) -> Result<(Self, Vec<Box<dyn DeviceModel>>), Error> {
        let config = &examined.config;
        // What backends start and the kernel makes for them has its place where they were opened.
        cpus::leave(&taken_cpus(config));
        let backends = open_backends(examined)?;
        let workers = spawn_workers(config, &stats)?;
        let handles: Vec<WorkerHandle> = workers.iter().map(Worker::handle).collect();
        let devices = config.devices.iter().zip(backends);
        let models = devices.map(|(device, backend)| model(device, backend, &handles, &stats)).collect();
        Ok((Dataplane { stats, _workers: workers }, models))
    }
}

/// CPUs that a worker or a vCPU has for itself.
fn taken_cpus(config: &Config) -> Vec<usize> {
    let workers = config.workers.iter().filter_map(|worker| worker.cpu.as_ref());
    let vcpus = config.vm.iter().flat_map(|vm| vm.vcpus.iter().flatten());
    workers.chain(vcpus).map(|cpu| cpu.value).collect()
}

/// What there is to count.
pub(crate) fn capacity(config: &Config) -> Capacity {
    Capacity { workers: config.workers.len(), queues: queue_count(config), backends: config.devices.len() }
}

/// Number of queues of all devices.
pub(crate) fn queue_count(config: &Config) -> usize {
    config.devices.iter().map(|device| device.queues.value.count).sum()
}

/// A backend for each device, in their order. Devices that share a medium have an instance each: queues are numbered
/// within one.
fn open_backends(examined: &Examined) -> Result<Vec<Arc<BlockBackend>>, BackendError> {
    let open = |device: &Device| {
        let DeviceKind::Blk(blk) = &device.kind;
        let name = &blk.block.value;
        let block = examined.config.block(name).expect("references were checked");
        BlockBackend::open(&examined.plugins[name], name, &open_options(block))
    };
    examined.config.devices.iter().map(open).collect()
}

/// Starts the workers that serve a device. Another would burn its CPU for nothing.
fn spawn_workers(config: &Config, stats: &StatsSegment) -> Result<Vec<Worker>, WorkerError> {
    let serves =
        |worker: &config::Worker, device: &Device| device.workers.iter().any(|name| name.value == worker.name.value);
    config
        .workers
        .iter()
        .filter(|worker| config.devices.iter().any(|device| serves(worker, device)))
        .map(|worker| {
            let (name, cpu) = (&worker.name.value, worker.cpu.as_ref().map(|cpu| cpu.value));
            let stats = stats.add_worker(name).expect("the segment has room for every worker");
            Worker::spawn_counted(name, cpu, worker.idle, stats)
        })
        .collect()
}

fn model(
    device: &Device,
    backend: Arc<BlockBackend>,
    workers: &[WorkerHandle],
    stats: &StatsSegment,
) -> Box<dyn DeviceModel> {
    let DeviceKind::Blk(blk) = &device.kind;
    let handle = |name: &str| workers.iter().find(|worker| worker.name() == name).expect("references were checked");
    let options = BlkOptions {
        name: device.name.value.clone(),
        serial: blk.serial.clone(),
        workers: device.workers.iter().map(|worker| handle(&worker.value).clone()).collect(),
        queues: device.queues.value,
    };
    Box::new(Blk::new(options, backend, stats))
}
