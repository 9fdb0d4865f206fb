//! The ideal device: a loop in this process on the same ring, with no vhost-user, no plugin and no device model. What
//! it does cannot be done faster by any device that keeps to the ring; the rest of a device is measured against it.
//!
//! It trusts the driver, which is ours: nothing is checked, and an address is a pointer minus a constant.
mod packed;
mod queue;
mod split;

use crate::pinning::pin;
use packed::PackedQueue;
use pollux_core::{
    memory::GuestMemory,
    ring::{QueueConfig, RingKind},
};
use queue::Queue;
use split::SplitQueue;
use std::{
    hint::spin_loop,
    io,
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
