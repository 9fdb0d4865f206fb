//! What the benchmarks share: a driver that offers the same requests over and over, and a clock around the device's
//! part alone.
#![deny(unsafe_code)]
use pollux_core::{
    memory::GuestMemory,
    plugin::{BlockBackend, OpenOptions, Plugin},
    stats::clock,
    testing::{
        blk::IN,
        build,
        driver::{Buffer, SplitDriver},
    },
};
use std::{sync::Arc, time::Duration};

pub use pollux_loadgen::roundtrip::{median, pin};

/// Bytes of a request's data.
pub const BLOCK_BYTES: u64 = 4096;
/// Guest-physical address of the first request's header; each has a page for header and status, and one for data.
const REQUESTS: u64 = 0x10_0000;

/// A driver that has prepared `depth` reads of 4 KiB, to be offered again and again.
#[derive(Debug)]
pub struct Prepared {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The driver.
    pub driver: SplitDriver,
    heads: Vec<u16>,
}

impl Prepared {
    /// Prepares the reads in a ring of 512, as chains of three descriptors or by indirect tables.
    pub fn new(depth: usize, indirect: bool) -> Self {
        let memory = GuestMemory::create(&[(0, 0x10_0000 + depth as u64 * 8192)], None).expect("guest memory");
        let mut driver = SplitDriver::new(&memory, 0, 512, true);
        let heads = (0..depth as u64)
            .map(|index| {
                let header = REQUESTS + index * 8192;
                driver.write(header, [u64::from(IN), index * BLOCK_BYTES / 512]);
                let buffers = [
                    Buffer { address: header, length: 16, writable: false },
                    Buffer { address: header + 4096, length: BLOCK_BYTES as u32, writable: true },
                    Buffer { address: header + 16, length: 1, writable: true },
                ];
                if indirect { driver.add_indirect(&buffers, header + 64) } else { driver.add(&buffers) }
                    .expect("room in the ring")
            })
            .collect();
        Prepared { memory, driver, heads }
    }

    /// Number of requests.
    pub fn depth(&self) -> usize {
        self.heads.len()
    }

    /// Measures `rounds` rounds, in each of which `device` takes all requests and gives them back: the time spent in
    /// the device alone. The first round's requests are those added by `new`.
    pub fn measure(&mut self, rounds: u64, mut device: impl FnMut(&mut SplitDriver)) -> Duration {
        let overhead = clock_overhead();
        let mut ticks = 0;
        for _ in 0..rounds {
            self.driver.publish();
            let start = clock::ticks();
            device(&mut self.driver);
            ticks += clock::ticks().wrapping_sub(start).saturating_sub(overhead);
            let used = self.driver.used_count();
            assert_eq!(usize::from(used), self.heads.len(), "every request came back");
            self.driver.skip_used(used);
            // As a driver that reaps does, so that the device has an event to compare with.
            self.driver.want_interrupts(false);
            for &head in &self.heads {
                self.driver.push_head(head);
            }
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

/// Opens a backend of the plugin through the real shared library.
pub fn backend(name: &str, options: &str) -> Arc<BlockBackend> {
    let plugin = Plugin::load(&build::plugin(&format!("pollux-{name}"))).expect("the plugin");
    BlockBackend::open(&plugin, name, &OpenOptions { json: options.into(), ..OpenOptions::default() })
        .expect("a backend")
}

/// The time in nanoseconds that a cache line takes from one CPU to another and back.
pub fn round_trip_ns(first: usize, second: usize) -> f64 {
    pollux_loadgen::roundtrip::round_trip_ns(first, second).expect("two CPUs that can be used")
}
