//! Start, reset and restart of a device, as virtio 1.3, 2.1, 2.4 and 3.1 have it, with requests on their way.
use pollux_core::{
    transport::{STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET},
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{self, Cut, IN, OK, OUT, UNTOUCHED, pattern, wait_for},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::{sync::atomic::Ordering, thread, time::Duration};

const DISK_BYTES: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;
const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
const MQ: u64 = 1 << 12;

pollux_testing::on_both_rings!(
    features_that_were_not_offered_or_a_legacy_driver_are_refused,
    driver_ok_without_features_ok_starts_nothing,
    status_bits_are_cleared_by_reset_alone_and_needs_reset_cannot_be_set_by_the_driver,
    a_reset_waits_for_requests_in_flight_and_nothing_touches_memory_after_it,
    a_queue_that_its_driver_disables_is_left_alone_until_the_reset,
    data_outlives_resets_under_load,
    stopping_flushes_the_backend,
    writes_are_durable_where_the_driver_cannot_or_will_not_flush,
    four_queues_over_two_workers_serve_one_disk,
    the_configuration_space_describes_the_disk_and_ends_where_it_ends,
    a_guest_cannot_fill_the_log,
);

/// Names a disk of one test.
fn unique(kind: RingKind, name: &str) -> String {
    format!("{name}-{kind:?}")
}

fn guest(kind: RingKind, name: &str, behaviour: Behaviour, worker: &Worker) -> Guest {
    Guest::with_rings(
        kind,
        name,
        disk::open(&unique(kind, name), DISK_BYTES, behaviour).expect("disk"),
        1,
        &[worker.handle()],
    )
}

fn worker() -> Worker {
    Worker::spawn("lifecycle", None, IdlePolicy::Adaptive).expect("worker")
}

fn features_that_were_not_offered_or_a_legacy_driver_are_refused(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "features", Behaviour::Inline, &worker);
    assert_eq!(guest.start_with(VERSION_1 | 1 << 60) & STATUS_FEATURES_OK, 0, "unknown features");
    assert_eq!(guest.start_with(FLUSH) & STATUS_FEATURES_OK, 0, "no VERSION_1");
    assert_eq!(guest.start_with(VERSION_1) & STATUS_NEEDS_RESET, 0, "the least that a driver accepts");
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

fn driver_ok_without_features_ok_starts_nothing(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "no-features-ok", Behaviour::Inline, &worker);
    guest.device.set_status(1 | 2);
    guest.device.set_status(1 | 2 | STATUS_DRIVER_OK);
    assert_ne!(guest.device.status() & STATUS_NEEDS_RESET, 0);
}

fn status_bits_are_cleared_by_reset_alone_and_needs_reset_cannot_be_set_by_the_driver(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bits", Behaviour::Inline, &worker);
    guest.device.set_status(1 | 2 | STATUS_NEEDS_RESET);
    assert_eq!(guest.device.status(), 3);
    guest.device.set_status(1);
    assert_eq!(guest.device.status(), 3);
    guest.device.set_status(0);
    assert_eq!(guest.device.status(), 0);
}

fn a_reset_waits_for_requests_in_flight_and_nothing_touches_memory_after_it(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "reset-held", Behaviour::Held, &worker);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let heads: Vec<u16> = (0..8).map(|sector| guest.submit(0, IN, sector, &[], &Cut::plain(0, 512))).collect();
    let stats = guest.stats.blk_queues().next().expect("stats");
    wait_for("requests in the backend", || (stats.in_flight.get() == 8).then_some(()));
    let control = disk::control(&unique(kind, "reset-held"));
    thread::scope(|scope| {
        let device = &mut guest.device;
        let reset = scope.spawn(move || device.set_status(0));
        for _ in 0..1000 {
            thread::yield_now();
        }
        assert!(!reset.is_finished(), "the reset waits");
        control.release();
    });
    assert_eq!(guest.device.status(), 0);
    let driver = &guest.drivers[0];
    assert!(
        heads.iter().all(|&head| driver.peek_status(head) != UNTOUCHED),
        "all had completed when the reset was over"
    );
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "and it starts again");
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

