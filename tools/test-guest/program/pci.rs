//! The device as a PCI function (virtio 1.3, 4.1).
use crate::{
    check,
    features::FEATURES,
    low::{VECTOR, read, write},
    ring,
};

const ECAM: u64 = 0xe000_0000;
const VENDOR: u16 = 0x1af4;
const BLOCK_DEVICE: u16 = 0x1042;
/// The vector of queue 0; vector 0 is for configuration changes.
const QUEUE_VECTOR: u16 = 1;

/// Bits of the command register: answer in the BAR, be a bus master.
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

pub struct Pci {
    function: u64,
    common: u64,
    device: u64,
    notify: u64,
    table: u64,
    pending: u64,
}

impl Pci {
    pub fn start(number: u64) -> Pci {
        let function = ECAM + (number << 15);
        check!(read::<u16>(function) == VENDOR, read::<u16>(function));
        check!(read::<u16>(function + 2) == BLOCK_DEVICE, read::<u16>(function + 2));
        write(function + 4, COMMAND_MEMORY | COMMAND_BUS_MASTER);
        let bar = (read::<u32>(function + 0x10) & !0xf) as u64;
        let mut pci = Pci { function, common: 0, device: 0, notify: 0, table: 0, pending: 0 };
        let mut multiplier = 0u64;
        let mut at = read::<u8>(function + 0x34) as u64;
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let capability = function + at;
            match (read::<u8>(capability), read::<u8>(capability + 3)) {
                (0x09, 1) => pci.common = bar + read::<u32>(capability + 8) as u64,
                (0x09, 2) => {
                    pci.notify = bar + read::<u32>(capability + 8) as u64;
                    multiplier = read::<u32>(capability + 16) as u64;
                }
                (0x09, 4) => pci.device = bar + read::<u32>(capability + 8) as u64,
                (0x11, _) => {
                    pci.table = bar + (read::<u32>(capability + 4) & !7) as u64;
                    pci.pending = bar + (read::<u32>(capability + 8) & !7) as u64;
                    // MSI-X on.
                    write(capability + 2, 0x8000u16);
                }
                _ => {}
            }
            at = read::<u8>(capability + 1) as u64;
        }
        check!(pci.common != 0 && pci.device != 0 && pci.notify != 0 && pci.table != 0, bar);
        pci.set_up();
        pci.notify += read::<u16>(pci.common + 30) as u64 * multiplier;
        write(pci.common + 20, 15u8);
        check!(read::<u8>(pci.common + 20) == 15, read::<u8>(pci.common + 20));
        pci
    }

    fn set_up(&self) {
        let entry = self.table + 16 * QUEUE_VECTOR as u64;
        write(entry, 0xfee0_0000u32);
        write(entry + 4, 0u32);
        write(entry + 8, VECTOR);
        write(entry + 12, 0u32);
        self.reset();
        write(self.common + 20, 1u8);
        write(self.common + 20, 3u8);
        for page in 0..2u32 {
            write(self.common, page);
            write(self.common + 8, page);
            let offered: u32 = read(self.common + 4);
            write(self.common + 12, offered & (FEATURES >> (32 * page)) as u32);
        }
        write(self.common + 20, 11u8);
        check!(read::<u8>(self.common + 20) == 11, read::<u8>(self.common + 20));
        write(self.common + 22, 0u16);
        write(self.common + 24, ring::SIZE);
        write(self.common + 26, QUEUE_VECTOR);
        check!(read::<u16>(self.common + 26) == QUEUE_VECTOR, 0);
        write(self.common + 32, ring::DESCRIPTORS);
        write(self.common + 40, ring::AVAILABLE);
        write(self.common + 48, ring::USED);
        write(self.common + 28, 1u16);
    }

    pub fn reset(&self) {
        write(self.common + 20, 0u8);
        check!(read::<u8>(self.common + 20) == 0, read::<u8>(self.common + 20));
    }

    pub fn capacity(&self) -> u64 {
        read(self.device)
    }

    pub fn notify(&self) {
        write(self.notify, 0u16);
    }

    /// Lets the device access memory, or not.
    pub fn set_bus_master(&self, enabled: bool) {
        let command = COMMAND_MEMORY | if enabled { COMMAND_BUS_MASTER } else { 0 };
        write(self.function + 4, command);
        check!(read::<u16>(self.function + 4) == command, read::<u16>(self.function + 4));
    }

    pub fn mask(&self, masked: bool) {
        write(self.table + 16 * QUEUE_VECTOR as u64 + 12, masked as u32);
    }

    pub fn is_pending(&self) -> bool {
        read::<u64>(self.pending) >> QUEUE_VECTOR & 1 != 0
    }
}
