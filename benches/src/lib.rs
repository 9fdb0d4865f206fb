//! What the benchmarks share: a driver that offers the same requests over and over, and a clock around the device's
//! part alone.
//!
//! Unsafe code is in the modules that are marked so below, and nowhere else.
#![deny(unsafe_code)]

pub mod callgrind;
pub mod contest;
pub mod crossing;
pub mod many_queues;
#[allow(unsafe_code)]
pub mod reads;
pub mod row;

use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_READ, Segment};
use pollux_core::{
    memory::GuestMemory,
    plugin::{BackendQueue, BlockBackend, OpenOptions, Plugin},
    stats::clock,
};
use pollux_driver::{Buffer, RingDriver, RingKind};
use pollux_testing::{blk::IN, build};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

pub use pollux_loadgen::{pinning::pin, roundtrip::median};

/// Bytes of a request's data.
pub const BLOCK_BYTES: u64 = 4096;
/// Guest-physical address of the first request's header; each has a page for header and status, and one for data.
const REQUESTS: u64 = 0x10_0000;

/// A driver that has prepared `depth` requests of 4 KiB, to be offered again and again.
#[derive(Debug)]
pub struct Prepared {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The driver.
    pub driver: RingDriver,
    depth: usize,
    indirect: bool,
    operation: u32,
}

impl Prepared {
    /// Prepares the reads in a ring of 512, as chains of three descriptors or by indirect tables.
    pub fn new(kind: RingKind, depth: usize, indirect: bool) -> Self {
        Self::with_operation(IN, kind, depth, indirect)
    }

    /// As [`new`](Self::new) with reads or writes, as their type says (virtio 1.3, 5.2.6).
    pub fn with_operation(operation: u32, kind: RingKind, depth: usize, indirect: bool) -> Self {
        let memory = GuestMemory::create(&[(0, 0x10_0000 + depth as u64 * 8192)], None).expect("guest memory");
        let mut driver = RingDriver::new(kind, &memory, 0, 512, true);
        for index in 0..depth as u64 {
            driver.write(REQUESTS + index * 8192, [u64::from(operation), index * BLOCK_BYTES / 512]);
        }
        Prepared { memory, driver, depth, indirect, operation }
    }

    /// Offers all of the reads, written again each time: in a packed ring they lie elsewhere then.
    fn offer(&mut self) {
        for index in 0..self.depth as u64 {
            let header = REQUESTS + index * 8192;
            let buffers = [
                Buffer { address: header, length: 16, writable: false },
                Buffer { address: header + 4096, length: BLOCK_BYTES as u32, writable: self.operation == IN },
                Buffer { address: header + 16, length: 1, writable: true },
            ];
            let driver = &mut self.driver;
            if self.indirect { driver.add_indirect(&buffers, header + 64) } else { driver.add(&buffers) }
                .expect("room in the ring");
        }
        self.driver.publish();
    }

    /// Measures `rounds` rounds, in each of which `device` takes all requests and gives them back: the time spent in
    /// the device alone.
    pub fn measure(&mut self, rounds: u64, mut device: impl FnMut()) -> Duration {
        let overhead = clock_overhead();
        let mut ticks = 0;
        for _ in 0..rounds {
            self.offer();
            let start = clock::ticks();
            device();
            ticks += clock::ticks().wrapping_sub(start).saturating_sub(overhead);
            for _ in 0..self.depth {
                self.driver.pop_used().expect("every request came back");
            }
            // As a driver that reaps does, so that the device has an event to compare with.
            self.driver.want_interrupts(false);
        }
        Duration::from_nanos(clock::Scale::new().nanoseconds(ticks))
    }
}

/// Ticks that two looks at the clock take by themselves.
fn clock_overhead() -> u64 {
    (0..1000)
        .map(|_| {
            let start = clock::ticks();
            clock::ticks().wrapping_sub(start)
        })
        .min()
        .unwrap_or(0)
}

/// The shared library of a plugin, built once by each process that asks.
pub fn plugin(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().expect("no build has panicked");
    built.entry(name.to_owned()).or_insert_with(|| build::plugin(&format!("pollux-{name}"))).clone()
}

/// Opens a backend of the plugin through the real shared library.
pub fn backend(name: &str, options: &str) -> Arc<BlockBackend> {
    let plugin = Plugin::load(&plugin(name)).expect("the plugin");
    BlockBackend::open(&plugin, name, &OpenOptions { json: options.into(), ..OpenOptions::default() })
        .expect("a backend")
}

/// A started queue of the backend, whose worker the calling thread is, and a read of one block for each of its slots,
/// of the blocks from the first on. The memory is the requests'.
pub fn started_reads(backend: &Arc<BlockBackend>, depth: usize) -> (BackendQueue, Vec<BlockRequest>, GuestMemory) {
    let guest = GuestMemory::create(&[(0, depth as u64 * BLOCK_BYTES)], None).expect("guest memory");
    backend.add_memory(&guest).expect("the memory is announced");
    let memory = guest.regions()[0].base;
    let mut queue = backend.open_queue(0, depth as u32).expect("a queue");
    queue.start().expect("the queue starts");
    let request = |slot: usize| {
        let base = memory.wrapping_add(slot * BLOCK_BYTES as usize);
        let segment: &[Segment] = vec![Segment { base, length: BLOCK_BYTES as usize }].leak();
        BlockRequest {
            operation: POLLUX_BLOCK_READ,
            flags: 0,
            token: slot as u64,
            offset: slot as u64 * BLOCK_BYTES,
            length: BLOCK_BYTES,
            segments: segment.as_ptr(),
            segment_count: 1,
            reserved0: 0,
            reserved: [0; 2],
        }
    };
    (queue, (0..depth).map(request).collect(), guest)
}

/// User and system time of the calling thread so far.
pub fn thread_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).expect("Linux has this clock").into()
}

/// The time in nanoseconds that a cache line takes from one CPU to another and back.
pub fn round_trip_ns(first: usize, second: usize) -> f64 {
    pollux_loadgen::roundtrip::round_trip_ns(first, second).expect("two CPUs that can be used")
}
