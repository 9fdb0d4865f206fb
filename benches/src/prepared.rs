//! A driver that offers the same requests over and over, and a clock around the device's part alone.
use crate::backend::BLOCK_BYTES;
use pollux_core::{memory::GuestMemory, stats::clock};
use pollux_driver::{Buffer, RingDriver, RingKind};
use pollux_testing::blk::IN;
use std::time::Duration;

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
