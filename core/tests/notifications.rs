//! Kicks and interrupts happen when virtio 1.3, 2.7.7 to 2.7.10 and 2.8.14 say so, and not otherwise.
use pollux_core::{
    device::blk::turn::GROUP,
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour},
    rig::{Guest, Rig},
};

const EVENT_IDX: u64 = 1 << 29;

pollux_testing::on_both_rings!(
    a_polling_device_asks_for_no_kicks_however_long_it_runs,
    an_armed_device_asks_for_a_kick_and_a_disarmed_one_does_not,
    a_driver_that_wants_no_interrupt_gets_none,
    a_batch_is_signalled_once,
    of_a_large_batch_a_first_group_is_shown_while_the_rest_is_done,
    with_event_idx_an_interrupt_comes_when_its_index_is_passed_and_not_before,
    no_wake_up_is_lost_with_event_idx,
    no_wake_up_is_lost_without_event_idx,
    a_sleeping_worker_is_woken_by_its_backend,
    a_sleeping_worker_takes_commands,
    a_device_that_fails_signals_a_configuration_change,
);

fn rig(kind: RingKind, event_idx: bool) -> Rig {
    Rig::new(kind, disk::open("notify", 1 << 20, Behaviour::Inline).expect("disk"), 256, event_idx)
}

