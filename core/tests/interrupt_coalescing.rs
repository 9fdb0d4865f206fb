//! Interrupts that wait for others: when they are sent, that none is lost, and that the account of them is exact.
//!
//! The tests that turn a queue by hand decide which requests complete in which turn. Where time is not to play a part
//! it is longer than any test.
use pollux_core::{
    device::blk::BlkOptions,
    event::Notifier,
    memory::GuestMemory,
    queue::{
        QueueOptions, QueueUpdate,
        coalescing::{Coalescing, INTERRUPTS_PER_SECOND},
    },
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, pattern, wait_for},
    disk::{self, Behaviour, ReleasedAtEnd},
    rig::{Rig, options},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pollux_testing::on_both_rings!(
    a_lone_request_is_told_of_at_once,
    an_interrupt_is_sent_when_the_count_is_reached,
    an_interrupt_is_sent_when_nothing_else_is_in_flight,
    requests_that_wait_in_the_ring_are_waited_for,
    an_interrupt_is_sent_when_the_time_is_over,
    a_driver_that_wants_none_gets_none_and_one_that_changes_its_mind_may,
    what_is_owed_is_sent_before_a_sleep,
    what_is_owed_is_sent_when_the_queue_stops,
    what_is_owed_is_sent_when_the_driver_breaks_its_ring,
    what_is_owed_is_sent_when_the_backend_fails,
    what_is_owed_is_sent_to_the_new_place_when_it_changes,
    adaptive_keeps_to_its_rate,
    no_interrupt_is_lost_and_all_are_counted,
);

/// Held until four requests can be told of, or for more than an hour.
const BY_COUNT: Coalescing = Coalescing::Limits { count: 4, time_us: u32::MAX };
/// Held for more than an hour, whatever the count.
const FOR_EVER: Coalescing = Coalescing::Limits { count: u32::MAX, time_us: u32::MAX };

fn with(coalescing: Coalescing, options: BlkOptions) -> BlkOptions {
    BlkOptions { queues: QueueOptions { coalescing, ..options.queues }, ..options }
}

/// A queue turned by hand, and the say in what its disk completes.
struct Bench {
    // Dropped before the queue, which waits for the disk at its end.
    disk: ReleasedAtEnd,
    rig: Rig,
    /// Turns in which the driver was given something back.
    batches: u64,
    /// Signals received.
    signals: u64,
}

impl Bench {
    fn new(kind: RingKind, name: &str, event_idx: bool, coalescing: Coalescing) -> Self {
        Self::with_disk(kind, name, Behaviour::Metered, event_idx, coalescing)
    }

    fn with_disk(kind: RingKind, name: &str, behaviour: Behaviour, event_idx: bool, coalescing: Coalescing) -> Self {
        let name = format!("{name}-{kind:?}-{event_idx}-{coalescing:?}");
        let backend = disk::open(&name, 1 << 20, behaviour).expect("disk");
        let memory = GuestMemory::create(&[(0, BlkDriver::bytes(256, 128))], None).expect("guest memory");
        let driver = BlkDriver::new(kind, &memory, 0, 256, 128, event_idx);
        let options = with(coalescing, options("blk0", 1, &[]));
        let mut rig = Rig::with_options(kind, backend, driver, event_idx, options);
        rig.driver.ring.want_interrupts(true);
        Bench { disk: ReleasedAtEnd(disk::control(&name)), rig, batches: 0, signals: 0 }
    }

    fn submit(&mut self, count: usize) {
        for _ in 0..count {
            let cut = Cut { indirect: true, ..Cut::plain(0, 512) };
            self.rig.driver.submit(IN, 0, &[], &cut).expect("room");
        }
    }

    /// One turn in which the disk may complete so many. Returns whether the driver was signalled in it.
    fn turn(&mut self, complete: usize) -> bool {
        self.disk.complete(complete);
        let before = self.rig.driver.ring.used_count();
        self.rig.queue.poll();
        self.batches += u64::from(self.rig.driver.ring.used_count() != before);
        self.signalled()
    }

    /// Whether the driver was signalled since it was last asked.
    fn signalled(&mut self) -> bool {
        let count = self.rig.call.read().unwrap_or(0);
        self.signals += count;
        count > 0
    }

    /// Takes all that was given back. Returns how many.
    fn reap(&mut self) -> usize {
        let finished = std::iter::from_fn(|| self.rig.driver.pop());
        finished.inspect(|finished| assert_eq!(finished.status, OK)).count()
    }

    /// Takes all that was given back, and asks for an interrupt with the next.
    fn reap_and_want(&mut self) -> usize {
        let count = self.reap();
        self.rig.driver.ring.want_interrupts(true);
        count
    }

