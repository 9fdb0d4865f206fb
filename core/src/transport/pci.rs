//! virtio over PCI, modern interface only (virtio 1.3, 4.1): the registers behind one BAR, as a map onto
//! [`VirtioDevice`].
//!
//! Nothing here knows a hypervisor. The machine puts [`PciTransport`] behind a PCI function, places
//! [`capabilities`] in its configuration space, and has the MSI-X table and its pending bits in the rest of the BAR.
//! A guest may access any register with any size at any time; what makes no sense reads as zero and is ignored when
//! written.
use super::{DeviceHandle, VirtioDevice, handle::Place, served::Served};
use crate::{event::Notifier, memory::GuestMemory};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use vmm_sys_util::eventfd::EventFd;

/// The BAR that holds all structures.
pub const BAR_INDEX: u8 = 0;
/// Size of the BAR in bytes, MSI-X included.
pub const BAR_BYTES: u64 = 0x8000;

/// Where the common configuration lies in the BAR. Each structure has pages of its own.
const COMMON_OFFSET: u64 = 0;
const COMMON_BYTES: usize = 64;
const ISR_OFFSET: u64 = 0x1000;
const DEVICE_OFFSET: u64 = 0x2000;
const DEVICE_BYTES: u64 = 0x1000;
const NOTIFY_OFFSET: u64 = 0x3000;
const NOTIFY_BYTES: u64 = 0x1000;
/// Bytes between the notification addresses of two queues, so that each can have an event of its own.
const NOTIFY_MULTIPLIER: u64 = 4;
/// The registers end here; the machine may use the BAR from here on.
pub const REGISTERS_END: u64 = 0x4000;
/// Where the MSI-X table lies in the BAR.
pub const MSIX_TABLE_OFFSET: u64 = 0x4000;
/// Where the MSI-X pending bits lie in the BAR.
pub const MSIX_PENDING_OFFSET: u64 = 0x7000;
/// Most vectors that a device can have: the room for the table.
pub const VECTORS_MAX: usize = ((MSIX_PENDING_OFFSET - MSIX_TABLE_OFFSET) / 16) as usize;
/// Most queues that a device can have: the room for notification addresses, and a vector each besides the one for
/// configuration changes.
pub const QUEUES_MAX: usize = VECTORS_MAX - 1;

