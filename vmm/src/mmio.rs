//! A virtio device on the memory bus (virtio-mmio), for one run of the machine.
use crate::{
    acpi,
    bus::BusDevice,
    layout::{MMIO_FIRST_LINE, MMIO_START, MMIO_STRIDE},
};
use kvm_ioctls::{IoEventAddress, VmFd};
use pollux_core::transport::mmio::{MmioTransport, NOTIFY_OFFSET};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::errno::Error as Errno;

/// Where the `index`th device lies, and its interrupt line.
pub(crate) fn place(index: usize) -> acpi::MmioDevice {
    acpi::MmioDevice { address: MMIO_START + index as u64 * MMIO_STRIDE, line: MMIO_FIRST_LINE + index as u32 }
}

/// The registers of one device.
pub(crate) struct VirtioMmio(Arc<Mutex<MmioTransport>>);

impl VirtioMmio {
    /// Makes a device whose registers are to be at `address`, and has KVM turn its notifications into events.
    pub(crate) fn new(vm: &VmFd, transport: Arc<Mutex<MmioTransport>>, address: u64) -> Result<VirtioMmio, Errno> {
        {
            let transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
            let device = transport.device();
            let notify = IoEventAddress::Mmio(address + NOTIFY_OFFSET);
            for (index, kick) in (0..).map_while(|index| device.kick(index).map(|kick| (index as u32, kick))) {
                vm.register_ioevent(kick, &notify, index)?;
            }
        }
        Ok(VirtioMmio(transport))
    }
}

impl BusDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}
