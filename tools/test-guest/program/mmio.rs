//! The device as an MMIO block (virtio 1.3, 4.2).
use crate::{
    check,
    features::FEATURES,
    low::{open_line, read, write},
    ring,
};

pub struct Mmio(u64);

impl Mmio {
    pub fn start(address: u64, line: u32) -> Mmio {
        let mmio = Mmio(address);
        check!(mmio.get(0) == u32::from_le_bytes(*b"virt"), mmio.get(0));
        check!(mmio.get(4) == 2 && mmio.get(8) == 2, mmio.get(8));
        open_line(line);
        mmio.reset();
        mmio.set(0x70, 1);
        mmio.set(0x70, 3);
        for page in 0..2 {
            mmio.set(0x14, page);
            mmio.set(0x24, page);
            mmio.set(0x20, mmio.get(0x10) & (FEATURES >> (32 * page)) as u32);
        }
        mmio.set(0x70, 11);
        check!(mmio.get(0x70) == 11, mmio.get(0x70));
        mmio.set(0x30, 0);
        check!(mmio.get(0x34) >= ring::SIZE as u32, mmio.get(0x34));
        mmio.set(0x38, ring::SIZE as u32);
        for (register, part) in [(0x80, ring::DESCRIPTORS), (0x90, ring::AVAILABLE), (0xa0, ring::USED)] {
            mmio.set(register, part as u32);
            mmio.set(register + 4, (part >> 32) as u32);
        }
        mmio.set(0x44, 1);
        mmio.set(0x70, 15);
        check!(mmio.get(0x70) == 15, mmio.get(0x70));
        mmio
    }

    pub fn reset(&self) {
        self.set(0x70, 0);
        check!(self.get(0x70) == 0, self.get(0x70));
    }

    pub fn capacity(&self) -> u64 {
        self.get(0x100) as u64 | (self.get(0x104) as u64) << 32
    }

    pub fn notify(&self) {
        self.set(0x50, 0);
    }

    /// Takes the interrupt's causes.
    pub fn acknowledge(&self) {
        let causes = self.get(0x60);
        self.set(0x64, causes);
    }

    fn get(&self, offset: u64) -> u32 {
        read(self.0 + offset)
    }

    fn set(&self, offset: u64, value: u32) {
        write(self.0 + offset, value);
    }
}
