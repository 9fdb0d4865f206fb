//! A front end chooses the size of its queues, and must not choose with it how much memory this process takes.
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::BlkDriver,
    disk::{self, Behaviour},
    rig::prepared_queue,
};

/// Bytes of address space that this process has.
fn address_space() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("statm");
    pages.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).expect("a number of pages") * 4096
}

/// Keeps threads that start meanwhile, such as the one that asks plugins what they count, from reserving an arena of
/// 64 MiB each, which would be counted as the queue's.
fn share_one_arena() {
    // SAFETY: sets a number of the allocator.
    let is_set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    assert_eq!(is_set, 1, "the allocator takes it");
}

#[test]
fn the_largest_queue_takes_a_few_megabytes() {
    share_one_arena();
    for kind in RingKind::BOTH {
        let backend = disk::open(&format!("large-{kind:?}"), 1 << 20, Behaviour::Inline).expect("disk");
        let memory = GuestMemory::create(&[(0, BlkDriver::bytes(32768, 1))], None).expect("guest memory");
        let config: QueueConfig = BlkDriver::new(kind, &memory, 0, 32768, 1, true).ring.config();
        let before = address_space();
        let queue = prepared_queue(kind, backend, &memory, config);
        let taken = address_space() - before;
        assert!(taken < 16 << 20, "{kind:?}: {taken} bytes");
        drop(queue);
    }
}