/// Vendor of all virtio devices (virtio 1.3, 4.1.2).
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device IDs begin here; the virtio device ID is added (virtio 1.3, 4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;
/// A modern driver only requires it to be at least 0x40 (virtio 1.3, 4.1.2.1).
pub const SUBSYSTEM_ID: u16 = 0x40;
/// Revision of a device without legacy interface (virtio 1.3, 4.1.2.1).
pub const REVISION: u8 = 1;

/// Capability ID of vendor-specific data.
const CAPABILITY_VENDOR: u8 = 0x09;
/// Bytes of a virtio capability without what follows it in some types (virtio 1.3, 4.1.4).
const CAPABILITY_BYTES: u8 = 16;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI_ACCESS: u8 = 5;

/// Where the fields of the PCI configuration access capability lie in it (virtio 1.3, 4.1.4.9): which bytes of BAR
/// memory the driver wants to reach without mapping it, and the window to them.
pub mod pci_access {
    /// The BAR to access, one byte.
    pub const BAR: usize = 4;
    /// Offset in the BAR, four bytes.
    pub const OFFSET: usize = 8;
    /// Length of the access, four bytes: 1, 2 or 4.
    pub const LENGTH: usize = 12;
    /// The data, four bytes. Reading or writing it makes the access.
    pub const DATA: usize = 16;
    /// Length of the capability in bytes.
    pub const BYTES: usize = 20;
}

/// The virtio capabilities in the order of preference, each as its bytes with a next pointer of zero. The last is the
/// configuration access capability, whose fields the driver writes.
pub fn capabilities() -> Vec<Vec<u8>> {
    let notify = &(NOTIFY_MULTIPLIER as u32).to_le_bytes();
    vec![
        capability(TYPE_COMMON, COMMON_OFFSET, COMMON_BYTES as u64, &[]),
        capability(TYPE_NOTIFY, NOTIFY_OFFSET, NOTIFY_BYTES, notify),
        capability(TYPE_ISR, ISR_OFFSET, 1, &[]),
        capability(TYPE_DEVICE, DEVICE_OFFSET, DEVICE_BYTES, &[]),
        capability(TYPE_PCI_ACCESS, 0, 0, &[0; 4]),
    ]
}

/// struct virtio_pci_cap (virtio 1.3, 4.1.4) and what follows it.
fn capability(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let mut bytes = vec![CAPABILITY_VENDOR, 0, CAPABILITY_BYTES + extra.len() as u8, kind, BAR_INDEX, 0, 0, 0];
    bytes.extend((offset as u32).to_le_bytes());
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend(extra);
    bytes
}

/// Offset in the BAR of the address that the driver writes to notify a queue: where to register the queue's kick.
pub fn notify_offset(queue: usize) -> u64 {
    NOTIFY_OFFSET + queue as u64 * NOTIFY_MULTIPLIER
}

/// "No vector": the driver wants no interrupt, or the device has no vector to give (virtio 1.3, 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Fields of the common configuration structure (virtio 1.3, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const CONFIG_VECTOR: u64 = 16;
    pub(super) const NUM_QUEUES: usize = 18;
    pub(super) const DEVICE_STATUS: u64 = 20;
    pub(super) const CONFIG_GENERATION: usize = 21;
    pub(super) const QUEUE_SELECT: u64 = 22;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_VECTOR: u64 = 26;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
    pub(super) const QUEUE_RESET: u64 = 58;
}