fn a_queue_that_its_driver_disables_is_left_alone_until_the_reset(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "disabled", Behaviour::Deferred, &worker);
    guest.start();
    let before: Vec<u16> = (0..8).map(|sector| guest.submit(0, IN, sector, &[], &Cut::plain(0, 512))).collect();
    guest.device.set_queue_ready(0, false);
    assert!(!guest.device.queue(0).expect("a queue").ready());
    let used = guest.drivers[0].ring.used_count();
    let done = before.iter().filter(|&&head| guest.drivers[0].peek_status(head) != UNTOUCHED).count();
    assert_eq!(done, usize::from(used), "whatever was taken has been given back");
    let after = guest.submit(0, IN, 9, &[], &Cut::plain(0, 512));
    guest.device.set_queue_ready(0, true);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.drivers[0].peek_status(after), UNTOUCHED);
    assert_eq!(guest.drivers[0].ring.used_count(), used);
    guest.start();
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

fn data_outlives_resets_under_load(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "reset-load", Behaviour::Deferred, &worker);
    for round in 0..30 {
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "round {round}");
        let data = pattern(round, 4096);
        assert_eq!(guest.request(0, OUT, 8 * round, &data, &Cut::plain(4096, 0)).status, OK);
        for sector in 0..30 {
            guest.submit(0, IN, sector, &[], &Cut::plain(0, 512));
        }
    }
    guest.start();
    for round in 0..30 {
        assert!(guest.request(0, IN, 8 * round, &[], &Cut::plain(0, 4096)).data == pattern(round, 4096));
    }
}

fn stopping_flushes_the_backend(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "flush-at-stop", Behaviour::Deferred, &worker);
    guest.start();
    guest.request(0, OUT, 0, &[1; 512], &Cut::plain(512, 0));
    let flushes = &disk::control(&unique(kind, "flush-at-stop")).flushes;
    assert_eq!(flushes.load(Ordering::Relaxed), 0);
    drop(guest);
    assert_eq!(flushes.load(Ordering::Relaxed), 1);
}

fn writes_are_durable_where_the_driver_cannot_or_will_not_flush(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "durable", Behaviour::Inline, &worker);
    let durable = || disk::control(&unique(kind, "durable")).durable_writes.load(Ordering::Relaxed);
    let write = |guest: &mut Guest| assert_eq!(guest.request(0, OUT, 0, &[1; 512], &Cut::plain(512, 0)).status, OK);
    guest.start();
    write(&mut guest);
    assert_eq!(durable(), 0, "a driver that flushes");
    // writeback = 0 in the configuration space (virtio 1.3, 5.2.5.2).
    let mut byte = [9];
    guest.device.read_config(32, &mut byte);
    assert_eq!(byte, [1], "the cache is on at first");
    guest.device.write_config(32, &[0]);
    guest.device.read_config(32, &mut byte);
    assert_eq!(byte, [0]);
    write(&mut guest);
    assert_eq!(durable(), 1, "a driver that switched the cache off");
    guest.device.write_config(32, &[1]);
    write(&mut guest);
    assert_eq!(durable(), 1, "and on again");
    guest.start_without(FLUSH | CONFIG_WCE);
    write(&mut guest);
    assert_eq!(durable(), 2, "a driver without FLUSH");
    guest.start_without(FLUSH);
    guest.device.read_config(32, &mut byte);
    assert_eq!(byte, [0], "a driver with CONFIG_WCE and without FLUSH finds the cache off (virtio 1.3, 5.2.5.2)");
    write(&mut guest);
    assert_eq!(durable(), 3, "a driver with CONFIG_WCE and without FLUSH");
    guest.start_without(CONFIG_WCE);
    guest.device.write_config(32, &[0]);
    write(&mut guest);
    assert_eq!(durable(), 3, "the byte is read-only without CONFIG_WCE");
}

