//! The configuration space of a PCI function: bytes, and which bits of them a guest may write (PCI 3.0, chapter 6).

/// Bytes that every function has; the rest of the 4 KiB that PCI Express gives it reads as zero, which says that there
/// are no extended capabilities.
const BYTES: usize = 256;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
/// Registers that only store what software writes to them.
const INTERRUPT_LINE: usize = 0x3c;
/// The first byte behind the header.
const HEADER_END: usize = 0x40;

/// Command register: the function answers in its BARs.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may access memory itself.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command register: no interrupt pin; without effect, as there is none.
const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
/// Status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) subsystem_vendor: u16,
    pub(super) subsystem: u16,
    pub(super) revision: u8,
    /// Base class, subclass, programming interface.
    pub(super) class: [u8; 3],
}

/// The configuration space of one function.
pub(super) struct ConfigSpace {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    /// Size of the one memory BAR; 0 for none.
    bar_bytes: u32,
    /// Where the next capability goes, and the pointer that is to lead to it.
    next_capability: usize,
    last_pointer: usize,
}

impl ConfigSpace {
    pub(super) fn new(identity: Identity) -> ConfigSpace {
        let mut config = ConfigSpace {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bar_bytes: 0,
            next_capability: HEADER_END,
            last_pointer: CAPABILITIES,
        };
        config.put(VENDOR_ID, &identity.vendor.to_le_bytes());
        config.put(DEVICE_ID, &identity.device.to_le_bytes());
        config.put(REVISION, &[identity.revision]);
        let [base, sub, interface] = identity.class;
        config.put(CLASS, &[interface, sub, base]);
        config.put(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTERRUPT_DISABLE;
        config.allow(COMMAND, &command.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Gives the function a 32-bit memory BAR 0 at `address`, which firmware would have chosen, and has it answer
    /// there. `bytes` is a power of two of at least 16; the guest may move the BAR.
    pub(super) fn set_bar(&mut self, address: u32, bytes: u32) {
        assert!(bytes.is_power_of_two() && bytes >= 16 && address.is_multiple_of(bytes));
        self.bar_bytes = bytes;
        self.put(BAR0, &address.to_le_bytes());
        // Bits below the size stay zero: that is how software finds the size (PCI 3.0, 6.2.5.1).
        self.allow(BAR0, &(!(bytes - 1)).to_le_bytes());
        self.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }

    /// Adds a capability, whose next pointer is filled in here; returns its offset.
    pub(super) fn add_capability(&mut self, capability: &[u8]) -> usize {
        let at = self.next_capability;
        assert!(at + capability.len() <= BYTES, "capabilities outgrew the configuration space");
        self.put(at, capability);
        self.put(at + 1, &[0]);
        self.put(self.last_pointer, &[at as u8]);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_pointer = at + 1;
        self.next_capability = (at + capability.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest write the bits that are set in `mask`, from `offset` on.
    pub(super) fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Sets bytes regardless of what the guest may write.
    pub(super) fn put(&mut self, offset: usize, data: &[u8]) {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// The guest reads.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(0);
        }
    }

    /// The guest writes.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            let at = offset + index;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }

    /// Four bytes as a number.
    pub(super) fn u32_at(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Whether the function may access memory itself (PCI 3.0, 6.2.2). It may not until its driver allows it.
    pub(super) fn is_bus_master(&self) -> bool {
        self.u32_at(COMMAND) as u16 & COMMAND_BUS_MASTER != 0
    }

    /// Where the BAR answers, if it does.
    pub(super) fn bar_address(&self) -> Option<u64> {
        let command = self.u32_at(COMMAND) as u16;
        (self.bar_bytes > 0 && command & COMMAND_MEMORY != 0).then(|| u64::from(self.u32_at(BAR0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ConfigSpace {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
            revision: 1,
            class: [0x01, 0x80, 0x00],
        });
        config.set_bar(0xc000_8000, 0x8000);
        config
    }

    #[test]
    fn identity_is_read_only() {
        let mut config = config();
        config.write(0, &[0xff; 16]);
        assert_eq!(config.u32_at(0), 0x1042_1af4);
        assert_eq!(config.u32_at(8), 0x0180_0001);
        assert_eq!(config.u32_at(0x2c), 0x0040_1af4);
    }

    #[test]
    fn the_bar_is_sized_and_moved_by_writing_it() {
        let mut config = config();
        assert_eq!(config.bar_address(), Some(0xc000_8000));
        config.write(BAR0, &[0xff; 4]);
        assert_eq!(config.u32_at(BAR0), 0xffff_8000);
        config.write(BAR0, &0xc010_0000u32.to_le_bytes());
        assert_eq!(config.bar_address(), Some(0xc010_0000));
        config.write(COMMAND, &[0, 0]);
        assert_eq!(config.bar_address(), None);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = config();
        let first = config.add_capability(&[0x09, 0xaa, 3]);
        let second = config.add_capability(&[0x11, 0, 0, 0]);
        assert_eq!((first, second), (0x40, 0x44));
        assert_eq!(config.u32_at(CAPABILITIES) & 0xff, 0x40);
        assert_eq!(config.u32_at(first) & 0xffff, 0x4409);
        assert_eq!(config.u32_at(second) & 0xffff, 0x0011);
        assert_ne!(config.u32_at(COMMAND) >> 16 & 0x10, 0);
    }

    #[test]
    fn extended_space_reads_zero() {
        let mut config = config();
        config.write(0x100, &[0xff; 8]);
        config.write(0xfff, &[0xff; 8]);
        let mut data = [0xff; 8];
        config.read(0xfc, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
