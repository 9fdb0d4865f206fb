//! A block device with a driver in front of it and a backend behind it.
use super::blk::{BlkDriver, Cut, Finished, PATIENCE, wait_for};
use pollux_core::{
    block::Disk,
    device::{
        Activation, ActiveQueue,
        blk::{Blk, BlkOptions},
    },
    event::{InterruptState, Notifier},
    memory::GuestMemory,
    queue::QueueOptions,
    ring::{QueueConfig, RingStart},
    stats::StatsSegment,
    transport::{STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, VirtioDevice},
    worker::{Task, WorkerHandle},
};
use pollux_driver::RingKind;
use std::sync::Arc;
use virtio_bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1},
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Requests that a rig's driver can have in flight.
const DEPTH: usize = 64;

/// Options of a block device for tests.
pub fn options(name: &str, queues: usize, workers: &[WorkerHandle]) -> BlkOptions {
    BlkOptions {
        name: name.into(),
        serial: "serial-of-this-disk-is-long".into(),
        workers: workers.into(),
        queues: QueueOptions { count: queues, latency_sample: 1, ..QueueOptions::default() },
    }
}

/// One queue that the test polls itself.
#[expect(missing_debug_implementations, reason = "a task has none")]
pub struct Rig {
    /// The device's side.
    pub queue: Box<dyn Task>,
    /// The driver's side.
    pub driver: BlkDriver,
    /// Where the device reports.
    pub interrupts: Arc<InterruptState>,
    /// What an irqfd would be.
    pub call: Arc<EventFd>,
    /// The counters.
    pub stats: StatsSegment,
    /// The device model, which holds the configuration space.
    pub device: Blk,
    activation: Activation,
}

impl Rig {
    /// A device in front of `backend` with a ring of `size`.
    pub fn new(kind: RingKind, backend: Arc<dyn Disk>, size: u16, event_idx: bool) -> Self {
        let memory = GuestMemory::create(&[(0, BlkDriver::bytes(size, DEPTH))], None).expect("guest memory");
        let driver = BlkDriver::new(kind, &memory, 0, size, DEPTH, event_idx);
        Self::with_driver(kind, backend, driver, event_idx)
    }

    /// As [`new`](Self::new), with IN_ORDER.
    pub fn in_order(kind: RingKind, backend: Arc<dyn Disk>, size: u16, event_idx: bool) -> Self {
        let memory = GuestMemory::create(&[(0, BlkDriver::bytes(size, DEPTH))], None).expect("guest memory");
        let mut driver = BlkDriver::new(kind, &memory, 0, size, DEPTH, event_idx);
        driver.ring.set_in_order();
        Self::with_driver(kind, backend, driver, event_idx)
    }

    /// A device for a driver that has its memory already, and keeps the order that it expects.
    pub fn with_driver(kind: RingKind, backend: Arc<dyn Disk>, driver: BlkDriver, event_idx: bool) -> Self {
        Self::with_options(kind, backend, driver, event_idx, options("blk0", 1, &[]))
    }

    /// As [`with_driver`](Self::with_driver), with any options for one queue.
    pub fn with_options(
        kind: RingKind,
        backend: Arc<dyn Disk>,
        driver: BlkDriver,
        event_idx: bool,
        options: BlkOptions,
    ) -> Self {
        Self::with_start(kind, backend, driver, event_idx, options, RingStart::default())
    }

    /// As [`with_options`](Self::with_options), of a queue that begins where `start` says.
    pub fn with_start(
        kind: RingKind,
        backend: Arc<dyn Disk>,
        driver: BlkDriver,
        event_idx: bool,
        options: BlkOptions,
        start: RingStart,
    ) -> Self {
        let stats = StatsSegment::anonymous(1).expect("statistics");
        let device = Blk::new(options, backend, &stats);
        let call = Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
        let interrupts = Arc::<InterruptState>::default();
        // As if the driver had accepted FLUSH, so that writes need not be durable at once.
        let in_order = u64::from(driver.ring.order().is_some()) << VIRTIO_F_IN_ORDER;
        let features = u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX | kind.feature() | in_order;
        let activation = Activation { memory: driver.memory().clone(), features, interrupts: interrupts.clone() };
        let queue = started(&device, &activation, &driver, &call, start).expect("a queue");
        Rig { queue, driver, interrupts, call, stats, device, activation }
    }

