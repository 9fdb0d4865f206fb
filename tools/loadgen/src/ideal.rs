//! The ideal device: a loop in this process on the same ring, with no vhost-user, no plugin and no device model. What it does
//! cannot be done faster by any device that keeps to the split ring; the rest of a device is measured against it.
//!
//! It trusts the driver, which is ours: nothing is checked, and an address is a pointer minus a constant.
use crate::roundtrip::pin;
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use std::{
    hint::spin_loop,
    io,
    ptr::{copy_nonoverlapping, read_volatile, write_volatile},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
};

/// What stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: requests complete, no data moves.
    Null,
    /// Memory of [`CAPACITY`] bytes: data is copied.
    Memory,
}

/// Bytes of the device.
pub const CAPACITY: u64 = 256 << 20;

const SECTOR_BYTES: usize = 512;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Most chains of a turn.
const BATCH: u16 = 64;
const PAGE_BYTES: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// A running device: a thread that polls all queues.
#[derive(Debug)]
pub struct Device {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Starts it on `cpu`, or on any.
    ///
    /// # Errors
    /// No thread.
    pub fn start(kind: Kind, memory: &GuestMemory, rings: &[QueueConfig], cpu: Option<usize>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut medium = match kind {
            Kind::Null => Vec::new(),
            Kind::Memory => vec![0u8; CAPACITY as usize],
        };
        // Every page is there before the first request.
        medium.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        let mut queues: Vec<Queue> = rings.iter().map(|config| Queue::new(memory, config)).collect();
        let (ended, memory) = (stop.clone(), memory.clone());
        let thread = thread::Builder::new().name("ideal".into()).spawn(move || {
            // On a CPU of its own if it can be had.
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            let memory = memory;
            while !ended.load(Ordering::Relaxed) {
                let work: u16 = queues.iter_mut().map(|queue| queue.turn(&mut medium)).sum();
                if work == 0 {
                    spin_loop();
                }
            }
            drop(memory);
        })?;
        Ok(Device { stop, thread: Some(thread) })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

struct Queue {
    /// What a guest address is counted from.
    origin: *mut u8,
    descriptors: *const Descriptor,
    available: *mut u16,
    used: *mut u16,
    size: u16,
    next: u16,
    done: u16,
}

// SAFETY: the pointers lead into guest memory, which the device's thread keeps mapped.
unsafe impl Send for Queue {}

impl Queue {
    fn new(memory: &GuestMemory, config: &QueueConfig) -> Self {
        let mut translator = memory.translator();
        let origin = translator.translate(0, 1).expect("the driver's memory begins at 0");
        let at = |address: u64| origin.wrapping_add(address as usize);
        let queue = Queue {
            origin,
            descriptors: at(config.descriptors).cast_const().cast(),
            available: at(config.driver_area).cast(),
            used: at(config.device_area).cast(),
            size: config.size,
            next: 0,
            done: 0,
        };
        queue.silence();
        queue
    }

    /// Asks for no kicks: by flag, and by an event index half a lap away.
    fn silence(&self) {
        // SAFETY: flags and avail_event are the first and the last word of the used ring.
        unsafe {
            write_volatile(self.used, 1);
            write_volatile(self.used.add(2 + 4 * usize::from(self.size)), self.next.wrapping_add(0x8000));
        }
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

    /// Does one request: header, data, status. Returns the number of bytes written.
    #[inline]
    fn serve(&self, head: u16, medium: &mut [u8]) -> u32 {
        let mut table = self.descriptors;
        // SAFETY: our own driver's chains, whole and in its memory.
        let mut descriptor = unsafe { read_volatile(table.add(head.into())) };
        if descriptor.flags & INDIRECT != 0 {
            table = self.at(descriptor.address).cast_const().cast();
            // SAFETY: as above.
            descriptor = unsafe { read_volatile(table) };
        }
        // SAFETY: the header has 16 bytes: type, reserved, sector.
        let sector = unsafe { read_volatile(self.at(descriptor.address).add(8).cast::<u64>()) };
        let mut offset = sector as usize * SECTOR_BYTES;
        let mut written = 0;
        while descriptor.flags & NEXT != 0 {
            // SAFETY: as above.
            descriptor = unsafe { read_volatile(table.add(descriptor.next.into())) };
            let (buffer, length) = (self.at(descriptor.address), descriptor.length as usize);
            if descriptor.flags & NEXT == 0 {
                // SAFETY: the last buffer is the status byte.
                unsafe { write_volatile(buffer, 0) };
                written += 1;
            } else if let Some(place) = medium.get_mut(offset..offset + length) {
                // SAFETY: both have `length` bytes, and are apart.
                unsafe {
                    match descriptor.flags & WRITE {
                        0 => copy_nonoverlapping(buffer.cast_const(), place.as_mut_ptr(), length),
                        _ => copy_nonoverlapping(place.as_ptr(), buffer, length),
                    }
                }
                offset += length;
            }
            if descriptor.flags & (WRITE | NEXT) == WRITE | NEXT {
                written += descriptor.length;
            }
        }
        written
    }

    #[inline(always)]
    fn at(&self, address: u64) -> *mut u8 {
        self.origin.wrapping_add(address as usize)
    }
}
