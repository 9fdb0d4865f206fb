//! A block device behind the registers of PCI or MMIO, with a driver that sets it up and drives its queues through
//! them: as a guest has it, without a machine.
use crate::{
    blk::{BlkDriver, Cut, Finished, wait_for},
    rig::options,
};
use pollux_core::{
    block::Disk,
    device::blk::Blk,
    memory::GuestMemory,
    ring::QueueConfig,
    stats::StatsSegment,
    transport::{
        DeviceHandle, STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, VirtioDevice,
        mmio::MmioTransport, pci::PciTransport,
    },
    worker::WorkerHandle,
};
use pollux_driver::RingKind;
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use virtio_bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1},
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Offset and width in bytes of a register. A width of 0: there is none.
pub type Register = (u64, usize);

/// Where the registers of a transport are that a driver starts the device by (virtio 1.3, 4.1.4.3 and 4.2.2).
#[derive(Debug)]
pub struct Layout {
    /// Which half of the offered features is read.
    pub device_features_select: Register,
    /// That half.
    pub device_features: Register,
    /// Which half of the accepted features is written.
    pub driver_features_select: Register,
    /// That half.
    pub driver_features: Register,
    /// The vector of configuration changes.
    pub config_vector: Register,
    /// The device status.
    pub status: Register,
    /// Which queue the registers below are of.
    pub queue_select: Register,
    /// Its size.
    pub queue_size: Register,
    /// Its interrupt vector.
    pub queue_vector: Register,
    /// Whether it is enabled.
    pub queue_ready: Register,
    /// Its reset.
    pub queue_reset: Register,
    /// The lower halves of descriptors, driver area and device area; the upper ones follow.
    pub addresses: [Register; 3],
    /// The first bytes of the configuration space.
    pub config: Register,
    /// First offset behind all registers.
    pub end: u64,
}

/// The layout on PCI.
pub const PCI: Layout = Layout {
    device_features_select: (0x00, 4),
    device_features: (0x04, 4),
    driver_features_select: (0x08, 4),
    driver_features: (0x0c, 4),
    config_vector: (0x10, 2),
    status: (0x14, 1),
    queue_select: (0x16, 2),
    queue_size: (0x18, 2),
    queue_vector: (0x1a, 2),
    queue_ready: (0x1c, 2),
    queue_reset: (0x3a, 2),
    addresses: [(0x20, 4), (0x28, 4), (0x30, 4)],
    config: (0x2000, 8),
    end: 0x4000,
};

/// The layout on MMIO.
pub const MMIO: Layout = Layout {
    device_features_select: (0x14, 4),
    device_features: (0x10, 4),
    driver_features_select: (0x24, 4),
    driver_features: (0x20, 4),
    config_vector: (0, 0),
    status: (0x70, 4),
    queue_select: (0x30, 4),
    queue_size: (0x38, 4),
    queue_vector: (0, 0),
    queue_ready: (0x44, 4),
    queue_reset: (0xc0, 4),
    addresses: [(0x80, 4), (0x90, 4), (0xa0, 4)],
    config: (0x100, 8),
    end: 0x200,
};

/// Registers of either layout, and what drivers do with them.
pub trait Registers {
    /// Where they are.
    fn layout(&self) -> &'static Layout;
    /// Reads one.
    fn read(&mut self, register: Register) -> u64;
    /// Writes one, if there is such a one.
    fn write(&mut self, register: Register, value: u64);

    /// Says where a queue is and, if it is to be `ready`, that it is.
    fn describe_queue(&mut self, index: usize, config: QueueConfig, ready: bool) {
        let layout = self.layout();
        self.write(layout.queue_select, index as u64);
        self.write(layout.queue_size, config.size.into());
        // Vector 0 is that of configuration changes.
        self.write(layout.queue_vector, index as u64 + 1);
        for (register, address) in
            layout.addresses.iter().zip([config.descriptors, config.driver_area, config.device_area])
        {
            self.write(*register, address & 0xffff_ffff);
            self.write((register.0 + 4, register.1), address >> 32);
        }
        if ready {
            self.write(layout.queue_ready, 1);
        }
    }