    /// Interrupts sent, merged, not wanted, as the statistics have them.
    fn counts(&self) -> [u64; 3] {
        let stats = self.rig.stats.blk_queues().next().expect("a queue");
        [stats.interrupts.get(), stats.interrupts_merged.get(), stats.interrupts_suppressed.get()]
    }

    /// Each batch is in exactly one of the counters, and each interrupt that was counted was received.
    fn check_counts(&mut self, pending: u64) {
        self.signalled();
        let [sent, merged, unwanted] = self.counts();
        assert_eq!(
            sent + merged + unwanted + pending,
            self.batches,
            "sent {sent}, merged {merged}, unwanted {unwanted}"
        );
        assert_eq!(sent, self.signals);
    }
}

fn a_lone_request_is_told_of_at_once(kind: RingKind) {
    for coalescing in [Coalescing::Off, Coalescing::Adaptive, FOR_EVER] {
        for (event_idx, behaviour) in
            [(false, Behaviour::Metered), (true, Behaviour::Metered), (true, Behaviour::Inline)]
        {
            let mut bench = Bench::with_disk(kind, "lone", behaviour, event_idx, coalescing);
            for round in 0..500 {
                bench.submit(1);
                let mut signalled = false;
                let mut turns = 0;
                while bench.rig.driver.ring.used_count() == 0 {
                    signalled = bench.turn(usize::from(turns > 0 && behaviour == Behaviour::Metered));
                    turns += 1;
                    assert!(turns < 4, "a turn for submission and one for completion");
                }
                assert!(signalled, "in the turn that gave request {round} back, with {coalescing:?}");
                assert_eq!(bench.reap_and_want(), 1);
            }
            assert_eq!(bench.counts(), [500, 0, 0]);
            bench.check_counts(0);
        }
    }
}

fn an_interrupt_is_sent_when_the_count_is_reached(kind: RingKind) {
    for event_idx in [false, true] {
        let mut bench = Bench::new(kind, "count", event_idx, BY_COUNT);
        bench.submit(16);
        assert!(!bench.turn(0));
        for round in 0..3 {
            for _ in 0..3 {
                assert!(!bench.turn(1), "round {round}");
            }
            assert!(bench.turn(1), "round {round}: four can be told of");
            assert!(!bench.turn(0), "once");
            assert_eq!(bench.reap_and_want(), 4);
        }
        // All four at once, and more than four.
        assert!(bench.turn(4));
        assert_eq!(bench.reap_and_want(), 4);
        bench.submit(8);
        assert!(!bench.turn(0) && !bench.turn(1) && bench.turn(6));
        assert_eq!(bench.counts(), [5, 3 * 3 + 1, 0]);
        bench.check_counts(0);
    }
}

fn an_interrupt_is_sent_when_nothing_else_is_in_flight(kind: RingKind) {
    for event_idx in [false, true] {
        let mut bench = Bench::new(kind, "last", event_idx, FOR_EVER);
        for _ in 0..3 {
            bench.submit(5);
            assert!(!bench.turn(0) && !bench.turn(2) && !bench.turn(1) && !bench.turn(0));
            assert!(bench.turn(2), "in the very turn");
            assert_eq!(bench.reap_and_want(), 5);
        }
        assert_eq!(bench.counts(), [3, 6, 0]);
        bench.check_counts(0);
    }
}

fn requests_that_wait_in_the_ring_are_waited_for(kind: RingKind) {
    // More than one turn takes, from a disk with which nothing is ever in flight at the end of a turn.
    let mut bench = Bench::with_disk(kind, "ring", Behaviour::Inline, true, FOR_EVER);
    bench.submit(100);
    assert!(!bench.turn(0));
    assert_eq!(bench.rig.driver.ring.used_count(), 64);
    assert!(bench.turn(0));
    assert_eq!(bench.reap(), 100);
    assert_eq!(bench.counts(), [1, 1, 0]);
}

fn an_interrupt_is_sent_when_the_time_is_over(kind: RingKind) {
    let time = Duration::from_millis(2);
    let limits = Coalescing::Limits { count: u32::MAX, time_us: time.as_micros() as u32 };
    let mut bench = Bench::new(kind, "time", true, limits);
    bench.submit(2);
    assert!(!bench.turn(0));
    let start = Instant::now();
    let mut complete = 1;
    wait_for("an interrupt", || bench.turn(std::mem::take(&mut complete)).then_some(()));
    // The clock of the queue is another one: calibrated, not exact.
    assert!(start.elapsed() > time * 9 / 10, "{:?}", start.elapsed());
    assert_eq!(bench.rig.driver.in_flight(), 2, "the other one is still in flight");
}

