//! Queues that nobody uses rest: they are not polled, and a request on them is served as soon as the worker has looked
//! at the ring.
use pollux_core::{memory::GuestMemory, worker::REST_AFTER};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour, control},
    rig::prepared_queue,
    turns::Turns,
};

pollux_testing::on_both_rings!(
    a_queue_without_work_rests_and_is_served_in_the_next_turn,
    a_request_is_not_missed_at_whatever_turn_it_comes,
    of_many_at_rest_those_are_served_that_have_work,
    a_queue_with_requests_in_flight_does_not_rest,
);

/// Entries of each ring: no multiple of a request's three, so that requests lie everywhere in it.
const SIZE: u16 = 16;

/// Queues of one worker, with a driver for each.
struct Queues {
    turns: Turns,
    drivers: Vec<BlkDriver>,
}

impl Queues {
    fn new(kind: RingKind, name: &str, behaviour: Behaviour, count: u64) -> Self {
        let each = BlkDriver::bytes(SIZE, 4).next_multiple_of(4096);
        let memory = GuestMemory::create(&[(0, each * count)], None).expect("guest memory");
        let disk = disk::open(name, 1 << 20, behaviour).expect("disk");
        let mut turns = Turns::default();
        let driver = |index| BlkDriver::new(kind, &memory, index * each, SIZE, 4, true);
        let drivers: Vec<_> = (0..count).map(driver).collect();
        for driver in &drivers {
            turns.add(prepared_queue(kind, disk.clone(), &memory, driver.ring.config()));
        }
        Queues { turns, drivers }
    }

    /// Idle turns.
    fn idle(&mut self, turns: u32) {
        (0..turns).for_each(|turn| assert_eq!(self.turns.turn(), 0, "turn {turn}"));
    }

    /// By a table now and then: such a chain has the buffer ID of the one in its place in the lap before.
    fn submit(&mut self, index: usize, sector: u64) {
        let cut = Cut { indirect: sector / 64 % 2 == 1, ..Cut::plain(512, 0) };
        self.drivers[index].submit(OUT, sector, &pattern(sector, 512), &cut).expect("room");
    }

    fn finished(&mut self, index: usize) -> bool {
        self.drivers[index].pop().is_some_and(|end| end.status == OK)
    }
}

fn a_queue_without_work_rests_and_is_served_in_the_next_turn(kind: RingKind) {
    let mut queues = Queues::new(kind, "rests", Behaviour::Inline, 1);
    // Over many laps of the ring, with both wrap counters.
    for round in 0..300 {
        queues.idle(REST_AFTER);
        assert_eq!(queues.turns.resting(), 1, "round {round}");
        queues.idle(5);
        queues.submit(0, round);
        assert!(queues.turns.turn() > 0 && queues.finished(0), "round {round}");
        assert_eq!(queues.turns.resting(), 0, "round {round}");
    }
}

fn a_request_is_not_missed_at_whatever_turn_it_comes(kind: RingKind) {
    let mut queues = Queues::new(kind, "whatever", Behaviour::Inline, 1);
    for round in 0..200 {
        queues.idle(REST_AFTER - 3 + round % 6);
        for sector in 0..=round % 3 {
            queues.submit(0, sector.into());
        }
        assert!(queues.turns.turn() > 0, "round {round}");
        assert!((0..=round % 3).all(|_| queues.finished(0)), "round {round}");
    }
}

fn of_many_at_rest_those_are_served_that_have_work(kind: RingKind) {
    const COUNT: usize = 40;
    const BUSY: usize = 5;
    let mut queues = Queues::new(kind, "many", Behaviour::Inline, COUNT as u64);
    queues.idle(REST_AFTER);
    assert_eq!(queues.turns.resting(), COUNT);
    for round in 0..400 {
        let index = round * 3 % BUSY;
        queues.submit(index, round as u64);
        wait_for("a queue at rest", || {
            queues.turns.turn();
            queues.finished(index).then_some(())
        });
        assert!(queues.turns.resting() >= COUNT - BUSY, "the others rest on");
    }
}

fn a_queue_with_requests_in_flight_does_not_rest(kind: RingKind) {
    let name = format!("busy-{kind:?}");
    let mut queues = Queues::new(kind, &name, Behaviour::Held, 1);
    queues.drivers[0].submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    assert!(queues.turns.turn() > 0);
    queues.idle(3 * REST_AFTER);
    assert_eq!(queues.turns.resting(), 0);
    control(&name).release();
    assert!(queues.turns.turn() > 0 && queues.finished(0));
    queues.idle(REST_AFTER);
    assert_eq!(queues.turns.resting(), 1);
}
