//! Whoever runs a device pauses and resumes it, gives it other memory and has its medium measured, by the same verbs on
//! every transport.
use pollux_core::{
    device::blk::Blk,
    memory::GuestMemory,
    stats::StatsSegment,
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, GET_ID, IN, OK, OUT, UNTOUCHED, pattern, wait_for},
    disk::{self, Behaviour},
    front_end::{self, FrontEnd},
    registers::{BusGuest, BusKind, QUEUE_SIZE},
    rig::options,
};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

const DISK_BYTES: u64 = 1 << 20;
/// Where memory is put that comes later.
const MORE: u64 = 1 << 33;

pollux_testing::on_both_rings!(
    a_pause_waits_for_requests_in_flight_and_the_device_answers_meanwhile,
    pauses_under_load_lose_and_double_nothing,
    a_driver_starts_over_while_its_device_is_paused,
    a_queue_is_reset_while_its_device_is_paused,
    a_medium_that_grows_is_told_to_the_driver,
    a_medium_that_hangs_while_it_is_measured_holds_up_nobody,
    memory_is_added_under_running_queues,
    a_front_end_stops_and_starts_rings_of_a_paused_device,
);

fn worker() -> Worker {
    Worker::spawn("paused", None, IdlePolicy::Adaptive).expect("worker")
}

fn unique(bus: BusKind, kind: RingKind, name: &str) -> String {
    format!("{name}-{bus:?}-{kind:?}")
}

/// A device with two queues that its driver has started.
fn started(bus: BusKind, kind: RingKind, name: &str, behaviour: Behaviour, worker: &Worker) -> BusGuest {
    let disk = disk::open(&unique(bus, kind, name), DISK_BYTES, behaviour).expect("disk");
    let mut guest = BusGuest::new(bus, kind, name, disk, 2, &[worker.handle()]);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    guest
}

fn read(guest: &mut BusGuest, queue: usize, sector: u64) -> Vec<u8> {
    let finished = guest.request(queue, IN, sector, &[], &Cut::plain(0, 512));
    assert_eq!(finished.status, OK);
    finished.data
}

/// Nothing becomes of a request for a while.
fn stays_untouched(driver: &BlkDriver, head: u16) {
    let end = Instant::now() + Duration::from_millis(20);
    while Instant::now() < end {
        assert_eq!(driver.peek_status(head), UNTOUCHED);
        thread::yield_now();
    }
}

fn a_pause_waits_for_requests_in_flight_and_the_device_answers_meanwhile(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "held", Behaviour::Held, &worker);
        let handle = guest.handle();
        (0..8).for_each(|sector| _ = guest.submit(0, IN, sector, &[], &Cut::plain(0, 512)));
        let stats = guest.stats.blk_queues().next().expect("stats");
        wait_for("requests in the backend", || (stats.in_flight.get() == 8).then_some(()));
        thread::scope(|scope| {
            let pause = scope.spawn(|| handle.pause());
            wait_for("the pause", || handle.is_paused().then_some(()));
            for _ in 0..1000 {
                assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0, "registers answer");
            }
            assert!(!pause.is_finished(), "it waits");
            disk::control(&unique(bus, kind, "held")).release();
            pause.join().expect("no panic").expect("paused");
        });
        assert_eq!(guest.drivers[0].ring.used_count(), 8);
        let after = guest.submit(0, IN, 9, &[], &Cut::plain(0, 512));
        let other = guest.submit(1, GET_ID, 0, &[], &Cut::plain(0, 20));
        stays_untouched(&guest.drivers[0], after);
        stays_untouched(&guest.drivers[1], other);
        // Twice is the same as once.
        handle.pause().expect("paused");
        handle.resume().expect("resumed");
        assert!(!handle.is_paused());
        (0..9).for_each(|_| assert_eq!(guest.finish(0).status, OK));
        assert_eq!(guest.finish(1).status, OK);
        assert!(guest.drivers[0].pop().is_none(), "each once");
        handle.resume().expect("nothing to resume");
    }
}

fn pauses_under_load_lose_and_double_nothing(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "load", Behaviour::Deferred, &worker);
        let handle = guest.handle();
        for round in 0..50u64 {
            let data = pattern(round, 512);
            guest.submit(0, OUT, round, &data, &Cut::plain(512, 0));
            (0..6).for_each(|sector| _ = guest.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
            handle.pause().expect("paused");
            (0..6).for_each(|sector| _ = guest.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
            handle.resume().expect("resumed");
            assert_eq!(guest.finish(0).status, OK);
            (0..12).for_each(|_| assert_eq!(guest.finish(1).status, OK));
            assert!(guest.drivers[1].pop().is_none(), "round {round}");
            assert!(read(&mut guest, 0, round) == data, "round {round}");
        }
        assert_eq!(guest.stats.blk_queues().map(|queue| queue.requests.get()).sum::<u64>(), 50 * 14);
        assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0);
    }
}

fn a_driver_starts_over_while_its_device_is_paused(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "restart", Behaviour::Inline, &worker);
        let handle = guest.handle();
        handle.pause().expect("paused");
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        stays_untouched(&guest.drivers[0], head);
        handle.resume().expect("resumed");
        assert_eq!(guest.finish(0).status, OK);
        read(&mut guest, 1, 0);
    }
}

fn a_queue_is_reset_while_its_device_is_paused(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "reset", Behaviour::Inline, &worker);
        let handle = guest.handle();
        read(&mut guest, 0, 0);
        handle.pause().expect("paused");
        guest.reset_queue(0);
        let driver = guest.driver(0, 1, 16);
        guest.enable_queue(0, driver);
        let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        stays_untouched(&guest.drivers[0], head);
        handle.resume().expect("resumed");
        assert_eq!(guest.finish(0).status, OK);
    }
}