fn a_driver_that_wants_none_gets_none_and_one_that_changes_its_mind_may(kind: RingKind) {
    for event_idx in [false, true] {
        let mut bench = Bench::new(kind, "mind", event_idx, BY_COUNT);
        bench.rig.driver.ring.want_interrupts(false);
        bench.submit(12);
        assert!(!bench.turn(0));
        for _ in 0..6 {
            assert!(!bench.turn(1));
        }
        assert_eq!(bench.counts(), [0, 0, 6]);
        // Those that it was not to be told of do not count.
        bench.reap_and_want();
        assert!(!bench.turn(1));
        // It is pending from now on, whatever the driver says meanwhile.
        bench.rig.driver.ring.want_interrupts(false);
        assert!(!bench.turn(1) && !bench.turn(1) && bench.turn(1));
        assert!(!bench.turn(1) && !bench.turn(1));
        assert_eq!(bench.counts(), [1, 3, 8]);
        bench.check_counts(0);
    }
}

fn what_is_owed_is_sent_before_a_sleep(kind: RingKind) {
    for event_idx in [false, true] {
        let mut bench = Bench::new(kind, "sleep", event_idx, FOR_EVER);
        bench.submit(6);
        assert!(!bench.turn(0) && !bench.turn(1));
        // There is work: the worker does not sleep, and it may wait.
        bench.submit(1);
        assert!(bench.rig.queue.arm());
        assert!(!bench.signalled());
        bench.rig.queue.disarm();
        assert!(!bench.turn(0));
        assert!(!bench.rig.queue.arm(), "the worker may sleep until the disk wakes it");
        assert!(bench.signalled());
        bench.rig.queue.disarm();
        // It is not pending any more.
        assert!(!bench.turn(0) && !bench.rig.queue.arm() && !bench.signalled());
        bench.rig.queue.disarm();
        assert_eq!(bench.reap_and_want(), 1);
        assert!(!bench.turn(1) && !bench.turn(4) && bench.turn(1));
        assert_eq!(bench.counts(), [2, 2, 0]);
        bench.check_counts(0);
    }
}

fn what_is_owed_is_sent_when_the_queue_stops(kind: RingKind) {
    let mut bench = Bench::new(kind, "stop", true, FOR_EVER);
    bench.submit(3);
    assert!(!bench.turn(0) && !bench.turn(1));
    bench.rig.queue.begin_stop();
    assert!(bench.turn(0), "before the others are done");
    // What comes in the course of it is not held either.
    assert_eq!(bench.reap_and_want(), 1);
    assert!(bench.turn(1));
    assert_eq!(bench.reap_and_want(), 1);
    assert!(bench.turn(1));
    // The last flush.
    bench.disk.release();
    wait_for("the stop", || {
        bench.turn(0);
        bench.rig.queue.is_stopped().then_some(())
    });
    assert_eq!(bench.counts(), [3, 0, 0]);
    bench.check_counts(0);
}

fn what_is_owed_is_sent_when_the_driver_breaks_its_ring(kind: RingKind) {
    let mut bench = Bench::new(kind, "break", true, FOR_EVER);
    bench.submit(3);
    assert!(!bench.turn(0) && !bench.turn(1));
    bench.rig.driver.ring.break_rules();
    assert!(bench.turn(0));
    assert!(bench.rig.interrupts.has_failed());
    assert_eq!(bench.counts(), [1, 0, 0]);
    // Those in flight end without delay.
    assert_eq!(bench.reap_and_want(), 1);
    assert!(bench.turn(1));
    bench.turn(1);
    bench.check_counts(0);
}

fn what_is_owed_is_sent_when_the_backend_fails(kind: RingKind) {
    let mut bench = Bench::new(kind, "fail", true, FOR_EVER);
    bench.submit(3);
    assert!(!bench.turn(0) && !bench.turn(1));
    bench.disk.panic();
    assert!(bench.turn(0));
    assert!(bench.rig.interrupts.has_failed());
    assert_eq!(bench.rig.driver.ring.used_count(), 3, "the others with an error");
    assert_eq!(bench.counts(), [1, 1, 0]);
    bench.check_counts(0);
}

fn what_is_owed_is_sent_to_the_new_place_when_it_changes(kind: RingKind) {
    let mut bench = Bench::new(kind, "place", true, FOR_EVER);
    bench.submit(3);
    assert!(!bench.turn(0) && !bench.turn(1));
    let place = Arc::new(EventFd::new(EFD_NONBLOCK).expect("eventfd"));
    bench.rig.queue.update(&mut QueueUpdate::Notifier(Notifier::new(place.clone(), None)));
    assert_eq!((place.read().ok(), bench.signalled()), (Some(1), false), "there and not here");
    assert_eq!(bench.counts(), [1, 0, 0]);
    assert!(!bench.turn(0) && place.read().is_err(), "once");
    // Without a pending one the new place is signalled as well, since the old one may have missed any.
    bench.rig.queue.update(&mut QueueUpdate::Notifier(Notifier::new(bench.rig.call.clone(), None)));
    assert!(bench.signalled());
    assert_eq!(bench.counts(), [1, 0, 0]);
}