    /// The device's process dies with whatever it has in flight, and the next one goes on where `start` says.
    ///
    /// # Errors
    /// It cannot start there. The first one lives on.
    pub fn take_over(&mut self, start: RingStart) -> Result<(), String> {
        let next = started(&self.device, &self.activation, &self.driver, &self.call, start)?;
        let mut dead = std::mem::replace(&mut self.queue, next);
        // Its backend, at least, is stopped, as the end of a process does; the rings are not touched.
        assert!(dead.finish(), "the backend stops");
        Ok(())
    }

    /// Does one request from beginning to end.
    pub fn request(&mut self, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> Finished {
        self.driver.submit(kind, sector, out, cut).expect("room for a request");
        self.finish()
    }

    /// Turns the device until a request is finished.
    pub fn finish(&mut self) -> Finished {
        wait_for("a request", || {
            self.queue.poll();
            self.driver.pop()
        })
    }

    /// Turns the device until it says that it needs a reset.
    pub fn wait_for_failure(&mut self) {
        wait_for("DEVICE_NEEDS_RESET", || {
            self.queue.poll();
            self.interrupts.has_failed().then_some(())
        });
    }

    /// Whether the driver was signalled since the last call.
    pub fn signalled(&self) -> bool {
        self.call.read().is_ok()
    }
}

/// A queue that polls the ring of `driver` and signals by `call`.
fn started(
    device: &Blk,
    activation: &Activation,
    driver: &BlkDriver,
    call: &Arc<EventFd>,
    start: RingStart,
) -> Result<Box<dyn Task>, String> {
    let active = ActiveQueue {
        index: 0,
        config: driver.ring.config(),
        start,
        kick: Some(Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"))),
        notifier: Notifier::new(call.clone(), None),
    };
    let mut queue = device.queue(activation, active)?;
    queue.start()?;
    Ok(queue)
}

/// The device's side of a queue whose driver is elsewhere, to be polled by hand. Latencies are sampled as by default.
pub fn prepared_queue(
    kind: RingKind,
    backend: Arc<dyn Disk>,
    memory: &GuestMemory,
    config: QueueConfig,
) -> Box<dyn Task> {
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let options = BlkOptions { queues: QueueOptions::default(), ..options("blk0", 1, &[]) };
    let device = Blk::new(options, backend, &stats);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
    let active =
        ActiveQueue { index: 0, config, start: RingStart::default(), kick: Some(kick), notifier: Notifier::silent() };
    let interrupts = Arc::default();
    let features = 1 << VIRTIO_RING_F_EVENT_IDX | kind.feature();
    let activation = Activation { memory: memory.clone(), features, interrupts };
    let mut queue = device.queue(&activation, active).expect("a queue");
    queue.start().expect("start");
    queue
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.queue.begin_stop();
        let start = std::time::Instant::now();
        while !self.queue.is_stopped() && start.elapsed() < PATIENCE {
            self.queue.poll();
        }
        self.queue.finish();
    }
}

/// A device behind the status machine, served by workers, with a driver for each queue: as a guest has it.
#[derive(Debug)]
pub struct Guest {
    kind: RingKind,
    /// The device as its transport sees it.
    pub device: VirtioDevice,
    /// A driver for each queue.
    pub drivers: Vec<BlkDriver>,
    /// What an irqfd would be.
    pub call: Arc<EventFd>,
    /// The counters.
    pub stats: StatsSegment,
}

impl Guest {
    /// A device with `queues` queues dealt out to `workers`, whose driver speaks split rings. It has not started the
    /// device.
    pub fn new(name: &str, backend: Arc<dyn Disk>, queues: usize, workers: &[WorkerHandle]) -> Self {
        Self::with_rings(RingKind::Split, name, backend, queues, workers)
    }