fn four_queues_over_two_workers_serve_one_disk(kind: RingKind) {
    let workers = [worker(), worker()];
    let disk = disk::open(&unique(kind, "multi-queue"), DISK_BYTES, Behaviour::Deferred).expect("disk");
    let mut guest = Guest::with_rings(kind, "multi-queue", disk, 4, &[workers[0].handle(), workers[1].handle()]);
    assert_ne!(u64::from(guest.device.device_features(0)) & MQ, 0);
    let mut count = [0; 2];
    guest.device.read_config(34, &mut count);
    assert_eq!(u16::from_le_bytes(count), 4);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    for round in 0..100u64 {
        for queue in 0..4u64 {
            let sector = queue * 400 + round;
            guest.submit(queue as usize, OUT, sector, &pattern(sector, 512), &Cut::plain(512, 0));
        }
        for queue in 0..4 {
            assert_eq!(guest.finish(queue).status, OK);
        }
    }
    for sector in (0..4).flat_map(|queue| queue * 400..queue * 400 + 100) {
        let queue = (sector % 4) as usize;
        assert!(guest.request(queue, IN, sector, &[], &Cut::plain(0, 512)).data == pattern(sector, 512), "{sector}");
    }
    let counts: Vec<u64> = guest.stats.blk_queues().map(|record| record.block.writes.get()).collect();
    assert_eq!(counts, [100; 4]);
}

fn the_configuration_space_describes_the_disk_and_ends_where_it_ends(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "config-space", Behaviour::Inline, &worker);
    let mut space = [0; 64];
    guest.device.read_config(0, &mut space);
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(u64::from_le_bytes(space[..8].try_into().expect("eight bytes")), DISK_BYTES / 512);
    assert_eq!((word(12), word(20)), (254, 512), "seg_max and blk_size");
    assert_eq!((word(40), word(52)), (1, 1), "one range in a discard or write-zeroes");
    assert_eq!(space[56], 1, "write_zeroes_may_unmap");
    for offset in [57, 60, 64, 4096, u64::MAX - 3, u64::MAX] {
        let mut data = [0; 8];
        guest.device.read_config(offset, &mut data);
        guest.device.write_config(offset, &data);
        assert_eq!(data, [0; 8], "offset {offset}");
    }
    guest.device.write_config(0, &[0xff; 64]);
    let mut again = [0; 64];
    guest.device.read_config(0, &mut again);
    assert_eq!(again, space, "what is read-only stays as it is");
    assert_eq!(blk::OK, 0);
}

#[test]
fn a_worker_cannot_be_pinned_to_a_cpu_that_does_not_exist() {
    for cpu in [1000, 4000, usize::MAX] {
        let error = Worker::spawn("far", Some(cpu), IdlePolicy::Spin).expect_err("no such CPU");
        assert!(error.to_string().contains(&format!("worker far: cannot be pinned to CPU {cpu}")), "{error}");
    }
}

fn a_guest_cannot_fill_the_log(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "log", Behaviour::Inline, &worker);
    let lines = (0..10_000).filter(|_| guest.device.interrupts().may_log("log")).count();
    assert_eq!(lines, 100);
    guest.start();
    guest.device.set_status(0);
    assert!(!guest.device.interrupts().may_log("log"), "a reset gives no new ones");
}

#[test]
fn a_packed_ring_can_have_any_size_and_a_split_one_a_power_of_two() {
    let worker = worker();
    for kind in RingKind::BOTH {
        let mut guest = guest(kind, "any-size", Behaviour::Inline, &worker);
        let device = &mut guest.device;
        device.set_status(1 | 2);
        let features = VERSION_1 | kind.feature();
        device.set_driver_features(1, (features >> 32) as u32);
        device.set_status(1 | 2 | STATUS_FEATURES_OK);
        let queue = device.queue_mut(0).expect("a queue");
        queue.set_size(100);
        queue.set_descriptors(Some(0x1000), Some(0));
        queue.set_driver_area(Some(0x2000), Some(0));
        queue.set_device_area(Some(0x3000), Some(0));
        // Not allowed in any ring: ignored.
        queue.set_size(0);
        queue.set_size(257);
        assert_eq!(queue.config().size, 100);
        device.set_queue_ready(0, true);
        device.set_status(1 | 2 | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        assert_eq!(device.status() & STATUS_NEEDS_RESET == 0, kind == RingKind::Packed, "{kind:?}");
    }
}
