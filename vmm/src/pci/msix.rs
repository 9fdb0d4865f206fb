//! MSI-X: the table of messages, the pending bits, and the irqfds behind them (PCI 3.0, 6.8.2).
//!
//! Each vector has an eventfd. While the vector is unmasked the eventfd is an irqfd: a signal becomes an interrupt
//! without this process. While it is masked, the eventfd has no reader and keeps the signal, which is the pending bit;
//! KVM looks at it when it becomes an irqfd again and delivers what was pending.
use crate::irq::{InterruptRouter, Message};
use pollux_core::{event::InterruptState, transport::VirtioDevice};
use std::{os::fd::AsRawFd, sync::Arc};
use vmm_sys_util::eventfd::EventFd;

/// Capability ID of MSI-X.
const CAPABILITY_MSIX: u8 = 0x11;
/// Bytes of a table entry: address (8), data (4), control (4).
const ENTRY_BYTES: u64 = 16;
/// Bit of a table entry's control word.
const CONTROL_MASKED: u32 = 1 << 0;
/// Bits of the capability's message control word.
const MESSAGE_ENABLE: u16 = 1 << 15;
const MESSAGE_FUNCTION_MASK: u16 = 1 << 14;

/// Offset of the message control word in the capability, and which of its bits a guest may write.
pub(super) const MESSAGE_CONTROL: usize = 2;
pub(super) const MESSAGE_CONTROL_WRITABLE: u16 = MESSAGE_ENABLE | MESSAGE_FUNCTION_MASK;

/// The MSI-X capability of a function with `vectors` vectors, table and pending bits being in BAR `bar`.
pub(super) fn capability(vectors: usize, bar: u8, table: u32, pending: u32) -> Vec<u8> {
    let mut bytes = vec![CAPABILITY_MSIX, 0];
    bytes.extend((vectors as u16 - 1).to_le_bytes());
    bytes.extend((table | u32::from(bar)).to_le_bytes());
    bytes.extend((pending | u32::from(bar)).to_le_bytes());
    bytes
}

struct Vector {
    event: Arc<EventFd>,
    gsi: u32,
    /// The table entry as four words: address low and high, data, control.
    entry: [u32; 4],
    /// Whether `event` is an irqfd now.
    connected: bool,
}

/// The MSI-X state of one function.
pub(super) struct Msix {
    router: Arc<InterruptRouter>,
    vectors: Vec<Vector>,
    control: u16,
    /// Whether the function may send messages, which are writes to memory (PCI 3.0, 6.2.2 and 6.8.2).
    is_bus_master: bool,
    /// The device, which outlives the runs of the machine: its budget of log lines and its name.
    interrupts: Arc<InterruptState>,
    name: String,
}

impl Msix {
    /// All vectors masked, MSI-X off, and no bus master. `None` when the machine has no more interrupt numbers.
    pub(super) fn new(router: Arc<InterruptRouter>, events: &[Arc<EventFd>], device: &VirtioDevice) -> Option<Msix> {
        let mut vectors = Vec::with_capacity(events.len());
        for event in events {
            // A signal from before a reset does not concern the new driver.
            let _ = event.read();
            let gsi = router.allocate()?;
            let entry = [0, 0, 0, CONTROL_MASKED];
            vectors.push(Vector { event: event.clone(), gsi, entry, connected: false });
        }
        let (interrupts, name) = (device.interrupts().clone(), device.name().to_owned());
        Some(Msix { router, vectors, control: 0, is_bus_master: false, interrupts, name })
    }

    /// The guest wrote the message control word.
    pub(super) fn set_control(&mut self, control: u16) {
        if self.control != control {
            self.control = control;
            self.update_all();
        }
    }

    /// Whether the function may send messages.
    pub(super) fn is_bus_master(&self) -> bool {
        self.is_bus_master
    }

    /// The guest allows the function to send messages, or forbids it: its messages then stay pending.
    pub(super) fn set_bus_master(&mut self, enabled: bool) {
        self.is_bus_master = enabled;
        self.update_all();
    }

    fn update_all(&mut self) {
        (0..self.vectors.len()).for_each(|index| self.update(index));
    }

    /// The guest reads the table. Accesses are of 4 or 8 aligned bytes (PCI 3.0, 6.8.2); others read zero.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_table_access(offset, data.len()) {
            return;
        }
        for (index, word) in data.chunks_exact_mut(4).enumerate() {
            let (vector, at) = locate(offset + index as u64 * 4);
            if let Some(vector) = self.vectors.get(vector) {
                word.copy_from_slice(&vector.entry[at].to_le_bytes());
            }
        }
    }

    /// The guest writes the table.
    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !is_table_access(offset, data.len()) {
            return;
        }
        for (index, word) in data.chunks_exact(4).enumerate() {
            let (vector, at) = locate(offset + index as u64 * 4);
            if let Some(slot) = self.vectors.get_mut(vector) {
                slot.entry[at] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                self.update(vector);
            }
        }
    }

    /// The guest reads the pending bits, one per vector.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + index).saturating_mul(8);
            *byte = (0..8).filter(|bit| self.is_pending(first + bit)).fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    fn is_pending(&self, index: usize) -> bool {
        self.vectors.get(index).is_some_and(|vector| !vector.connected && is_signalled(&vector.event))
    }

    /// Brings the irqfd of a vector in line with the registers.
    fn update(&mut self, index: usize) {
        let on = self.is_bus_master && self.control & (MESSAGE_ENABLE | MESSAGE_FUNCTION_MASK) == MESSAGE_ENABLE;
        let vector = &mut self.vectors[index];
        let wanted = on && vector.entry[3] & CONTROL_MASKED == 0;
        let result = if wanted {
            vector.connect(&self.router)
        } else if vector.connected {
            vector.connected = false;
            self.router.disconnect(vector.gsi, &vector.event)
        } else {
            Ok(())
        };
        if let Err(error) = result
            && self.interrupts.may_log(&self.name)
        {
            // What the guest wrote makes no sense to KVM; the vector stays silent, as it would on a real machine.
            tracing::warn!(device = self.name, vector = index, %error, "cannot deliver an MSI-X vector");
        }
    }
}

impl Vector {
    fn connect(&mut self, router: &InterruptRouter) -> Result<(), vmm_sys_util::errno::Error> {
        let [low, high, data, _] = self.entry;
        router.set_message(self.gsi, Message { address: u64::from(high) << 32 | u64::from(low), data })?;
        if !self.connected {
            router.connect(self.gsi, &self.event)?;
            self.connected = true;
        }
        Ok(())
    }
}

fn is_table_access(offset: u64, length: usize) -> bool {
    (length == 4 || length == 8) && offset.is_multiple_of(length as u64)
}

/// Which vector, and which word of its entry.
fn locate(offset: u64) -> (usize, usize) {
    ((offset / ENTRY_BYTES) as usize, (offset % ENTRY_BYTES / 4) as usize)
}

/// Whether the eventfd holds a signal. Looks without taking it.
fn is_signalled(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one whole pollfd.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}
