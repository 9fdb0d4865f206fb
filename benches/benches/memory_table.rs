//! How long a queue stands still when its guest's memory map is replaced under it: `cargo bench --bench memory_table`.
//!
//! The new map is built on a control thread; what the worker does is timed here, the change alone, with requests in
//! flight that end in the old map. The guest has 100 GB (of which next to nothing is touched), in one region and in
//! 512.
#![allow(missing_docs)]
use pollux_core::{memory::GuestMemory, queue::QueueUpdate};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, IN},
    disk::{self, Behaviour, control},
    rig::Rig,
};
use std::{sync::mpsc::sync_channel, time::Instant};

const GUEST_BYTES: u64 = 100 << 30;
const IN_FLIGHT: usize = 60;

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_bench { 1000 } else { 2 };
    println!("a queue of 256 with {IN_FLIGHT} requests in flight, {rounds} changes of a map of 100 GB");
    println!("{:>8} {:>18} {:>18} {:>24}", "regions", "pause, median", "pause, longest", "control thread, median");
    for regions in [1, 512] {
        let (mut pauses, mut builds) = measure(regions, rounds);
        pauses.sort_unstable();
        builds.sort_unstable();
        let middle = rounds / 2;
        println!("{regions:>8} {:>15} ns {:>15} ns {:>21} ns", pauses[middle], pauses[rounds - 1], builds[middle]);
    }
}

/// Nanoseconds of each change on the worker, and of what is done before it elsewhere.
fn measure(regions: u64, rounds: usize) -> (Vec<u64>, Vec<u64>) {
    let length = GUEST_BYTES / regions;
    let ranges: Vec<(u64, u64)> = (0..regions).map(|index| (index * length, length)).collect();
    let memory = GuestMemory::create(&ranges, None).expect("address space");
    let driver = BlkDriver::new(RingKind::Split, &memory, 0, 256, 64, true);
    let mut rig =
        Rig::with_driver(RingKind::Split, disk::open("table", 1 << 20, Behaviour::Held).expect("a disk"), driver, true);
    for _ in 0..IN_FLIGHT {
        rig.driver.submit(IN, 0, &[], &Cut::plain(0, 4096)).expect("room");
    }
    rig.queue.poll();
    let (mut pauses, mut builds, mut retired) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let (sender, receiver) = sync_channel(1);
        let mut update = QueueUpdate::Memory {
            config: rig.driver.ring.config(),
            tables: memory.translator(),
            data: memory.translator(),
            retired: sender,
        };
        builds.push(start.elapsed().as_nanos() as u64);
        retired.push(receiver);
        let start = Instant::now();
        rig.queue.update(&mut update);
        pauses.push(start.elapsed().as_nanos() as u64);
    }
    control("table").release();
    (0..IN_FLIGHT).for_each(|_| drop(rig.finish()));
    assert!(retired.iter().all(|receiver| receiver.try_recv().is_ok()), "every old map was given back");
    (pauses, builds)
}