fn one(rig: &mut Rig) {
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

fn a_polling_device_asks_for_no_kicks_however_long_it_runs(kind: RingKind) {
    for event_idx in [false, true] {
        let mut rig = rig(kind, event_idx);
        // More than once around the 16-bit index.
        for round in 0..70_000u32 {
            let (_, kick) = rig.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
            assert!(!kick, "request {round} with event_idx {event_idx}");
            rig.queue.poll();
            rig.driver.pop().expect("finished");
        }
    }
}

fn an_armed_device_asks_for_a_kick_and_a_disarmed_one_does_not(kind: RingKind) {
    for event_idx in [false, true] {
        let mut rig = rig(kind, event_idx);
        one(&mut rig);
        assert!(!rig.queue.arm(), "nothing to do: it may sleep");
        let (_, kick) = rig.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
        assert!(kick, "event_idx {event_idx}");
        rig.queue.disarm();
        rig.finish();
        let (_, kick) = rig.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
        assert!(!kick, "event_idx {event_idx}");
        assert!(rig.queue.arm(), "there is a request: it must not sleep");
        rig.queue.disarm();
        rig.finish();
    }
}

fn a_driver_that_wants_no_interrupt_gets_none(kind: RingKind) {
    for event_idx in [false, true] {
        let mut rig = rig(kind, event_idx);
        rig.driver.ring.want_interrupts(true);
        one(&mut rig);
        assert!(rig.signalled(), "event_idx {event_idx}");
        rig.driver.ring.want_interrupts(false);
        one(&mut rig);
        assert!(!rig.signalled(), "event_idx {event_idx}");
        rig.driver.ring.want_interrupts(true);
        one(&mut rig);
        assert!(rig.signalled(), "event_idx {event_idx}");
    }
}

fn a_batch_is_signalled_once(kind: RingKind) {
    for event_idx in [false, true] {
        let mut rig = rig(kind, event_idx);
        rig.driver.ring.want_interrupts(true);
        for index in 0..40 {
            rig.driver.add(OUT, index, &[1; 512], &Cut::plain(512, 0)).expect("room");
        }
        rig.driver.ring.publish();
        rig.queue.poll();
        assert_eq!(rig.call.read().ok(), Some(1), "event_idx {event_idx}");
        while rig.driver.pop().is_some() {}
        assert_eq!(rig.driver.in_flight(), 0);
    }
}

fn of_a_large_batch_a_first_group_is_shown_while_the_rest_is_done(kind: RingKind) {
    let name = format!("groups-{kind:?}");
    let backend = disk::open(&name, 1 << 20, Behaviour::Gated).expect("disk");
    let mut rig = Rig::new(kind, backend, 256, true);
    // The first batch, from which the queue learns that the backend completes at once.
    one(&mut rig);
    rig.driver.ring.want_interrupts(true);
    for _ in 0..GROUP + 8 {
        rig.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    }
    rig.signalled();
    let (queue, driver) = (&mut rig.queue, &mut rig.driver);
    std::thread::scope(|scope| {
        let turn = scope.spawn(|| queue.poll());
        // The backend stands still with the second group.
        for _ in 0..GROUP {
            wait_for("a request of the first group", || driver.pop());
        }
        let next = driver.pop();
        disk::control(&name).release();
        assert!(next.is_none(), "the second group is not done");
        turn.join().expect("no panic");
    });
    for _ in 0..8 {
        assert_eq!(rig.driver.pop().expect("done").status, OK);
    }
    assert_eq!(rig.call.read().ok(), Some(1), "one interrupt for the whole batch, which the driver has asked for");
}

fn with_event_idx_an_interrupt_comes_when_its_index_is_passed_and_not_before(kind: RingKind) {
    let mut rig = rig(kind, true);
    rig.driver.ring.want_interrupts(true);
    one(&mut rig);
    assert!(rig.signalled());
    // The driver does not move its event: no further interrupts, until the index comes around.
    for _ in 0..100 {
        one(&mut rig);
        assert!(!rig.signalled());
    }
}

/// A worker with three devices, whose disks are behind none, one and two layers, under a driver that pauses at random,
/// so that it often meets the worker between looking and sleeping, while another thread attaches and detaches a fourth.
fn no_wake_up_is_lost(kind: RingKind, policy: IdlePolicy, behaviour: Behaviour, without: u64) {
    const ROUNDS: usize = 2000;
    let worker = Worker::spawn("sleepy", None, policy).expect("worker");
    let mut guests: Vec<Guest> = (0..3)
        .map(|layers| {
            let disk = disk::open("sleepy", 1 << 20, behaviour).expect("disk");
            let mut guest = Guest::with_rings(kind, "sleepy", disk::behind(layers, disk), 1, &[worker.handle()]);
            assert_eq!(guest.start_without(without) & STATUS_NEEDS_RESET, 0);
            guest
        })
        .collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let disk = disk::open("fleeting", 1 << 20, Behaviour::Inline).expect("disk");
            let mut guest = Guest::with_rings(kind, "fleeting", disk, 1, &[worker.handle()]);
            // Each start and reset is a command, and returns when the worker has done it.
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
                guest.device.set_status(0);
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        for (round, &pause) in pattern(7, ROUNDS).iter().enumerate() {
            let sector = round as u64 % 1024;
            let guest = &mut guests[usize::from(pause) % 3];
            assert_eq!(guest.request(0, OUT, sector, &[pause; 512], &Cut::plain(512, 0)).status, OK, "round {round}");
            // Up to twice the longest time that a worker polls before it sleeps (50 us), in steps of less than a
            // microsecond.
            let start = std::time::Instant::now();
            while start.elapsed().as_nanos() < u128::from(pause) * 400 {
                std::hint::spin_loop();
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let counts = guests.iter_mut().map(|guest| {
        guest.device.set_status(0);
        let stats = guest.stats.blk_queues().next().expect("stats");
        (stats.requests.get(), stats.kicks.get())
    });
    let (requests, kicks) = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(requests, ROUNDS as u64);
    assert!(kicks <= ROUNDS as u64);
    assert_eq!(kicks > 0, policy != IdlePolicy::Spin, "a worker that slept was kicked awake, and no other: {kicks}");
}

fn no_wake_up_is_lost_with_event_idx(kind: RingKind) {
    for policy in [IdlePolicy::Spin, IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        no_wake_up_is_lost(kind, policy, Behaviour::Inline, 0);
    }
}

fn no_wake_up_is_lost_without_event_idx(kind: RingKind) {
    for policy in [IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        no_wake_up_is_lost(kind, policy, Behaviour::Inline, EVENT_IDX);
    }
}

fn a_sleeping_worker_is_woken_by_its_backend(kind: RingKind) {
    for policy in [IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        no_wake_up_is_lost(kind, policy, Behaviour::Threaded, 0);
    }
}

fn a_sleeping_worker_takes_commands(kind: RingKind) {
    for (policy, round) in (0..50).flat_map(|round| [(IdlePolicy::Adaptive, round), (IdlePolicy::Interrupt, round)]) {
        let worker = Worker::spawn("asleep", None, policy).expect("worker");
        let disk = disk::open("asleep", 1 << 20, Behaviour::Deferred).expect("disk");
        let mut guest = Guest::with_rings(kind, "asleep", disk, 2, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "round {round}");
        std::thread::sleep(std::time::Duration::from_micros(20 * round));
        assert_eq!(guest.request(1, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    }
}

fn a_device_that_fails_signals_a_configuration_change(kind: RingKind) {
    let worker = Worker::spawn("config", None, IdlePolicy::Adaptive).expect("worker");
    let disk = disk::open("config", 1 << 20, Behaviour::Inline).expect("disk");
    let mut guest = Guest::with_rings(kind, "config", disk, 1, &[worker.handle()]);
    guest.start();
    let event = std::sync::Arc::new(vmm_sys_util::eventfd::EventFd::new(2048).expect("eventfd"));
    guest.device.interrupts().set_config_event(Some(event.clone()));
    let generation = guest.device.config_generation();
    guest.drivers[0].ring.break_rules();
    guest.device.kick(0).expect("queue").write(1).expect("kick");
    wait_for("a configuration change", || event.read().ok());
    assert_ne!(guest.device.status() & STATUS_NEEDS_RESET, 0);
    assert_ne!(guest.device.config_generation(), generation);
}
