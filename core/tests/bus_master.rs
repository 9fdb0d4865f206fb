//! A device that may not access memory (PCI 3.0, 6.2.2: Bus Master Enable) leaves its rings alone, and goes on in them
//! where it stopped when it may.
use pollux_core::{
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, IN, OK, OUT, UNTOUCHED, pattern, wait_for},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::{
    thread,
    time::{Duration, Instant},
};

const DISK_BYTES: u64 = 1 << 20;

pollux_testing::on_both_rings!(
    clearing_the_bit_waits_for_requests_in_flight_and_nothing_is_taken_after_it,
    toggling_under_load_loses_and_doubles_nothing,
    a_device_that_is_started_without_the_bit_serves_once_it_is_set,
    a_reset_without_the_bit_forgets_what_was_held,
    a_ring_that_broke_does_not_come_back_by_the_bit,
    rings_of_a_driver_that_has_gone_stay_as_they_are_until_a_reset,
);

fn worker() -> Worker {
    Worker::spawn("bus-master", None, IdlePolicy::Adaptive).expect("worker")
}

fn unique(kind: RingKind, name: &str) -> String {
    format!("{name}-{kind:?}")
}

fn guest(kind: RingKind, name: &str, behaviour: Behaviour, worker: &Worker) -> Guest {
    let disk = disk::open(&unique(kind, name), DISK_BYTES, behaviour).expect("disk");
    Guest::with_rings(kind, name, disk, 2, &[worker.handle()])
}

fn clearing_the_bit_waits_for_requests_in_flight_and_nothing_is_taken_after_it(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bit-held", Behaviour::Held, &worker);
    guest.start();
    let before: Vec<u16> = (0..8).map(|sector| guest.submit(0, IN, sector, &[], &Cut::plain(0, 512))).collect();
    let stats = guest.stats.blk_queues().next().expect("stats");
    wait_for("requests in the backend", || (stats.in_flight.get() == 8).then_some(()));
    thread::scope(|scope| {
        let device = &mut guest.device;
        let clear = scope.spawn(move || device.set_bus_master(false));
        for _ in 0..1000 {
            thread::yield_now();
        }
        assert!(!clear.is_finished(), "it waits");
        disk::control(&unique(kind, "bit-held")).release();
    });
    assert!(before.iter().all(|&head| guest.drivers[0].peek_status(head) != UNTOUCHED), "all had completed");
    let after = guest.submit(0, IN, 9, &[], &Cut::plain(0, 512));
    let end = Instant::now() + Duration::from_millis(50);
    while Instant::now() < end {
        assert_eq!(guest.drivers[0].peek_status(after), UNTOUCHED, "nothing is taken");
        thread::yield_now();
    }
    assert_eq!(guest.drivers[0].ring.used_count(), 8);
    guest.device.set_bus_master(true);
    for _ in 0..9 {
        assert_eq!(guest.finish(0).status, OK);
    }
    assert!(guest.drivers[0].pop().is_none(), "each once");
}

fn toggling_under_load_loses_and_doubles_nothing(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bit-load", Behaviour::Deferred, &worker);
    guest.start();
    for round in 0..100u64 {
        let data = pattern(round, 512);
        guest.submit(0, OUT, round, &data, &Cut::plain(512, 0));
        (0..20).for_each(|sector| _ = guest.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
        guest.device.set_bus_master(false);
        (0..20).for_each(|sector| _ = guest.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
        guest.device.set_bus_master(true);
        assert_eq!(guest.finish(0).status, OK);
        (0..40).for_each(|_| assert_eq!(guest.finish(1).status, OK));
        assert!(guest.drivers[1].pop().is_none(), "round {round}");
        assert!(guest.request(0, IN, round, &[], &Cut::plain(0, 512)).data == data, "round {round}");
    }
    assert_eq!(guest.stats.blk_queues().map(|queue| queue.requests.get()).sum::<u64>(), 100 * 42);
    assert_eq!(guest.device.status() & STATUS_NEEDS_RESET, 0);
}

fn a_device_that_is_started_without_the_bit_serves_once_it_is_set(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bit-late", Behaviour::Inline, &worker);
    guest.device.set_bus_master(false);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.drivers[0].peek_status(head), UNTOUCHED);
    guest.device.set_bus_master(true);
    assert_eq!(guest.finish(0).status, OK);
    assert_eq!(guest.request(1, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

fn a_reset_without_the_bit_forgets_what_was_held(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bit-reset", Behaviour::Inline, &worker);
    guest.start();
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    guest.device.set_bus_master(false);
    guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
    guest.device.set_status(0);
    guest.device.set_bus_master(true);
    assert_eq!(guest.drivers[0].ring.used_count(), 0, "the old driver's request is nobody's");
    guest.start();
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    assert!(guest.drivers[0].pop().is_none());
}

fn rings_of_a_driver_that_has_gone_stay_as_they_are_until_a_reset(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bit-gone", Behaviour::Inline, &worker);
    guest.start();
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    guest.device.abandon_rings();
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK, "they run, so their driver is there");
    guest.device.set_bus_master(false);
    let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
    guest.device.abandon_rings();
    for _ in 0..2 {
        guest.device.set_bus_master(true);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.drivers[0].peek_status(head), UNTOUCHED);
        guest.device.set_bus_master(false);
    }
    guest.device.set_bus_master(true);
    guest.start();
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

fn a_ring_that_broke_does_not_come_back_by_the_bit(kind: RingKind) {
    let worker = worker();
    let mut guest = guest(kind, "bit-broken", Behaviour::Inline, &worker);
    guest.start();
    guest.drivers[0].ring.break_rules();
    guest.device.kick(0).expect("a queue").write(1).expect("a kick");
    wait_for("DEVICE_NEEDS_RESET", || (guest.device.status() & STATUS_NEEDS_RESET != 0).then_some(()));
    guest.device.set_bus_master(false);
    guest.device.set_bus_master(true);
    let head = guest.submit(1, IN, 0, &[], &Cut::plain(0, 512));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.drivers[1].peek_status(head), UNTOUCHED);
    guest.start();
    assert_eq!(guest.request(1, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}
