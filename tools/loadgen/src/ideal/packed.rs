//! The packed ring (virtio 1.3, 2.8) as the ideal device reads it.
use super::queue::{BATCH, INDIRECT, Memory, NEXT, Queue, Request, WRITE};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use pollux_driver::{AVAILABLE, PackedDescriptor, Place, USED};
use std::{
    ptr::read_volatile,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

const BOTH: u16 = AVAILABLE | USED;
/// In the device's event suppression structure: no kicks.
const EVENTS_DISABLE: u32 = 1 << 16;

/// A packed queue. Requests end in their order, so that there is one place for both.
pub(super) struct PackedQueue {
    memory: Memory,
    descriptors: *mut PackedDescriptor,
    size: u16,
    place: Place,
}

impl Queue for PackedQueue {
    fn new(memory: &GuestMemory, config: &QueueConfig) -> Self {
        let memory = Memory::new(memory);
        // SAFETY: the structure is in the driver's memory, and aligned.
        unsafe { AtomicU32::from_ptr(memory.at(config.device_area).cast()) }.store(EVENTS_DISABLE, Ordering::Relaxed);
        PackedQueue {
            memory,
            descriptors: memory.at(config.descriptors).cast(),
            size: config.size,
            place: Place::START,
        }
    }

    fn turn(&mut self, medium: &mut [u8]) -> u16 {
        let (start, mut first, mut count) = (self.place.index, None, 0);
        while count < BATCH {
            let Place { index, .. } = self.place;
            // Partner: the driver's release of the flags.
            let rest = self.second_half(index).load(Ordering::Acquire);
            if (rest >> 48) as u16 & BOTH != self.place.available() {
                break;
            }
            let (id, written, length) = self.serve(index, rest, medium);
            let used = u64::from(written) | u64::from(id) << 32 | u64::from(self.place.used() | WRITE) << 48;
            match first {
                None => first = Some(used),
                Some(_) => self.second_half(index).store(used, Ordering::Relaxed),
            }
            self.place = self.place.advanced(length, self.size);
            count += 1;
        }
        if let Some(used) = first {
            // Shows all of the batch. Partner: the driver's acquire of the flags.
            self.second_half(start).store(used, Ordering::Release);
        }
        count
    }
}

impl PackedQueue {
    /// Length, buffer ID and flags of a descriptor.
    #[inline(always)]
    fn second_half(&self, index: u16) -> &AtomicU64 {
        // SAFETY: a place is below the ring's size, and the ring is aligned to 16 bytes.
        unsafe { AtomicU64::from_ptr(self.descriptors.add(index.into()).cast::<u64>().add(1)) }
    }

    /// Does the request whose first descriptor is at `index`. Returns its buffer ID, the number of bytes written and
    /// that of its descriptors.
    #[inline]
    fn serve(&self, index: u16, rest: u64, medium: &mut [u8]) -> (u16, u32, u16) {
        // SAFETY: our own driver's chains, whole and in its memory.
        let mut descriptor = unsafe { read_volatile(self.descriptors.add(index.into())) };
        if (rest >> 48) as u16 & INDIRECT != 0 {
            let table: *const PackedDescriptor = self.memory.at(descriptor.address).cast_const().cast();
            return (descriptor.id, self.serve_table(table, descriptor.length / 16, medium), 1);
        }
        let mut request = Request::begin(self.memory.at(descriptor.address));
        for length in 2.. {
            let next = index + length - 1;
            let next = if next >= self.size { next - self.size } else { next };
            // SAFETY: as above.
            descriptor = unsafe { read_volatile(self.descriptors.add(next.into())) };
            let buffer = self.memory.at(descriptor.address);
            if descriptor.flags & NEXT == 0 {
                return (descriptor.id, request.end(buffer), length);
            }
            request.data(medium, buffer, descriptor.length, descriptor.flags & WRITE != 0);
        }
        unreachable!("a chain ends")
    }

    /// Does a request whose buffers are in a table of `count` entries. Returns the number of bytes written.
    #[inline]
    fn serve_table(&self, table: *const PackedDescriptor, count: u32, medium: &mut [u8]) -> u32 {
        // SAFETY: our own driver's table of `count` entries, in its memory.
        let entry = |index: u32| unsafe { read_volatile(table.add(index as usize)) };
        let mut request = Request::begin(self.memory.at(entry(0).address));
        for index in 1..count - 1 {
            let PackedDescriptor { address, length, flags, .. } = entry(index);
            request.data(medium, self.memory.at(address), length, flags & WRITE != 0);
        }
        request.end(self.memory.at(entry(count - 1).address))
    }
}
