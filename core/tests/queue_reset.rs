//! A driver resets one queue of a running device and enables it again (virtio 1.3, 2.6.1, 4.1.4.3 and 4.2.2), by the
//! registers of PCI and MMIO.
use pollux_core::{
    plugin::{BlockBackend, OpenOptions, Plugin},
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, GET_ID, IN, OK, OUT, UNTOUCHED, pattern, wait_for},
    build::c_plugin,
    disk::{self, Behaviour},
    registers::{BusGuest, BusKind, QUEUE_SIZE},
};
use std::time::{Duration, Instant};

const C_DISK: &str = include_str!("fixtures/disk.c");
const DISK_BYTES: u64 = 1 << 20;
const RING_RESET: u64 = 1 << 40;

pollux_testing::on_both_rings!(
    a_reset_waits_for_requests_in_flight_while_registers_and_other_queues_answer,
    a_queue_that_was_reset_is_as_it_was_at_first,
    nothing_is_taken_from_a_ring_between_its_reset_and_the_next,
    queues_are_reset_under_load_to_other_sizes_and_places,
    without_the_feature_nothing_is_reset,
    a_queue_that_never_ran_can_be_reset_and_then_enabled,
    what_makes_no_sense_is_ignored,
    a_queue_is_enabled_once_its_reset_is_done_and_not_before,
    a_ring_that_cannot_be_breaks_its_device_alone,
    a_queue_whose_backend_cannot_stop_is_not_enabled_again,
    a_queue_is_reset_while_the_device_may_not_access_memory,
    a_reset_of_the_device_ends_that_of_a_queue,
);

fn worker() -> Worker {
    Worker::spawn("queue-reset", None, IdlePolicy::Adaptive).expect("worker")
}

fn unique(bus: BusKind, kind: RingKind, name: &str) -> String {
    format!("{name}-{bus:?}-{kind:?}")
}

/// A device with two queues that its driver has started.
fn started(bus: BusKind, kind: RingKind, name: &str, behaviour: Behaviour, worker: &Worker) -> BusGuest {
    let disk = disk::open(&unique(bus, kind, name), DISK_BYTES, behaviour).expect("disk");
    let mut guest = BusGuest::new(bus, kind, name, disk, 2, &[worker.handle()]);
    assert_eq!(guest.offered() & RING_RESET, RING_RESET);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    guest
}

fn read(guest: &mut BusGuest, queue: usize, sector: u64) -> Vec<u8> {
    let finished = guest.request(queue, IN, sector, &[], &Cut::plain(0, 512));
    assert_eq!(finished.status, OK);
    finished.data
}

/// A request that the device answers without its backend.
fn ask_name(guest: &mut BusGuest, queue: usize) {
    assert_eq!(guest.request(queue, GET_ID, 0, &[], &Cut::plain(0, 20)).status, OK);
}

fn a_reset_waits_for_requests_in_flight_while_registers_and_other_queues_answer(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "held", Behaviour::Held, &worker);
        let heads: Vec<u16> = (0..8).map(|sector| guest.submit(0, IN, sector, &[], &Cut::plain(0, 512))).collect();
        let stats = guest.stats.blk_queues().next().expect("stats");
        wait_for("requests in the backend", || (stats.in_flight.get() == 8).then_some(()));
        guest.begin_queue_reset(0);
        for _ in 0..20 {
            assert!(guest.is_queue_resetting(0), "requests are in flight");
            assert!(!guest.is_queue_resetting(1));
            ask_name(&mut guest, 1);
        }
        disk::control(&unique(bus, kind, "held")).release();
        wait_for("the reset", || (!guest.is_queue_resetting(0)).then_some(()));
        let driver = &guest.drivers[0];
        assert!(heads.iter().all(|&head| driver.peek_status(head) != UNTOUCHED), "all have completed");
        assert_eq!(guest.queue_register(0, |layout| layout.queue_ready), 0);
        let driver = guest.driver(0, 1, QUEUE_SIZE);
        guest.enable_queue(0, driver);
        read(&mut guest, 0, 0);
    }
}