    /// As [`new`](Self::new), with a driver that speaks the kind of ring named.
    pub fn with_rings(
        kind: RingKind,
        name: &str,
        backend: Arc<dyn Disk>,
        queues: usize,
        workers: &[WorkerHandle],
    ) -> Self {
        Self::with_options(kind, backend, options(name, queues, workers))
    }

    /// As [`with_rings`](Self::with_rings), of a device with these options and queues of 256 entries.
    pub fn with_options(kind: RingKind, backend: Arc<dyn Disk>, options: BlkOptions) -> Self {
        let queues = options.queues.count;
        let each = BlkDriver::bytes(256, DEPTH).next_multiple_of(4096);
        let memory = GuestMemory::create(&[(0, each * queues as u64)], None).expect("guest memory");
        let stats = StatsSegment::anonymous(queues).expect("statistics");
        let model = Blk::new(options, backend, &stats);
        let device = VirtioDevice::new(Box::new(model), memory).expect("a device");
        let call = Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
        Guest { kind, device, drivers: Vec::new(), call, stats }
    }

    /// What a driver does to start a device (virtio 1.3, 3.1.1), accepting all that its kind of ring allows. Returns
    /// the status at its end.
    pub fn start(&mut self) -> u8 {
        self.start_without(0)
    }

    /// As [`start`](Self::start), accepting `features`.
    pub fn start_with(&mut self, features: u64) -> u8 {
        let device = &mut self.device;
        device.set_status(0);
        device.set_status(STATUS_ACKNOWLEDGE);
        device.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        device.set_driver_features(0, features as u32);
        device.set_driver_features(1, (features >> 32) as u32);
        let mut status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        device.set_status(status);
        if device.status() & STATUS_FEATURES_OK == 0 {
            return device.status();
        }
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let kind = RingKind::of_features(features);
        let memory = device.memory().clone();
        self.drivers.clear();
        for index in 0..device.queue_count() {
            let base = index as u64 * BlkDriver::bytes(256, DEPTH).next_multiple_of(4096);
            let mut driver = BlkDriver::new(kind, &memory, base, 256, DEPTH, event_idx);
            if features & 1 << VIRTIO_F_IN_ORDER != 0 {
                driver.ring.set_in_order();
            }
            let config = driver.ring.config();
            let queue = device.queue_mut(index).expect("a queue that is not enabled");
            queue.set_size(config.size);
            queue.set_descriptors(Some(config.descriptors as u32), Some((config.descriptors >> 32) as u32));
            queue.set_driver_area(Some(config.driver_area as u32), Some((config.driver_area >> 32) as u32));
            queue.set_device_area(Some(config.device_area as u32), Some((config.device_area >> 32) as u32));
            device.set_notifier(index, Notifier::new(self.call.clone(), None));
            device.set_queue_ready(index, true);
            self.drivers.push(driver);
        }
        status |= STATUS_DRIVER_OK;
        device.set_status(status);
        device.status()
    }

    /// Accepts every feature but those in `without` and that of the other kind of ring.
    pub fn start_without(&mut self, without: u64) -> u8 {
        let offered = u64::from(self.device.device_features(0)) | u64::from(self.device.device_features(1)) << 32;
        let other_kind = RingKind::Packed.feature() & !self.kind.feature();
        self.start_with(offered & !without & !other_kind | 1 << VIRTIO_F_VERSION_1)
    }

    /// Submits on a queue, with a kick if the device asks for one.
    pub fn submit(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> u16 {
        let (head, kick) = self.drivers[queue].submit(kind, sector, out, cut).expect("room for a request");
        if kick {
            self.device.kick(queue).expect("a queue").write(1).expect("a kick");
        }
        head
    }

    /// Waits for the next finished request of a queue.
    pub fn finish(&mut self, queue: usize) -> Finished {
        wait_for("a request", || self.drivers[queue].pop())
    }

    /// Does one request from beginning to end.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> Finished {
        self.submit(queue, kind, sector, out, cut);
        self.finish(queue)
    }
}
