//! Any accesses to the registers of a device on PCI or MMIO, and to its configuration space and MSI-X table where there
//! is a KVM to make them with, among those of an honest driver.
use crate::{disk, input::Input, pci_slot::PciSlot};
use pollux_core::{
    device::blk::Blk,
    memory::GuestMemory,
    ring::{QueueConfig, RingKind},
    stats::StatsSegment,
    transport::{
        REGISTER_FEATURES, STATUS_NEEDS_RESET, VirtioDevice,
        mmio::MmioTransport,
        pci::{MSIX_TABLE_OFFSET, PciTransport},
    },
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, wait_for},
    disk::Behaviour,
    registers::{Layout, MMIO, PCI, Register, Registers},
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
enum Device {
    /// With all of what is around them on the bus.
    Slot(PciSlot),
    Pci(PciTransport),
    Mmio(MmioTransport),
}

impl Device {
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
            return Device::Mmio(MmioTransport::new(device, event()));
        }
        let vectors: Vec<_> = (0..=QUEUES).map(|_| event()).collect();
        let transport = PciTransport::new(device, vectors.clone()).expect("few queues");
        if kind == Kind::Pci {
            return Device::Pci(transport);
        }
        Device::Slot(PciSlot::new(transport, &vectors, memory).expect("KVM, which is there"))
    }

    fn kick(&self, queue: usize) {
        let device = match self {
            Device::Slot(slot) => return slot.kick(queue),
            Device::Pci(transport) => transport.device(),
            Device::Mmio(transport) => transport.device(),
        };
        // Full means that it was kicked anyway.
        let _ = device.kick(queue).map(|kick| kick.write(1));
    }
}

impl Registers for Device {
    fn layout(&self) -> &'static Layout {
        match self {
            Device::Pci(_) | Device::Slot(_) => &PCI,
            Device::Mmio(_) => &MMIO,
        }
    }

    fn read(&mut self, register: Register) -> u64 {
        match self {
            Device::Pci(transport) => Registers::read(transport, register),
            Device::Mmio(transport) => Registers::read(transport, register),
            Device::Slot(slot) => {
                let mut data = [0; 8];
                slot.read_bar(register.0, &mut data[..register.1]);
                u64::from_le_bytes(data)
            }
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        match self {
            Device::Pci(transport) => Registers::write(transport, register, value),
            Device::Mmio(transport) => Registers::write(transport, register, value),
            Device::Slot(slot) if register.1 > 0 => slot.write_bar(register.0, &value.to_le_bytes()[..register.1]),
            Device::Slot(_) => {}
        }
    }
}

/// Accesses registers as the input says, and then starts the device as an honest driver does.
///
/// # Panics
/// The device does not work after that.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = GuestMemory::create(&[(0, BlkDriver::bytes(QUEUE_SIZE, DEPTH))], None).expect("memory");
    let mut registers = Device::new(Kind::choose(&mut input), &memory);
    if let Device::Slot(slot) = &registers {
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
fn access(registers: &mut Device, input: &mut Input<'_>, config: QueueConfig) {
    let layout = registers.layout();
    let width = 1 << input.below(4);
    if let Device::Slot(slot) = registers
        && input.flag()
    {
        return access_slot(slot, input, width);
    }
    match input.below(8) {
        0 => _ = registers.read((u64::from(input.half()) % layout.end, width)),
        1 => registers.write((u64::from(input.half()) % layout.end, width), input.long()),
        // Where the registers are, most of which have 4 bytes.
        2 => registers.write((u64::from(input.byte()), 4), input.word().into()),
        3 => _ = registers.read((u64::from(input.byte()) & !3, 4)),
        4 => registers.write(layout.status, input.choose(&[0, 1, 3, 11, 15, 0x80, 0xff, 7])),
        5 => {
            // Mostly such that the device accepts them.
            let any = input.long();
            let may_be = if any >> 63 == 0 { REGISTER_FEATURES } else { u64::MAX };
            registers.negotiate(1 << VIRTIO_F_VERSION_1 | any & may_be);
        }
        6 => {
            let mut config = config;
            config.size = input.choose(&[QUEUE_SIZE, 1, 3, 0x8000]);
            config.driver_area = config.driver_area.wrapping_add(u64::from(input.choose(&[0u8, 0, 1, 2])));
            let (index, ready) = (input.below(QUEUES + 1), input.flag());
            registers.describe_queue(index, config, ready);
        }
        // A queue is reset, whether it runs or not, while others may have requests in flight.
        _ if input.below(4) == 3 => {
            registers.write(layout.queue_select, input.below(QUEUES + 1) as u64);
            registers.write(layout.queue_reset, input.choose(&[1, 1, 1, 0, 2]));
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
fn drive(registers: &mut Device, memory: &GuestMemory) {
    if let Device::Slot(slot) = registers {
        slot.enable();
    }
    registers.negotiate(1 << VIRTIO_F_VERSION_1);
    let mut driver = BlkDriver::new(RingKind::Split, memory, 0, QUEUE_SIZE, DEPTH, false);
    let layout = registers.layout();
    registers.describe_queue(0, driver.ring.config(), true);
    registers.write(layout.status, 15);
    let status = registers.read(layout.status);
    assert_eq!(status & u64::from(STATUS_NEEDS_RESET), 0, "an honest driver starts the device");
    assert_eq!(status, 15, "the status is what the driver has set");
    driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    registers.kick(0);
    let finished = wait_for("a read", || driver.pop());
    assert_eq!((finished.status, finished.data.len()), (OK, 512));
    registers.write(layout.status, 0);
}
