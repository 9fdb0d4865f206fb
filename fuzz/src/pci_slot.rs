//! A virtio device in a PCI slot, as the accesses of vCPUs reach it: configuration space, BAR, MSI-X. There is no vCPU.
use kvm_ioctls::Kvm;
use pollux_core::{
    memory::GuestMemory,
    transport::pci::{PciTransport, notify_offset},
};
use pollux_vmm::{
    bus::BusDevice,
    irq::InterruptRouter,
    layout::PCI_WINDOW_START,
    pci::{Ecam, PciBus, VirtioFunction, Window, bar_address},
    vm::Vm,
};
use std::{
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
};
use vmm_sys_util::eventfd::EventFd;

/// The place on the bus.
const PLACE: usize = 1;
/// Offsets in configuration space (PCI 3.0, 6.1).
const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
/// Bits of the command register: the BAR answers, the device may access memory.
const COMMAND_MEMORY_AND_BUS_MASTER: u16 = 1 << 1 | 1 << 2;

/// The slot, and the machine around it.
pub(crate) struct PciSlot {
    ecam: Ecam,
    window: Window,
    transport: Arc<Mutex<PciTransport>>,
    // For its destructor.
    _vm: Vm,
}

impl PciSlot {
    /// Puts a device that signals `vectors` into a machine with this memory, as it is after power-on.
    ///
    /// # Errors
    /// There is no KVM, or it cannot do that.
    pub(crate) fn new(
        transport: PciTransport,
        vectors: &[Arc<EventFd>],
        memory: &GuestMemory,
    ) -> Result<PciSlot, Box<dyn Error>> {
        let vm = Vm::new(&Kvm::new()?, memory).map_err(io::Error::from)?;
        let router = Arc::new(InterruptRouter::new(vm.fd().clone()).map_err(io::Error::from)?);
        let transport = Arc::new(Mutex::new(transport));
        let function = VirtioFunction::new(vm.fd(), &router, transport.clone(), vectors, bar_address(PLACE))?;
        let mut bus = PciBus::new();
        bus.insert(PLACE, Arc::new(function));
        let bus = Arc::new(bus);
        Ok(PciSlot { ecam: Ecam(bus.clone()), window: Window(bus), transport, _vm: vm })
    }

    /// The guest reads the device's configuration space.
    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.ecam.read((PLACE as u64) << 15 | offset & 0xfff, data);
    }

    /// The guest writes the device's configuration space.
    pub(crate) fn write_config(&self, offset: u64, data: &[u8]) {
        self.ecam.write((PLACE as u64) << 15 | offset & 0xfff, data);
    }

    /// The guest reads where firmware has put the BAR.
    pub(crate) fn read_bar(&self, offset: u64, data: &mut [u8]) {
        self.window.read(u64::from(bar_address(PLACE)) - PCI_WINDOW_START + offset, data);
    }

    /// The guest writes there.
    pub(crate) fn write_bar(&self, offset: u64, data: &[u8]) {
        self.window.write(u64::from(bar_address(PLACE)) - PCI_WINDOW_START + offset, data);
    }

    /// The guest notifies the device of a queue.
    pub(crate) fn kick(&self, queue: usize) {
        self.write_bar(notify_offset(queue), &(queue as u16).to_le_bytes());
    }

    /// What firmware and a driver do before they use the device: the BAR is where firmware puts it, and answers.
    pub(crate) fn enable(&self) {
        self.write_config(BAR0, &bar_address(PLACE).to_le_bytes());
        self.write_config(COMMAND, &COMMAND_MEMORY_AND_BUS_MASTER.to_le_bytes());
    }
}

impl Drop for PciSlot {
    fn drop(&mut self) {
        // As the machine does before its memory goes.
        self.transport.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }
}