    /// What a driver does before it describes queues (virtio 1.3, 3.1.1): reset, ACKNOWLEDGE, DRIVER, features,
    /// FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        let layout = self.layout();
        for status in [0, STATUS_ACKNOWLEDGE, STATUS_ACKNOWLEDGE | STATUS_DRIVER] {
            self.write(layout.status, status.into());
        }
        for half in [0, 1] {
            self.write(layout.driver_features_select, half);
            self.write(layout.driver_features, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(layout.status, (STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK).into());
    }
}

impl Registers for PciTransport {
    fn layout(&self) -> &'static Layout {
        &PCI
    }

    fn read(&mut self, (offset, width): Register) -> u64 {
        let mut data = [0; 8];
        self.read_bar(offset, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, (offset, width): Register, value: u64) {
        if width > 0 {
            self.write_bar(offset, &value.to_le_bytes()[..width]);
        }
    }
}

impl Registers for MmioTransport {
    fn layout(&self) -> &'static Layout {
        &MMIO
    }

    fn read(&mut self, (offset, width): Register) -> u64 {
        let mut data = [0; 8];
        MmioTransport::read(self, offset, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, (offset, width): Register, value: u64) {
        if width > 0 {
            MmioTransport::write(self, offset, &value.to_le_bytes()[..width]);
        }
    }
}

/// Which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// PCI.
    Pci,
    /// MMIO.
    Mmio,
}

impl BusKind {
    /// Both.
    pub const BOTH: [BusKind; 2] = [BusKind::Pci, BusKind::Mmio];
}

/// The device where its bus has it, as vCPUs and whoever runs it share it.
#[derive(Clone, Debug)]
enum Bus {
    Pci(Arc<Mutex<PciTransport>>),
    Mmio(Arc<Mutex<MmioTransport>>),
}

/// Requests that each driver can have in flight.
const DEPTH: usize = 16;
/// Greatest size of a queue.
pub const QUEUE_SIZE: u16 = 256;

/// A device and its drivers.
pub struct BusGuest {
    bus: Bus,
    kind: RingKind,
    memory: GuestMemory,
    /// A driver for each queue.
    pub drivers: Vec<BlkDriver>,
    /// What becomes an interrupt: that of configuration changes, and on PCI one for each queue.
    pub vectors: Vec<Arc<EventFd>>,
    /// The counters.
    pub stats: StatsSegment,
    features: u64,
}

impl fmt::Debug for BusGuest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BusGuest({:?})", self.bus)
    }
}

/// Guest memory of a queue at one place, and of its requests.
fn room() -> u64 {
    BlkDriver::bytes(QUEUE_SIZE, DEPTH).next_multiple_of(4096)
}

impl BusGuest {
    /// A device with `queues` queues dealt out to `workers`. Nothing has started it.
    pub fn new(
        bus: BusKind,
        kind: RingKind,
        name: &str,
        disk: Arc<dyn Disk>,
        queues: usize,
        workers: &[WorkerHandle],
    ) -> Self {
        let stats = StatsSegment::anonymous(queues).expect("statistics");
        let model = Blk::new(options(name, queues, workers), disk, &stats);
        // Two places for each queue.
        let memory = GuestMemory::create(&[(0, 2 * room() * queues as u64)], None).expect("guest memory");
        let device = VirtioDevice::new(Box::new(model), memory.clone()).expect("a device");
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
        let (bus, vectors) = match bus {
            BusKind::Pci => {
                let vectors: Vec<_> = (0..=queues).map(|_| event()).collect();
                let transport = PciTransport::new(device, vectors.clone()).expect("few queues");
                (Bus::Pci(Arc::new(Mutex::new(transport))), vectors)
            }
            BusKind::Mmio => {
                let line = event();
                (Bus::Mmio(Arc::new(Mutex::new(MmioTransport::new(device, line.clone())))), vec![line])
            }
        };
        BusGuest { bus, kind, memory, drivers: Vec::new(), vectors, stats, features: 0 }
    }

