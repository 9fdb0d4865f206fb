//! A split virtqueue with event indices, driver side, for requests of three buffers.
use crate::low::{barrier, read, write};

pub const SIZE: u16 = 256;
pub const DESCRIPTORS: u64 = 0x100_0000;
pub const AVAILABLE: u64 = 0x100_1000;
pub const USED: u64 = 0x100_2000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const ENTRIES: u64 = SIZE as u64;

pub struct Ring {
    available: u16,
    published: u16,
    used: u16,
}

impl Ring {
    pub fn new() -> Ring {
        for address in (DESCRIPTORS..USED + 0x1000).step_by(8) {
            write(address, 0u64);
        }
        Ring { available: 0, published: 0, used: 0 }
    }

    /// Describes a request in the slot's three descriptors and makes it available; `write` says that the device writes
    /// the data.
    pub fn add(&mut self, slot: u16, header: u64, data: u64, bytes: u32, device_writes: bool, status: u64) {
        let first = slot * 3;
        let data_flags = if device_writes { NEXT | WRITE } else { NEXT };
        describe(first, header, 16, NEXT);
        describe(first + 1, data, bytes, data_flags);
        describe(first + 2, status, 1, WRITE);
        write(AVAILABLE + 4 + 2 * (self.available % SIZE) as u64, first);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was added. True: it wants to be notified.
    pub fn publish(&mut self) -> bool {
        let old = core::mem::replace(&mut self.published, self.available);
        // x86 keeps stores in order: the ring is filled before its index.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Release);
        write(AVAILABLE + 2, self.available);
        barrier();
        let event: u16 = read(USED + 4 + 8 * ENTRIES);
        self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
    }

    /// The slot of the next request that the device has finished.
    pub fn pop(&mut self) -> Option<u16> {
        let index: u16 = read(USED + 2);
        if index == self.used {
            return None;
        }
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
        let head: u32 = read(USED + 4 + 8 * (self.used % SIZE) as u64);
        self.used = self.used.wrapping_add(1);
        Some(head as u16 / 3)
    }

    /// Asks for an interrupt with the next request finished, or for none.
    pub fn want_interrupt(&self, wanted: bool) {
        let event = if wanted { self.used } else { self.used.wrapping_add(0x8000) };
        write(AVAILABLE + 4 + 2 * ENTRIES, event);
        barrier();
    }

    /// Whether something is finished.
    pub fn is_ready(&self) -> bool {
        read::<u16>(USED + 2) != self.used
    }
}

fn describe(index: u16, address: u64, length: u32, flags: u16) {
    let at = DESCRIPTORS + 16 * index as u64;
    write(at, address);
    write(at + 8, length);
    write(at + 12, flags);
    write(at + 14, index + 1);
}
