//! Any accesses to the registers of a device on PCI or MMIO, and to its configuration space and MSI-X table where there
//! is a KVM to make them with, among those of an honest driver.
use crate::{disk, input::Input, pci_slot::PciSlot};
use pollux_core::{
    device::blk::Blk,
    memory::GuestMemory,
    ring::{QueueConfig, RingKind},
    stats::StatsSegment,
    transport::{
        STATUS_NEEDS_RESET, VirtioDevice,
        mmio::MmioTransport,
        pci::{MSIX_TABLE_OFFSET, PciTransport},
    },
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, wait_for},
    disk::Behaviour,
    rig::options,
};
use std::{
    cell::OnceCell,
    fs::File,
    sync::{Arc, LazyLock},
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 16;
/// Requests that the honest driver at the end can have in flight.
const DEPTH: usize = 1;
/// Accesses of one input.
const ACCESSES_MAX: usize = 256;

/// Where the registers of a kind of transport are that a driver starts the device by (virtio 1.3, 4.1.4.3 and 4.2.2):
/// offset and width in bytes. A width of 0: there is none.
struct Layout {
    driver_features_select: (u64, usize),
    driver_features: (u64, usize),
    status: (u64, usize),
    queue_select: (u64, usize),
    queue_size: (u64, usize),
    queue_vector: (u64, usize),
    queue_ready: (u64, usize),
    /// The lower halves of descriptors, driver area and device area; the upper ones follow.
    addresses: [(u64, usize); 3],
    /// First offset behind all registers.
    end: u64,
}

const PCI: Layout = Layout {
    driver_features_select: (0x08, 4),
    driver_features: (0x0c, 4),
    status: (0x14, 1),
    queue_select: (0x16, 2),
    queue_size: (0x18, 2),
    queue_vector: (0x1a, 2),
    queue_ready: (0x1c, 2),
    addresses: [(0x20, 4), (0x28, 4), (0x30, 4)],
    end: 0x4000,
};

const MMIO: Layout = Layout {
    driver_features_select: (0x24, 4),
    driver_features: (0x20, 4),
    status: (0x70, 4),
    queue_select: (0x30, 4),
    queue_size: (0x38, 4),
    queue_vector: (0, 0),
    queue_ready: (0x44, 4),
    addresses: [(0x80, 4), (0x90, 4), (0xa0, 4)],
    end: 0x200,
};

/// What the registers belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pci,
    Mmio,
    Slot,
}

impl Kind {
    fn choose(input: &mut Input<'_>) -> Self {
        static HAS_KVM: LazyLock<bool> = LazyLock::new(|| {
            let has_kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
            if !has_kvm {
                eprintln!("SKIPPED: PCI configuration space and MSI-X: cannot open /dev/kvm");
            }
            has_kvm
        });
        match input.below(4) {
            0 | 2 => Kind::Mmio,
            3 if *HAS_KVM => Kind::Slot,
            _ => Kind::Pci,
        }
    }
}

/// A device behind the registers of either transport.
enum Registers {
    /// With all of what is around them on the bus.
    Slot(PciSlot),
    Pci(PciTransport),
    Mmio(MmioTransport),
}

impl Registers {
    fn new(kind: Kind, memory: &GuestMemory) -> Self {
        let (backend, _) = disk::empty(Behaviour::Deferred);
        let stats = StatsSegment::anonymous(QUEUES).expect("statistics");
        thread_local! {
            static WORKER: OnceCell<Worker> = const { OnceCell::new() };
        }
        let worker = WORKER.with(|worker| {
            worker.get_or_init(|| Worker::spawn("fuzz", None, IdlePolicy::Adaptive).expect("a worker")).handle()
        });
        let mut options = options("blk0", QUEUES, &[worker]);
        options.queues.size = QUEUE_SIZE;
        let device = VirtioDevice::new(Box::new(Blk::new(options, backend, &stats)), memory.clone()).expect("a device");
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an event"));
        if kind == Kind::Mmio {
            return Registers::Mmio(MmioTransport::new(device, event()));
        }
        let vectors: Vec<_> = (0..=QUEUES).map(|_| event()).collect();
        let transport = PciTransport::new(device, vectors.clone()).expect("few queues");
        if kind == Kind::Pci {
            return Registers::Pci(transport);
        }
        Registers::Slot(PciSlot::new(transport, &vectors, memory).expect("KVM, which is there"))
    }

