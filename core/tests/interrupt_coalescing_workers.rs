//! Workers that hold interrupts for others: a driver that sleeps is woken, whatever the idle policy, over vhost-user as
//! well.
use pollux_core::{
    device::blk::{Blk, BlkOptions},
    queue::{QueueOptions, coalescing::Coalescing},
    stats::StatsSegment,
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour, ReleasedAtEnd},
    front_end::{self, FrontEnd},
    rig::{Guest, options},
};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pollux_testing::on_both_rings!(
    an_interrupt_is_sent_when_the_time_is_over_or_before_the_worker_sleeps,
    no_sleeping_driver_is_forgotten_by_a_worker,
    over_vhost_user_queues_hold_their_interrupts_and_send_them,
);

fn with(coalescing: Coalescing, options: BlkOptions) -> BlkOptions {
    BlkOptions { queues: QueueOptions { coalescing, ..options.queues }, ..options }
}

/// Small numbers that look random.
fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut bytes = pattern(seed, 1 << 16).into_iter().cycle();
    move |below| usize::from(bytes.next().expect("it is endless")) % below
}

fn an_interrupt_is_sent_when_the_time_is_over_or_before_the_worker_sleeps(kind: RingKind) {
    let limits = Coalescing::Limits { count: u32::MAX, time_us: 2000 };
    for policy in [IdlePolicy::Spin, IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        let worker = Worker::spawn("timely", None, policy).expect("worker");
        let name = format!("timely-{kind:?}-{policy}");
        let backend = disk::open(&name, 1 << 20, Behaviour::Metered).expect("disk");
        let mut guest = Guest::with_options(kind, backend, with(limits, options(&name, 1, &[worker.handle()])));
        let disk = ReleasedAtEnd(disk::control(&name));
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        guest.drivers[0].ring.want_interrupts(true);
        disk.complete(1);
        guest.drivers[0].add(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
        guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        wait_for("an interrupt", || guest.call.read().ok());
        assert_eq!(guest.drivers[0].ring.used_count(), 1, "{policy}");
    }
}

/// A driver that sleeps until it is interrupted, on three queues that two workers serve.
fn sleep_on_a_worker(kind: RingKind, policy: IdlePolicy, behaviour: Behaviour, coalescing: Coalescing, rounds: usize) {
    let workers = [0, 1].map(|index| Worker::spawn(&format!("io{index}"), None, policy).expect("worker"));
    let handles = workers.each_ref().map(Worker::handle);
    let disk = disk::open("interrupted", 1 << 20, behaviour).expect("disk");
    let mut guest = Guest::with_options(kind, disk, with(coalescing, options("interrupted", 3, &handles)));
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let mut random = numbers(11);
    let mut requests = 0;
    for round in 0..rounds {
        for _ in 0..1 + random(6) {
            if guest.drivers.iter().all(|driver| driver.in_flight() < 60) {
                guest.submit(random(3), OUT, random(1024) as u64, &[round as u8; 512], &Cut::plain(512, 0));
                requests += 1;
            }
        }
        let waits_for_all = round + 1 == rounds || random(2) == 0;
        loop {
            for driver in &mut guest.drivers {
                driver.ring.want_interrupts(true);
            }
            let mut reaped = 0;
            for driver in &mut guest.drivers {
                while let Some(finished) = driver.pop() {
                    assert_eq!(finished.status, OK);
                    reaped += 1;
                }
            }
            let in_flight: usize = guest.drivers.iter().map(BlkDriver::in_flight).sum();
            if in_flight == 0 || reaped > 0 && !waits_for_all {
                break;
            }
            if reaped == 0 {
                wait_for("an interrupt", || guest.call.read().ok());
            }
        }
    }
    guest.device.set_status(0);
    let stats = guest.stats.blk_queues().map(|queue| {
        let counts = [&queue.interrupts, &queue.interrupts_merged, &queue.interrupts_suppressed].map(|it| it.get());
        assert!(counts.iter().sum::<u64>() <= queue.requests.get(), "{counts:?} of {}", queue.requests.get());
        queue.requests.get()
    });
    assert_eq!(stats.sum::<u64>(), requests);
}

fn no_sleeping_driver_is_forgotten_by_a_worker(kind: RingKind) {
    for policy in [IdlePolicy::Spin, IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        for coalescing in [Coalescing::Adaptive, Coalescing::Limits { count: 3, time_us: 20 }] {
            // Three that spin on two CPUs take their time.
            let rounds = if policy == IdlePolicy::Spin { 50 } else { 500 };
            sleep_on_a_worker(kind, policy, Behaviour::Slow, coalescing, rounds);
            sleep_on_a_worker(kind, policy, Behaviour::Deferred, coalescing, rounds);
            sleep_on_a_worker(kind, policy, Behaviour::Threaded, coalescing, rounds / 5);
        }
    }
}

fn over_vhost_user_queues_hold_their_interrupts_and_send_them(kind: RingKind) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let worker = Worker::spawn("io0", None, IdlePolicy::Spin).expect("a worker");
    let stats = StatsSegment::anonymous(2).expect("statistics");
    let name = format!("vu-held-{kind:?}");
    let backend = disk::open(&name, 1 << 20, Behaviour::Metered).expect("a disk");
    // Held until four requests can be told of, or for more than an hour.
    let by_count = Coalescing::Limits { count: 4, time_us: u32::MAX };
    let model = Blk::new(with(by_count, options(&name, 2, &[worker.handle()])), backend, &stats);
    let _server = front_end::serve(model, &path);
    let disk = ReleasedAtEnd(disk::control(&name));
    let mut front = FrontEnd::with_rings(kind, &path, 2);
    front.start();
    let cut = Cut::plain(0, 512);
    for queue in 0..2 {
        let counts = || {
            let queue = stats.blk_queues().nth(queue).expect("a queue");
            [queue.interrupts.get(), queue.interrupts_merged.get()]
        };
        // Of a call that came with the start of the ring.
        let _ = front.calls[queue].read();
        front.drivers[queue].ring.want_interrupts(true);
        (0..8).for_each(|_| _ = front.submit(queue, IN, 0, &[], &cut));
        for given_back in 1..=4 {
            assert!(front.calls[queue].read().is_err(), "{given_back}");
            disk.complete(1);
            wait_for("a request", || (front.drivers[queue].ring.used_count() == given_back).then_some(()));
        }
        wait_for("an interrupt", || front.calls[queue].read().ok());
        assert_eq!(counts(), [1, 3]);
        while front.drivers[queue].pop().is_some() {}
        // One is pending when the front end names another descriptor.
        front.drivers[queue].ring.want_interrupts(true);
        disk.complete(1);
        wait_for("a request", || (front.drivers[queue].ring.used_count() == 1).then_some(()));
        let place = EventFd::new(EFD_NONBLOCK).expect("eventfd");
        front.wire.set_vring_call(queue, &place).expect("SET_VRING_CALL");
        wait_for("an interrupt", || place.read().ok());
        assert!(front.calls[queue].read().is_err());
        // And one when the ring is stopped.
        while front.drivers[queue].pop().is_some() {}
        front.drivers[queue].ring.want_interrupts(true);
        disk.complete(1);
        wait_for("a request", || (front.drivers[queue].ring.used_count() == 1).then_some(()));
        assert!(place.read().is_err());
        // Those in flight, and the last flush.
        disk.complete(3);
        front.stop(queue);
        wait_for("an interrupt", || place.read().ok());
        assert_eq!(front.drivers[queue].ring.used_count(), 3);
    }
}