fn a_queue_that_was_reset_is_as_it_was_at_first(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "fresh", Behaviour::Inline, &worker);
        read(&mut guest, 0, 0);
        guest.reset_queue(0);
        assert_eq!(guest.queue_register(0, |layout| layout.queue_ready), 0);
        if bus == BusKind::Pci {
            assert_eq!(guest.queue_register(0, |layout| layout.queue_size), u64::from(QUEUE_SIZE));
            assert_eq!(guest.queue_register(0, |layout| layout.queue_vector), 0xffff);
            assert_eq!(guest.queue_register(0, |layout| layout.addresses[0]), 0);
        }
        // The ring begins at its beginning, in memory that has seen another one.
        for _ in 0..2 {
            let driver = guest.driver(0, 0, QUEUE_SIZE);
            guest.enable_queue(0, driver);
            assert_eq!(guest.queue_register(0, |layout| layout.queue_ready), 1);
            for sector in 0..2 * u64::from(QUEUE_SIZE) {
                read(&mut guest, 0, sector);
            }
            guest.reset_queue(0);
        }
        assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0);
    }
}

fn nothing_is_taken_from_a_ring_between_its_reset_and_the_next(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "quiet", Behaviour::Inline, &worker);
        read(&mut guest, 0, 0);
        guest.reset_queue(0);
        let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        guest.kick(0);
        let end = Instant::now() + Duration::from_millis(20);
        while Instant::now() < end {
            ask_name(&mut guest, 1);
            assert_eq!(guest.drivers[0].peek_status(head), UNTOUCHED);
        }
        assert_eq!(guest.drivers[0].ring.used_count(), 0);
    }
}

fn queues_are_reset_under_load_to_other_sizes_and_places(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "load", Behaviour::Deferred, &worker);
        for (round, size) in [16, 256, 2, 128, 64, 4, 256, 32].into_iter().cycle().take(40).enumerate() {
            let (sector, data) = (round as u64, pattern(round as u64, 512));
            assert_eq!(guest.request(0, OUT, sector, &data, &Cut { indirect: true, ..Cut::plain(512, 0) }).status, OK);
            (0..8).for_each(|sector| _ = guest.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
            guest.reset_queue(0);
            let driver = guest.driver(0, round as u64 % 2, size);
            guest.enable_queue(0, driver);
            (0..8).for_each(|_| assert_eq!(guest.finish(1).status, OK));
            let back = guest.request(0, IN, sector, &[], &Cut { indirect: true, ..Cut::plain(0, 512) });
            assert!(back.data == data, "round {round}, {size} entries");
        }
        assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0);
    }
}

fn without_the_feature_nothing_is_reset(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "unwanted", Behaviour::Inline, &worker);
        guest.start_without(RING_RESET);
        guest.begin_queue_reset(0);
        assert!(!guest.is_queue_resetting(0));
        assert_eq!(guest.queue_register(0, |layout| layout.queue_ready), 1);
        read(&mut guest, 0, 0);
    }
}

fn a_queue_that_never_ran_can_be_reset_and_then_enabled(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "idle", Behaviour::Inline, &worker);
        // Twice: the second finds it reset.
        (0..2).for_each(|_| guest.reset_queue(1));
        (0..2).for_each(|_| guest.reset_queue(1));
        let driver = guest.driver(1, 0, 8);
        guest.enable_queue(1, driver);
        read(&mut guest, 1, 0);
        read(&mut guest, 0, 0);
    }
}

fn what_makes_no_sense_is_ignored(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "nonsense", Behaviour::Inline, &worker);
        for index in [2, 3, 0xffff] {
            guest.begin_queue_reset(index);
            assert!(!guest.is_queue_resetting(index));
        }
        for value in [0, 2, 0xffff] {
            guest.queue_register(0, |layout| layout.status);
            guest.write(|layout| layout.queue_reset, value);
        }
        // Another ring for a queue that runs, without a reset.
        let driver = guest.driver(0, 1, 16);
        guest.registers(|registers| registers.describe_queue(0, driver.ring.config(), true));
        read(&mut guest, 0, 0);
        assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0);
    }
}

