//! What rings of both kinds have in common: a queue, the driver's memory, a request on its way through its buffers.
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use std::ptr::{copy_nonoverlapping, read_volatile, write_volatile};

const SECTOR_BYTES: usize = 512;
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// Most chains of a turn.
pub(super) const BATCH: u16 = 64;

/// One queue, device side.
pub(super) trait Queue {
    fn new(memory: &GuestMemory, config: &QueueConfig) -> Self;
    /// Does what there is to do, at most [`BATCH`] requests. Returns how many there were.
    fn turn(&mut self, medium: &mut [u8]) -> u16;
}

/// The driver's memory, which begins at guest address 0.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    origin: *mut u8,
}

impl Memory {
    pub(super) fn new(memory: &GuestMemory) -> Self {
        Memory { origin: memory.translator().translate(0, 1).expect("the driver's memory begins at 0") }
    }

    #[inline(always)]
    pub(super) fn at(self, address: u64) -> *mut u8 {
        self.origin.wrapping_add(address as usize)
    }
}

/// One request on its way through its buffers: header, data, status.
pub(super) struct Request {
    /// Where in the medium the next data goes to or comes from.
    offset: usize,
    /// Bytes that were written.
    pub(super) written: u32,
}

impl Request {
    /// Reads the header: type, reserved, sector.
    #[inline(always)]
    pub(super) fn begin(header: *const u8) -> Self {
        // SAFETY: our own driver's header of 16 bytes, in its memory.
        let sector = unsafe { read_volatile(header.add(8).cast::<u64>()) };
        Request { offset: sector as usize * SECTOR_BYTES, written: 0 }
    }

    /// Moves the data of a buffer, if there is a medium. The device writes it: `writes`.
    #[inline(always)]
    pub(super) fn data(&mut self, medium: &mut [u8], buffer: *mut u8, length: u32, writes: bool) {
        let bytes = length as usize;
        if let Some(place) = medium.get_mut(self.offset..self.offset + bytes) {
            // SAFETY: both have `bytes` bytes, and are apart.
            unsafe {
                match writes {
                    false => copy_nonoverlapping(buffer.cast_const(), place.as_mut_ptr(), bytes),
                    true => copy_nonoverlapping(place.as_ptr(), buffer, bytes),
                }
            }
            self.offset += bytes;
        }
        self.written += if writes { length } else { 0 };
    }

    /// Writes the status. Returns the number of bytes written.
    #[inline(always)]
    pub(super) fn end(self, status: *mut u8) -> u32 {
        // SAFETY: the last buffer is the status byte.
        unsafe { write_volatile(status, 0) };
        self.written + 1
    }
}