/// The capacity that the driver reads, in sectors.
fn capacity(guest: &BusGuest) -> u64 {
    guest.read(|layout| layout.config)
}

fn a_medium_that_grows_is_told_to_the_driver(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let guest = started(bus, kind, "grows", Behaviour::Inline, &worker);
        assert_eq!(capacity(&guest), DISK_BYTES / 512);
        guest.write(|layout| layout.config_vector, 0);
        disk::control(&unique(bus, kind, "grows")).resize(2 * DISK_BYTES);
        guest.handle().refresh();
        wait_for("a configuration change interrupt", || guest.vectors[0].read().ok());
        assert_eq!(capacity(&guest), 2 * DISK_BYTES / 512);
    }
}

fn a_medium_that_hangs_while_it_is_measured_holds_up_nobody(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "hangs", Behaviour::Inline, &worker);
        let (control, handle) = (disk::control(&unique(bus, kind, "hangs")), guest.handle());
        let _released = control.hold_descriptions();
        control.resize(2 * DISK_BYTES);
        // The second is asked for while the first hangs.
        handle.refresh();
        wait_for("the question", || control.is_describing().then_some(()));
        handle.refresh();
        for sector in 0..100 {
            assert_eq!(capacity(&guest), DISK_BYTES / 512, "registers answer");
            read(&mut guest, 0, sector);
        }
        control.release_descriptions();
        wait_for("the new capacity", || (capacity(&guest) == 2 * DISK_BYTES / 512).then_some(()));
    }
}

/// The same memory, and some more.
fn with_more(memory: &GuestMemory, bytes: u64) -> GuestMemory {
    let region = MmapRegion::new(bytes as usize).expect("memory");
    let region = GuestRegionMmap::new(region, GuestAddress(MORE)).expect("a region");
    GuestMemory::from_map(Arc::new(memory.map().insert_region(Arc::new(region)).expect("another place")))
}

fn memory_is_added_under_running_queues(kind: RingKind) {
    let worker = worker();
    for bus in BusKind::BOTH {
        let mut guest = started(bus, kind, "memory", Behaviour::Held, &worker);
        let (handle, more) = (guest.handle(), with_more(guest.memory(), BlkDriver::bytes(QUEUE_SIZE, 4)));
        guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        let stats = guest.stats.blk_queues().next().expect("stats");
        wait_for("a request in the backend", || (stats.in_flight.get() == 1).then_some(()));
        thread::scope(|scope| {
            let change = scope.spawn(|| handle.set_memory(&more));
            for _ in 0..1000 {
                assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0, "registers answer");
            }
            assert!(!change.is_finished(), "a request uses the old memory");
            disk::control(&unique(bus, kind, "memory")).release();
            change.join().expect("no panic").expect("other memory");
        });
        assert_eq!(guest.finish(0).status, OK);
        read(&mut guest, 1, 0);
        // A ring and its requests in what was added.
        guest.reset_queue(0);
        let driver = BlkDriver::new(kind, &more, MORE, QUEUE_SIZE, 4, true);
        guest.enable_queue(0, driver);
        assert_eq!(guest.status() & STATUS_NEEDS_RESET, 0);
        assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
        // And of a driver that starts over, whose old memory is still there.
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        read(&mut guest, 0, 0);
    }
}

fn a_front_end_stops_and_starts_rings_of_a_paused_device(kind: RingKind) {
    let worker = worker();
    let name = format!("front-end-{kind:?}");
    let disk = disk::open(&name, DISK_BYTES, Behaviour::Deferred).expect("disk");
    let stats = StatsSegment::anonymous(2).expect("statistics");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let server = front_end::serve(Blk::new(options("blk0", 2, &[worker.handle()]), disk, &stats), &path);
    let handle = server.handle();
    let mut front = FrontEnd::with_rings(kind, &path, 2);
    front.start();
    let data = pattern(1, 512);
    assert_eq!(front.request(0, OUT, 3, &data, &Cut::plain(512, 0)).status, OK);
    for _ in 0..20 {
        (0..4).for_each(|sector| _ = front.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
        handle.pause().expect("paused");
        let head = front.submit(0, IN, 3, &[], &Cut::plain(0, 512));
        assert_eq!(u64::from_le_bytes(front.config(0, 8).try_into().expect("8 bytes")), DISK_BYTES / 512);
        assert_eq!(front.drivers[0].peek_status(head), UNTOUCHED);
        // It stops a ring, and starts it where it stood, with other events.
        let base = front.stop(1);
        front.calls[1] = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        front.set_up(1, base);
        front.enable(1, true);
        handle.resume().expect("resumed");
        assert!(front.finish(0).data == data);
        (0..4).for_each(|_| assert_eq!(front.finish(1).status, OK));
        assert!(front.drivers[1].pop().is_none(), "each once");
    }
    handle.pause().expect("paused");
    drop(front);
    let mut next = FrontEnd::with_rings(kind, &path, 2);
    next.start();
    let head = next.submit(0, IN, 3, &[], &Cut::plain(0, 512));
    stays_untouched(&next.drivers[0], head);
    handle.resume().expect("resumed");
    assert!(next.finish(0).data == data);
    let error = handle.set_memory(&next.memory).expect_err("it is the front end's").to_string();
    assert_eq!(error, "blk0: cannot use another memory: its memory comes from its front end");
    drop(server);
    assert_eq!(handle.pause().expect_err("gone").to_string(), "blk0: the device is gone");
}