/// A virtio device behind the registers of its PCI function.
#[derive(Debug)]
pub struct PciTransport {
    device: VirtioDevice,
    /// The event of each MSI-X vector; the machine turns it into an interrupt.
    vectors: Vec<Arc<EventFd>>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl PciTransport {
    /// Puts registers in front of `device`. `vectors` has the event of each MSI-X vector; one more than there are
    /// queues lets a driver use a separate one for each.
    ///
    /// # Errors
    /// More than [`QUEUES_MAX`] queues.
    pub fn new(device: VirtioDevice, vectors: Vec<Arc<EventFd>>) -> io::Result<PciTransport> {
        let queues = device.queue_count();
        if queues > QUEUES_MAX {
            let message = format!("{}: {queues} queues; on PCI at most {QUEUES_MAX} fit", device.name());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(PciTransport {
            device,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
        })
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

    /// The PCI device ID.
    pub fn device_id(&self) -> u16 {
        DEVICE_ID_BASE.wrapping_add(self.device.device_id() as u16)
    }

    /// The PCI class code, base class first: what a guest shows to its users and matches generic drivers by.
    pub fn class(&self) -> [u8; 3] {
        match self.device.device_id() {
            1 => [0x02, 0x00, 0x00],     // network controller, Ethernet
            2 | 8 => [0x01, 0x80, 0x00], // mass storage controller, other
            3 => [0x07, 0x80, 0x00],     // communication controller, other
            _ => [0xff, 0x00, 0x00],     // none of the defined classes
        }
    }

    /// Sets whether the function may access memory: its Bus Master Enable bit. It may if the machine has no such bit.
    /// Returns when that has taken effect, which takes as long as requests in flight do.
    pub fn set_bus_master(&mut self, enabled: bool) {
        self.device.set_bus_master(enabled);
    }

    /// Reports that the driver is gone whose rings were stopped by [`set_bus_master`](Self::set_bus_master): see
    /// [`VirtioDevice::abandon_rings`].
    pub fn abandon_rings(&mut self) {
        self.device.abandon_rings();
    }

    /// Resets device and registers, as the machine's reset does. Returns when the data path is drained.
    pub fn reset(&mut self) {
        self.device.reset();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.config_vector = NO_VECTOR;
        self.queue_vectors.fill(NO_VECTOR);
    }

    /// The driver reads `data.len()` bytes at `offset` of the BAR.
    pub fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON_OFFSET..ISR_OFFSET => {
                self.device.settle();
                let registers = self.common();
                let at = (offset - COMMON_OFFSET) as usize;
                for (byte, register) in data.iter_mut().zip(registers.iter().skip(at)) {
                    *byte = *register;
                }
            }
            // Reading it acknowledges the interrupt (virtio 1.3, 4.1.4.5.1).
            ISR_OFFSET if !data.is_empty() => data[0] = self.device.interrupts().take_isr(),
            DEVICE_OFFSET..NOTIFY_OFFSET => self.device.read_config(offset - DEVICE_OFFSET, data),
            _ => {}
        }
    }

    /// The driver writes `data` at `offset` of the BAR.
    pub fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON_OFFSET..ISR_OFFSET => self.write_common(offset - COMMON_OFFSET, data),
            DEVICE_OFFSET..NOTIFY_OFFSET => self.device.write_config(offset - DEVICE_OFFSET, data),
            NOTIFY_OFFSET..REGISTERS_END => self.notify((offset - NOTIFY_OFFSET) / NOTIFY_MULTIPLIER),
            _ => {}
        }
    }

    /// The common configuration as the driver reads it now.
    fn common(&self) -> [u8; COMMON_BYTES] {
        let mut registers = [0; COMMON_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| registers[offset..][..bytes.len()].copy_from_slice(bytes);
        let device = &self.device;
        put(common::DEVICE_FEATURE_SELECT as usize, &self.device_feature_select.to_le_bytes());
        put(common::DEVICE_FEATURE, &device.device_features(self.device_feature_select).to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT as usize, &self.driver_feature_select.to_le_bytes());
        put(common::DRIVER_FEATURE as usize, &device.driver_features(self.driver_feature_select).to_le_bytes());
        put(common::CONFIG_VECTOR as usize, &self.config_vector.to_le_bytes());
        put(common::NUM_QUEUES, &(device.queue_count() as u16).to_le_bytes());
        put(common::DEVICE_STATUS as usize, &[device.status()]);
        put(common::CONFIG_GENERATION, &[device.config_generation() as u8]);
        put(common::QUEUE_SELECT as usize, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (virtio 1.3, 4.1.4.3.1), and its other fields are zero, too.
        let index = usize::from(self.queue_select);
        if let Some(queue) = device.queue(index) {
            put(common::QUEUE_SIZE as usize, &queue.config().size.to_le_bytes());
            put(common::QUEUE_VECTOR as usize, &self.queue_vectors[index].to_le_bytes());
            put(common::QUEUE_ENABLE as usize, &u16::from(queue.ready()).to_le_bytes());
            put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(common::QUEUE_DESC as usize, &queue.config().descriptors.to_le_bytes());
            put(common::QUEUE_DRIVER as usize, &queue.config().driver_area.to_le_bytes());
            put(common::QUEUE_DEVICE as usize, &queue.config().device_area.to_le_bytes());
            // 1 while the reset is in progress (virtio 1.3, 4.1.4.3.1).
            put(common::QUEUE_RESET as usize, &u16::from(device.is_queue_resetting(index)).to_le_bytes());
        }
        registers
    }

    /// Writes one register. Only accesses of the register's own width count (virtio 1.3, 4.1.3.1); 64-bit ones may be
    /// written in halves.
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        match *data {
            [value] if offset == common::DEVICE_STATUS => self.write_status(value),
            [a, b] => self.write_common16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_common32(offset, u32::from_le_bytes([a, b, c, d])),
            [_, _, _, _, _, _, _, _] if offset >= common::QUEUE_DESC => {
                self.write_common(offset, &data[..4]);
                self.write_common(offset + 4, &data[4..]);
            }
            _ => {}
        }
    }

    fn write_common16(&mut self, offset: u64, value: u16) {
        let index = usize::from(self.queue_select);
        match offset {
            common::CONFIG_VECTOR => self.set_config_vector(value),
            common::QUEUE_SELECT => self.queue_select = value,
            common::QUEUE_SIZE => {
                if let Some(queue) = self.device.queue_mut(index) {
                    queue.set_size(value);
                }
            }
            common::QUEUE_VECTOR => self.set_queue_vector(index, value),
            // The driver must not write 0 (virtio 1.3, 4.1.4.3.2): ignored.
            common::QUEUE_ENABLE if value == 1 => self.device.set_queue_ready(index, true),
            common::QUEUE_RESET if value == 1 && self.device.reset_queue(index) => {
                self.queue_vectors[index] = NO_VECTOR;
            }
            _ => {}
        }
    }

    fn write_common32(&mut self, offset: u64, value: u32) {
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            common::DRIVER_FEATURE => self.device.set_driver_features(self.driver_feature_select, value),
            _ => self.write_queue_address(offset, value),
        }
    }

    fn write_queue_address(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.device.queue_mut(usize::from(self.queue_select)) else { return };
        const DESC_HIGH: u64 = common::QUEUE_DESC + 4;
        const DRIVER_HIGH: u64 = common::QUEUE_DRIVER + 4;
        const DEVICE_HIGH: u64 = common::QUEUE_DEVICE + 4;
        match offset {
            common::QUEUE_DESC => queue.set_descriptors(Some(value), None),
            DESC_HIGH => queue.set_descriptors(None, Some(value)),
            common::QUEUE_DRIVER => queue.set_driver_area(Some(value), None),
            DRIVER_HIGH => queue.set_driver_area(None, Some(value)),
            common::QUEUE_DEVICE => queue.set_device_area(Some(value), None),
            DEVICE_HIGH => queue.set_device_area(None, Some(value)),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
        } else {
            self.device.set_status(value);
        }
    }

    fn set_config_vector(&mut self, vector: u16) {
        let event = self.vectors.get(usize::from(vector)).cloned();
        // A vector that is not available reads back as "none" (virtio 1.3, 4.1.5.1.2.1).
        self.config_vector = if event.is_some() { vector } else { NO_VECTOR };
        self.device.interrupts().set_config_event(event);
    }

    fn set_queue_vector(&mut self, index: usize, vector: u16) {
        // A running queue keeps its vector: the driver reads back that the mapping was refused (virtio 1.3, 4.1.5.1.2).
        let runs = self.device.is_active() && self.device.queue(index).is_some_and(|queue| queue.ready());
        let Some(slot) = self.queue_vectors.get_mut(index).filter(|_| !runs) else { return };
        let event = self.vectors.get(usize::from(vector)).cloned();
        *slot = if event.is_some() { vector } else { NO_VECTOR };
        // With MSI-X the driver does not read the ISR register, so the worker need not write it (virtio 1.3, 4.1.4.5).
        let notifier = event.map_or_else(Notifier::silent, |event| Notifier::new(event, None));
        self.device.set_notifier(index, notifier);
    }

    /// A notification that came as a register write instead of through the event at [`notify_offset`].
    fn notify(&self, index: u64) {
        if let Some(kick) = self.device.kick(index as usize) {
            // Full means that the worker has been kicked anyway.
            let _ = kick.write(1);
        }
    }
}

impl Place for Mutex<PciTransport> {
    fn with(&self, action: &mut dyn FnMut(&mut Served)) {
        action(self.lock().unwrap_or_else(PoisonError::into_inner).device.served_mut());
    }

    fn set_memory(&self, memory: &GuestMemory) -> Result<(), String> {
        self.lock().unwrap_or_else(PoisonError::into_inner).device.set_memory(memory)
    }
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