/// Wants an interrupt for each of many requests, as fast as this machine can, with another one always in flight.
fn adaptive_keeps_to_its_rate(kind: RingKind) {
    let mut bench = Bench::new(kind, "rate", false, Coalescing::Adaptive);
    let start = Instant::now();
    bench.submit(1);
    bench.turn(0);
    while start.elapsed() < Duration::from_millis(30) {
        bench.submit(1);
        bench.turn(1);
        bench.reap();
    }
    let most = INTERRUPTS_PER_SECOND as f64 * start.elapsed().as_secs_f64();
    let [sent, ..] = bench.counts();
    // The burst at the beginning; and the clock of the queue is calibrated, not exact.
    assert!((sent as f64) < most * 1.1 + 20.0, "{sent} of {} in the time of {most}", bench.batches);
    bench.disk.complete(1);
    wait_for("the last interrupt", || {
        let before = bench.signals;
        bench.turn(0);
        (bench.signals > before || bench.rig.driver.ring.used_count() > 0).then_some(())
    });
    bench.check_counts(0);
}

/// Small numbers that look random.
fn numbers(seed: u64) -> impl FnMut(usize) -> usize {
    let mut bytes = pattern(seed, 1 << 16).into_iter().cycle();
    move |below| usize::from(bytes.next().expect("it is endless")) % below
}

/// A driver that submits, reaps, sleeps and changes its mind at random, and a worker that sleeps at random. Whenever
/// the device has nothing left to do, or its worker sleeps, a driver that sleeps with something to reap has been woken.
fn no_interrupt_is_lost_and_all_are_counted(kind: RingKind) {
    let policies = [Coalescing::Off, Coalescing::Adaptive, BY_COUNT, FOR_EVER];
    for (case, coalescing) in [policies, policies].concat().into_iter().enumerate() {
        let event_idx = case % 2 == case / 4;
        let mut bench = Bench::new(kind, &format!("random-{case}"), event_idx, coalescing);
        let mut random = numbers(case as u64 + 1);
        let mut asleep = false;
        let mut sleeps = [0, 0];
        for step in 0..20_000 {
            if asleep && bench.signalled() {
                asleep = false;
            }
            if !asleep {
                if random(2) == 0 {
                    let room = 100 - bench.rig.driver.in_flight();
                    bench.submit(random(4).min(room));
                }
                bench.reap();
                match random(4) {
                    0 => bench.rig.driver.ring.want_interrupts(false),
                    1 => {
                        bench.rig.driver.ring.want_interrupts(true);
                        // The look after the wish, without which no device could be right.
                        asleep = bench.rig.driver.ring.used_count() == 0 && bench.rig.driver.in_flight() > 0;
                        sleeps[0] += usize::from(asleep);
                    }
                    _ => {}
                }
            }
            let in_flight = bench.rig.driver.in_flight() - usize::from(bench.rig.driver.ring.used_count());
            let complete = random(3).min(in_flight);
            let mut woken = bench.turn(complete);
            let worker_sleeps = random(8) == 0 && !bench.rig.queue.arm();
            if worker_sleeps {
                sleeps[1] += 1;
                woken |= bench.signalled();
                bench.rig.queue.disarm();
            }
            asleep &= !woken;
            let given_back = usize::from(bench.rig.driver.ring.used_count());
            let is_done = bench.rig.driver.in_flight() == given_back;
            let is_full = coalescing == BY_COUNT && given_back >= 4;
            if asleep && (is_done || worker_sleeps || is_full || coalescing == Coalescing::Off) {
                assert_eq!(given_back, 0, "step {step} of case {case}: the driver sleeps for ever");
            }
        }
        // Whoever waits is woken once all is done.
        let left = bench.rig.driver.in_flight() - usize::from(bench.rig.driver.ring.used_count());
        bench.turn(left);
        bench.turn(0);
        bench.check_counts(0);
        let [sent, merged, unwanted] = bench.counts();
        assert!(sent > 100 && unwanted > 100, "sent {sent}, not wanted {unwanted}");
        match coalescing {
            Coalescing::Off => assert_eq!(merged, 0),
            // How many depends on the speed of this machine.
            Coalescing::Adaptive => {}
            Coalescing::Limits { .. } => assert!(merged > 100, "merged {merged}"),
        }
        assert!(sleeps.iter().all(|&count| count > 100), "{sleeps:?}");
    }
}