    fn layout(&self) -> &'static Layout {
        match self {
            Registers::Pci(_) | Registers::Slot(_) => &PCI,
            Registers::Mmio(_) => &MMIO,
        }
    }

    fn kick(&self, queue: usize) {
        let device = match self {
            Registers::Slot(slot) => return slot.kick(queue),
            Registers::Pci(transport) => transport.device(),
            Registers::Mmio(transport) => transport.device(),
        };
        // Full means that it was kicked anyway.
        let _ = device.kick(queue).map(|kick| kick.write(1));
    }

    fn read(&mut self, offset: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        match self {
            Registers::Slot(slot) => slot.read_bar(offset, &mut data[..width]),
            Registers::Pci(transport) => transport.read_bar(offset, &mut data[..width]),
            Registers::Mmio(transport) => transport.read(offset, &mut data[..width]),
        }
        u64::from_le_bytes(data)
    }

    fn write(&mut self, (offset, width): (u64, usize), value: u64) {
        let data = &value.to_le_bytes()[..width];
        match self {
            _ if width == 0 => {}
            Registers::Slot(slot) => slot.write_bar(offset, data),
            Registers::Pci(transport) => transport.write_bar(offset, data),
            Registers::Mmio(transport) => transport.write(offset, data),
        }
    }

    /// Says where a queue is and, if it is to be `ready`, that it is.
    fn describe_queue(&mut self, index: usize, config: QueueConfig, ready: bool) {
        let layout = self.layout();
        self.write(layout.queue_select, index as u64);
        self.write(layout.queue_size, config.size.into());
        self.write(layout.queue_vector, index as u64);
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
        for status in [0, 1, 3] {
            self.write(layout.status, status);
        }
        for half in [0, 1] {
            self.write(layout.driver_features_select, half);
            self.write(layout.driver_features, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(layout.status, 11);
    }
}

/// Accesses registers as the input says, and then starts the device as an honest driver does.
///
/// # Panics
/// The device does not work after that.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = GuestMemory::create(&[(0, BlkDriver::bytes(QUEUE_SIZE, DEPTH))], None).expect("memory");
    let mut registers = Registers::new(Kind::choose(&mut input), &memory);
    if let Registers::Slot(slot) = &registers {
        slot.enable();
    }
    let config = BlkDriver::new(RingKind::Split, &memory, 0, QUEUE_SIZE, DEPTH, false).ring.config();
    for _ in 0..ACCESSES_MAX {
        if input.is_empty() {
            break;
        }
        access(&mut registers, &mut input, config);
    }
    drive(&mut registers, &memory);
}

/// One access, or some of those that belong together, for few inputs would hit upon a whole start.
fn access(registers: &mut Registers, input: &mut Input<'_>, config: QueueConfig) {
    let layout = registers.layout();
    let width = 1 << input.below(4);
    if let Registers::Slot(slot) = registers
        && input.flag()
    {
        return access_slot(slot, input, width);
    }
    match input.below(8) {
        0 => drop(registers.read(u64::from(input.half()) % layout.end, width)),
        1 => registers.write((u64::from(input.half()) % layout.end, width), input.long()),
        // Where the registers are, most of which have 4 bytes.
        2 => registers.write((u64::from(input.byte()), 4), input.word().into()),
        3 => drop(registers.read(u64::from(input.byte()) & !3, 4)),
        4 => registers.write(layout.status, input.choose(&[0, 1, 3, 11, 15, 0x80, 0xff, 7])),
        5 => {
            let features = 1 << VIRTIO_F_VERSION_1 | input.long();
            registers.negotiate(features);
        }
        6 => {
            let mut config = config;
            config.size = input.choose(&[QUEUE_SIZE, 1, 3, 0x8000]);
            config.driver_area = config.driver_area.wrapping_add(u64::from(input.choose(&[0u8, 0, 1, 2])));
            let (index, ready) = (input.below(QUEUES + 1), input.flag());
            registers.describe_queue(index, config, ready);
        }
        _ => registers.kick(input.below(QUEUES)),
    }
}

/// An access to configuration space, or to the MSI-X table in the BAR.
fn access_slot(slot: &PciSlot, input: &mut Input<'_>, width: usize) {
    let mut data = [0; 8];
    match input.below(6) {
        0 => slot.read_config(input.byte().into(), &mut data[..width]),
        // The command register, the BAR, all ones to ask for its size included, and the capabilities.
        1 => slot.write_config(0x04, &[input.byte(), 0]),
        2 => slot.write_config(0x10, &input.choose(&[u32::MAX, 0, 0xc000_8000, 0xc001_0000]).to_le_bytes()),
        3 => slot.write_config(input.byte().into(), &input.long().to_le_bytes()[..width]),
        4 => slot.write_bar(MSIX_TABLE_OFFSET + u64::from(input.byte()), &input.long().to_le_bytes()[..width]),
        _ => slot.read_bar(MSIX_TABLE_OFFSET + u64::from(input.half()) % 0x4000, &mut data[..width]),
    }
}

/// A driver that follows the rules, from the reset to the end of a read.
fn drive(registers: &mut Registers, memory: &GuestMemory) {
    if let Registers::Slot(slot) = registers {
        slot.enable();
    }
    registers.negotiate(1 << VIRTIO_F_VERSION_1);
    let mut driver = BlkDriver::new(RingKind::Split, memory, 0, QUEUE_SIZE, DEPTH, false);
    let layout = registers.layout();
    registers.describe_queue(0, driver.ring.config(), true);
    registers.write(layout.status, 15);
    let status = registers.read(layout.status.0, layout.status.1);
    assert_eq!(status & u64::from(STATUS_NEEDS_RESET), 0, "an honest driver starts the device");
    assert_eq!(status, 15, "the status is what the driver has set");
    driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    registers.kick(0);
    let finished = wait_for("a read", || driver.pop());
    assert_eq!((finished.status, finished.data.len()), (OK, 512));
    registers.write(layout.status, 0);
}
