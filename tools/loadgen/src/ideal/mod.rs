//! The ideal device: a loop in this process on the same ring, with no vhost-user, no plugin and no device model. What
//! it does cannot be done faster by any device that keeps to the ring; the rest of a device is measured against it.
//!
//! It trusts the driver, which is ours: nothing is checked, and an address is a pointer minus a constant.
mod packed;
mod split;

use crate::roundtrip::pin;
use packed::PackedQueue;
use pollux_core::{
    memory::GuestMemory,
    ring::{QueueConfig, RingKind},
};
use split::SplitQueue;
use std::{
    hint::spin_loop,
    io,
    ptr::{copy_nonoverlapping, read_volatile, write_volatile},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
    pub fn start(
        kind: Kind,
        ring: RingKind,
        memory: &GuestMemory,
        rings: &[QueueConfig],
        cpu: Option<usize>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut medium = match kind {
            Kind::Null => Vec::new(),
            Kind::Memory => vec![0u8; CAPACITY as usize],
        };
        // Every page is there before the first request.
        medium.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        let (ended, memory) = (stop.clone(), memory.clone());
        let mut run = move |rings: &[QueueConfig]| match ring {
            RingKind::Split => run::<SplitQueue>(&memory, rings, &mut medium, &ended),
            RingKind::Packed => run::<PackedQueue>(&memory, rings, &mut medium, &ended),
        };
        let rings = rings.to_vec();
        let thread = thread::Builder::new().name("ideal".into()).spawn(move || {
            // On a CPU of its own if it can be had.
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            run(&rings);
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

/// One queue, device side.
trait Queue {
    fn new(memory: &GuestMemory, config: &QueueConfig) -> Self;
    /// Does what there is to do, at most [`BATCH`] requests. Returns how many there were.
    fn turn(&mut self, medium: &mut [u8]) -> u16;
}

/// The loop.
fn run<Q: Queue>(memory: &GuestMemory, rings: &[QueueConfig], medium: &mut [u8], ended: &AtomicBool) {
    let mut queues: Vec<Q> = rings.iter().map(|config| Q::new(memory, config)).collect();
    while !ended.load(Ordering::Relaxed) {
        let work: u16 = queues.iter_mut().map(|queue| queue.turn(medium)).sum();
        if work == 0 {
            spin_loop();
        }
    }
}

/// The driver's memory, which begins at guest address 0.
#[derive(Clone, Copy)]
struct Memory {
    origin: *mut u8,
}

impl Memory {
    fn new(memory: &GuestMemory) -> Self {
        Memory { origin: memory.translator().translate(0, 1).expect("the driver's memory begins at 0") }
    }

    #[inline(always)]
    fn at(self, address: u64) -> *mut u8 {
        self.origin.wrapping_add(address as usize)
    }
}

/// One request on its way through its buffers: header, data, status.
struct Request {
    /// Where in the medium the next data goes to or comes from.
    offset: usize,
    /// Bytes that were written.
    written: u32,
}

impl Request {
    /// Reads the header: type, reserved, sector.
    #[inline(always)]
    fn begin(header: *const u8) -> Self {
        // SAFETY: our own driver's header of 16 bytes, in its memory.
        let sector = unsafe { read_volatile(header.add(8).cast::<u64>()) };
        Request { offset: sector as usize * SECTOR_BYTES, written: 0 }
    }

    /// Moves the data of a buffer, if there is a medium. The device writes it: `writes`.
    #[inline(always)]
    fn data(&mut self, medium: &mut [u8], buffer: *mut u8, length: u32, writes: bool) {
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
    fn end(self, status: *mut u8) -> u32 {
        // SAFETY: the last buffer is the status byte.
        unsafe { write_volatile(status, 0) };
        self.written + 1
    }
}
