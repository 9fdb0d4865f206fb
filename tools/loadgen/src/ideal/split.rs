//! The split ring (virtio 1.3, 2.7) as the ideal device reads it.
use super::queue::{BATCH, INDIRECT, Memory, NEXT, Queue, Request, WRITE};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use pollux_driver::Descriptor;
use std::{
    ptr::{read_volatile, write_volatile},
    sync::atomic::{AtomicU16, Ordering},
};

/// A split queue.
pub(super) struct SplitQueue {
    memory: Memory,
    descriptors: *const Descriptor,
    available: *mut u16,
    used: *mut u16,
    size: u16,
    next: u16,
    done: u16,
}

impl Queue for SplitQueue {
    fn new(memory: &GuestMemory, config: &QueueConfig) -> Self {
        let memory = Memory::new(memory);
        let queue = SplitQueue {
            memory,
            descriptors: memory.at(config.descriptors).cast_const().cast(),
            available: memory.at(config.driver_area).cast(),
            used: memory.at(config.device_area).cast(),
            size: config.size,
            next: 0,
            done: 0,
        };
        queue.silence();
        queue
    }

    fn turn(&mut self, medium: &mut [u8]) -> u16 {
        // SAFETY: the index is the second word of the available ring. Partner: the driver's release of it.
        let index = unsafe { AtomicU16::from_ptr(self.available.add(1)) }.load(Ordering::Acquire);
        let count = index.wrapping_sub(self.next).min(BATCH);
        for _ in 0..count {
            let slot = usize::from(self.next & (self.size - 1));
            // SAFETY: the ring has `size` entries after flags and index.
            let head = unsafe { read_volatile(self.available.add(2 + slot)) };
            self.next = self.next.wrapping_add(1);
            if self.next & 0x3fff == 0 {
                self.silence();
            }
            let written = self.serve(head, medium);
            let slot = usize::from(self.done & (self.size - 1));
            let element = u64::from(head) | u64::from(written) << 32;
            // SAFETY: the used ring has `size` elements after flags and index, 4-byte aligned.
            unsafe { self.used.add(2).cast::<u64>().add(slot).write_unaligned(element) };
            self.done = self.done.wrapping_add(1);
        }
        if count > 0 {
            // SAFETY: the index is the second word of the used ring. Partner: the driver's acquire of it.
            unsafe { AtomicU16::from_ptr(self.used.add(1)) }.store(self.done, Ordering::Release);
        }
        count
    }
}

impl SplitQueue {
    /// Asks for no kicks: by flag, and by an event index half a lap away.
    fn silence(&self) {
        // SAFETY: flags and avail_event are the first and the last word of the used ring.
        unsafe {
            write_volatile(self.used, 1);
            write_volatile(self.used.add(2 + 4 * usize::from(self.size)), self.next.wrapping_add(0x8000));
        }
    }

    /// Does one request. Returns the number of bytes written.
    #[inline]
    fn serve(&self, head: u16, medium: &mut [u8]) -> u32 {
        let mut table = self.descriptors;
        // SAFETY: our own driver's chains, whole and in its memory.
        let mut descriptor = unsafe { read_volatile(table.add(head.into())) };
        if descriptor.flags & INDIRECT != 0 {
            table = self.memory.at(descriptor.address).cast_const().cast();
            // SAFETY: as above.
            descriptor = unsafe { read_volatile(table) };
        }
        let mut request = Request::begin(self.memory.at(descriptor.address));
        loop {
            // SAFETY: as above.
            descriptor = unsafe { read_volatile(table.add(descriptor.next.into())) };
            let buffer = self.memory.at(descriptor.address);
            if descriptor.flags & NEXT == 0 {
                return request.end(buffer);
            }
            request.data(medium, buffer, descriptor.length, descriptor.flags & WRITE != 0);
        }
    }
}
