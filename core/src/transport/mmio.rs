//! virtio over MMIO, version 2 (virtio 1.3, 4.2.2): one block of registers, as a map onto [`VirtioDevice`].
//!
//! Nothing here knows a hypervisor. A guest may access any register with any size at any time; what makes no sense
//! reads as zero and is ignored when written.
use super::{DeviceHandle, VirtioDevice, handle::Place, served::Served};
use crate::{event::Notifier, memory::GuestMemory};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use vmm_sys_util::eventfd::EventFd;

/// Size of the register block in bytes, configuration space included.
pub const REGISTERS_BYTES: u64 = 0x1000;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Of no meaning to drivers.
const VENDOR: u32 = u32::from_le_bytes(*b"PLLX");

/// Registers by offset (virtio 1.3, table 4.1).
mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub(super) const QUEUE_SELECT: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHARED_MEMORY_LENGTH_LOW: u64 = 0x0b0;
    pub(super) const SHARED_MEMORY_BASE_HIGH: u64 = 0x0bc;
    pub(super) const QUEUE_RESET: u64 = 0x0c0;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Offset of the register that the driver writes a queue's index to: where to register the queues' kicks, each with its
/// index as the 32-bit value to match.
pub const NOTIFY_OFFSET: u64 = register::QUEUE_NOTIFY;

/// A virtio device behind a block of MMIO registers.
#[derive(Debug)]
pub struct MmioTransport {
    device: VirtioDevice,
    /// The device's one interrupt line, for used buffers and configuration changes alike.
    line: Arc<EventFd>,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
}

impl MmioTransport {
    /// Puts registers in front of `device`. The machine turns `line` into the device's interrupt.
    pub fn new(device: VirtioDevice, line: Arc<EventFd>) -> MmioTransport {
        device.interrupts().set_config_event(Some(line.clone()));
        MmioTransport { device, line, device_features_select: 0, driver_features_select: 0, queue_select: 0 }
    }

    /// The verbs of the device, for the program that runs it.
    pub fn handle(this: &Arc<Mutex<Self>>) -> DeviceHandle {
        let name = this.lock().unwrap_or_else(PoisonError::into_inner).device.name().to_owned();
        let place: Weak<Mutex<Self>> = Arc::downgrade(this);
        DeviceHandle::new(&name, place)
    }

    /// The device behind the registers.
    pub fn device(&self) -> &VirtioDevice {
        &self.device
    }

    /// Resets device and registers, as the machine's reset does. Returns when the data path is drained.
    pub fn reset(&mut self) {
        self.device.reset();
        self.device.interrupts().set_config_event(Some(self.line.clone()));
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
    }

    /// The driver reads `data.len()` bytes at `offset` of the block.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= register::CONFIG {
            self.device.read_config(offset - register::CONFIG, data);
        } else if data.len() == 4 {
            // All registers are 32 bits wide and accessed so (virtio 1.3, 4.2.2.2).
            self.device.settle();
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    /// The driver writes `data` at `offset` of the block.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            self.device.write_config(offset - register::CONFIG, data);
        } else if let Ok(value) = data.try_into() {
            self.write_register(offset, u32::from_le_bytes(value));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let device = &self.device;
        let queue = device.queue(self.queue_select as usize);
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => device.device_id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => device.device_features(self.device_features_select),
            // Zero says that the queue does not exist.
            register::QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            register::INTERRUPT_STATUS => device.interrupts().isr().into(),
            register::STATUS => device.status().into(),
            // There is no shared memory: all bits of length and base are ones (virtio 1.3, 4.2.2).
            register::SHARED_MEMORY_LENGTH_LOW..=register::SHARED_MEMORY_BASE_HIGH if offset.is_multiple_of(4) => {
                u32::MAX
            }
            // 1 while the reset is in progress (virtio 1.3, 4.2.2.1).
            register::QUEUE_RESET => device.is_queue_resetting(self.queue_select as usize).into(),
            register::CONFIG_GENERATION => device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            register::DRIVER_FEATURES => self.device.set_driver_features(self.driver_features_select, value),
            register::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            register::QUEUE_SELECT => self.queue_select = value,
            register::QUEUE_READY => self.write_ready(value),
            register::QUEUE_RESET if value == 1 => _ = self.device.reset_queue(self.queue_select as usize),
            register::QUEUE_NOTIFY => self.notify(value),
            register::INTERRUPT_ACKNOWLEDGE => self.device.interrupts().acknowledge_isr(value as u8),
            // The status has eight bits; others are reserved.
            register::STATUS => match value as u8 {
                0 => self.reset(),
                status => self.device.set_status(status),
            },
            _ => self.write_queue(offset, value),
        }
    }

    /// The registers of the selected queue, unless it is ready.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.device.queue_mut(self.queue_select as usize) else { return };
        match offset {
            // No queue can have a size that does not fit into 16 bits.
            register::QUEUE_SIZE => queue.set_size(value.try_into().unwrap_or(0)),
            register::QUEUE_DESC_LOW => queue.set_descriptors(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_descriptors(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_driver_area(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_driver_area(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_device_area(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_device_area(None, Some(value)),
            _ => {}
        }
    }

    fn write_ready(&mut self, value: u32) {
        let index = self.queue_select as usize;
        // The driver asks the interrupt status register why the line was raised, so workers keep it.
        let notifier = Notifier::new(self.line.clone(), Some(self.device.interrupts().clone()));
        self.device.set_notifier(index, notifier);
        self.device.set_queue_ready(index, value & 1 != 0);
    }

    /// A notification that came as a register write instead of through the event at [`NOTIFY_OFFSET`].
    fn notify(&self, index: u32) {
        if let Some(kick) = self.device.kick(index as usize) {
            // Full means that the worker has been kicked anyway.
            let _ = kick.write(1);
        }
    }
}

impl Place for Mutex<MmioTransport> {
    fn with(&self, action: &mut dyn FnMut(&mut Served)) {
        action(self.lock().unwrap_or_else(PoisonError::into_inner).device.served_mut());
    }

    fn set_memory(&self, memory: &GuestMemory) -> Result<(), String> {
        self.lock().unwrap_or_else(PoisonError::into_inner).device.set_memory(memory)
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