    /// The verbs of whoever runs the device.
    pub fn handle(&self) -> DeviceHandle {
        match &self.bus {
            Bus::Pci(transport) => PciTransport::handle(transport),
            Bus::Mmio(transport) => MmioTransport::handle(transport),
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Does something with the registers, as a vCPU does: with the device locked.
    pub fn registers<R>(&self, action: impl FnOnce(&mut dyn Registers) -> R) -> R {
        match &self.bus {
            Bus::Pci(transport) => action(&mut *lock(transport)),
            Bus::Mmio(transport) => action(&mut *lock(transport)),
        }
    }

    /// Says whether the device may access memory; on PCI alone.
    pub fn set_bus_master(&self, enabled: bool) {
        if let Bus::Pci(transport) = &self.bus {
            lock(transport).set_bus_master(enabled);
        }
    }

    /// Reads a register.
    pub fn read(&self, register: impl Fn(&Layout) -> Register) -> u64 {
        self.registers(|registers| registers.read(register(registers.layout())))
    }

    /// Writes a register.
    pub fn write(&self, register: impl Fn(&Layout) -> Register, value: u64) {
        self.registers(|registers| registers.write(register(registers.layout()), value));
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.read(|layout| layout.status) as u8
    }

    /// All features that are offered.
    pub fn offered(&self) -> u64 {
        let half = |half| {
            self.write(|layout| layout.device_features_select, half);
            self.read(|layout| layout.device_features) << (32 * half)
        };
        half(0) | half(1)
    }

    /// What a driver does to start the device, accepting all that is offered but `without` and the other kind of ring.
    /// Returns the status at its end.
    pub fn start_without(&mut self, without: u64) -> u8 {
        let other_kind = RingKind::Packed.feature() & !self.kind.feature();
        self.features = self.offered() & !without & !other_kind | 1 << VIRTIO_F_VERSION_1;
        self.registers(|registers| registers.negotiate(self.features));
        let queues = self.stats.blk_queues().count();
        self.drivers = (0..queues).map(|index| self.driver(index, 0, QUEUE_SIZE)).collect();
        for (index, driver) in self.drivers.iter().enumerate() {
            self.registers(|registers| registers.describe_queue(index, driver.ring.config(), true));
        }
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
        self.write(|layout| layout.status, status.into());
        self.status()
    }

    /// As [`start_without`](Self::start_without), with everything.
    pub fn start(&mut self) -> u8 {
        self.start_without(0)
    }

    /// A driver for a ring that was never used, of any size, at one of two places.
    pub fn driver(&self, index: usize, place: u64, size: u16) -> BlkDriver {
        let base = (2 * index as u64 + place) * room();
        let event_idx = self.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut driver = BlkDriver::new(self.kind, &self.memory, base, size, DEPTH, event_idx);
        if self.features & 1 << VIRTIO_F_IN_ORDER != 0 {
            driver.ring.set_in_order();
        }
        driver
    }

    /// Asks for the reset of a queue (virtio 1.3, 2.6.1).
    pub fn begin_queue_reset(&self, index: usize) {
        self.registers(|registers| {
            let layout = registers.layout();
            registers.write(layout.queue_select, index as u64);
            registers.write(layout.queue_reset, 1);
        });
    }

    /// Whether the reset of a queue still goes on, by its register.
    pub fn is_queue_resetting(&self, index: usize) -> bool {
        self.queue_register(index, |layout| layout.queue_reset) != 0
    }

    /// Reads a register of a queue.
    pub fn queue_register(&self, index: usize, register: impl Fn(&Layout) -> Register) -> u64 {
        self.registers(|registers| {
            let layout = registers.layout();
            registers.write(layout.queue_select, index as u64);
            registers.read(register(layout))
        })
    }

    /// Resets a queue and waits for it, as drivers do.
    pub fn reset_queue(&self, index: usize) {
        self.begin_queue_reset(index);
        wait_for("the reset of a queue", || (!self.is_queue_resetting(index)).then_some(()));
    }

    /// Enables a queue that was reset, for this driver from now on.
    pub fn enable_queue(&mut self, index: usize, driver: BlkDriver) {
        self.registers(|registers| registers.describe_queue(index, driver.ring.config(), true));
        self.drivers[index] = driver;
    }

    /// Notifies the device of a queue.
    pub fn kick(&self, index: usize) {
        match &self.bus {
            Bus::Pci(transport) => kick(lock(transport).device(), index),
            Bus::Mmio(transport) => kick(lock(transport).device(), index),
        }
    }

    /// Submits on a queue, with a kick if the device asks for one.
    pub fn submit(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], cut: &Cut) -> u16 {
        let (head, wants_kick) = self.drivers[queue].submit(kind, sector, out, cut).expect("room for a request");
        if wants_kick {
            self.kick(queue);
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

fn kick(device: &VirtioDevice, index: usize) {
    device.kick(index).expect("a queue").write(1).expect("a kick");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