fn a_queue_is_enabled_once_its_reset_is_done_and_not_before(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "early", Behaviour::Held, &worker);
        guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        let stats = guest.stats.blk_queues().next().expect("stats");
        wait_for("a request in the backend", || (stats.in_flight.get() == 1).then_some(()));
        guest.begin_queue_reset(0);
        let driver = guest.driver(0, 1, 16);
        guest.registers(|registers| registers.describe_queue(0, driver.ring.config(), true));
        assert_eq!(guest.queue_register(0, |layout| layout.queue_ready), 0);
        disk::control(&unique(bus, kind, "early")).release();
        wait_for("the reset", || (!guest.is_queue_resetting(0)).then_some(()));
        guest.enable_queue(0, driver);
        read(&mut guest, 0, 0);
    }
}

fn a_ring_that_cannot_be_breaks_its_device_alone(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut neighbour = started(bus, kind, "neighbour", Behaviour::Inline, &worker);
        let mut guest = started(bus, kind, "bad-ring", Behaviour::Inline, &worker);
        guest.reset_queue(0);
        let mut config = guest.driver(0, 1, 16).ring.config();
        config.device_area = 0x7fff_0000_0000_0000;
        guest.registers(|registers| registers.describe_queue(0, config, true));
        assert_ne!(guest.status() & STATUS_NEEDS_RESET, 0);
        // Not before the device is reset.
        guest.reset_queue(0);
        let driver = guest.driver(0, 1, 16);
        guest.registers(|registers| registers.describe_queue(0, driver.ring.config(), true));
        assert_eq!(guest.queue_register(0, |layout| layout.queue_ready), 0);
        read(&mut neighbour, 0, 0);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        read(&mut guest, 0, 0);
    }
}

fn a_queue_whose_backend_cannot_stop_is_not_enabled_again(kind: RingKind) {
    let stops = "disk_queue_stop(void *queue) {\n  (void)queue;\n  return 0;";
    assert!(C_DISK.contains(stops));
    let source = C_DISK.replace(stops, "disk_queue_stop(void *queue) {\n  (void)queue;\n  return -1;");
    let plugin = Plugin::load(&c_plugin("disk", &source)).expect("a plugin");
    let worker = worker();
    for bus in BusKind::BOTH {
        let disk = BlockBackend::open(&plugin, "disk0", &OpenOptions::default()).expect("a backend");
        let mut guest = BusGuest::new(bus, kind, "lost", disk, 2, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        read(&mut guest, 0, 0);
        guest.reset_queue(0);
        let driver = guest.driver(0, 1, QUEUE_SIZE);
        guest.enable_queue(0, driver);
        assert_eq!(guest.status() & STATUS_NEEDS_RESET, STATUS_NEEDS_RESET, "its backend may still use its memory");
    }
}

fn a_queue_is_reset_while_the_device_may_not_access_memory(kind: RingKind) {
    let worker = worker();
    let mut guest = started(BusKind::Pci, kind, "no-master", Behaviour::Inline, &worker);
    guest.set_bus_master(false);
    guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
    guest.begin_queue_reset(0);
    assert!(!guest.is_queue_resetting(0), "nothing is in flight");
    let driver = guest.driver(0, 1, 16);
    guest.enable_queue(0, driver);
    let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
    guest.reset_queue(1);
    assert_eq!(guest.drivers[0].peek_status(head), UNTOUCHED);
    guest.set_bus_master(true);
    assert_eq!(guest.finish(0).status, OK);
    let driver = guest.driver(1, 1, 16);
    guest.enable_queue(1, driver);
    read(&mut guest, 1, 0);
}

fn a_reset_of_the_device_ends_that_of_a_queue(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "both", Behaviour::Deferred, &worker);
        for _ in 0..20 {
            (0..8).for_each(|sector| _ = guest.submit(0, IN, sector, &[], &Cut::plain(0, 512)));
            guest.begin_queue_reset(0);
            assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
            assert!(!guest.is_queue_resetting(0));
            read(&mut guest, 0, 0);
        }
    }
}
