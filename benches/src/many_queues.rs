//! A worker with many queues, of which one at most is busy.
use crate::{backend::backend, prepared::Prepared};
use pollux_core::{stats::clock, worker::REST_AFTER};
use pollux_driver::RingKind;
use pollux_testing::{rig::prepared_queue, turns::Turns};

/// A worker's queues, with a driver for each; the first one's has `depth` requests.
#[derive(Debug)]
pub struct ManyQueues {
    turns: Turns,
    drivers: Vec<Prepared>,
    depth: usize,
}

impl ManyQueues {
    /// `queues` queues, all of them at rest that can be, and `depth` requests of the first one's driver.
    pub fn new(queues: usize, depth: usize) -> Self {
        Self::with_rings(RingKind::Split, queues, depth)
    }

    /// As [`new`](Self::new), for the kind of ring named.
    pub fn with_rings(kind: RingKind, queues: usize, depth: usize) -> Self {
        let null = backend("null", r#"{"size": 1073741824}"#);
        let mut turns = Turns::default();
        let drivers: Vec<Prepared> = (0..queues).map(|_| Prepared::new(kind, depth, false)).collect();
        for driver in &drivers {
            turns.add(prepared_queue(kind, null.clone(), &driver.memory, driver.driver.config()));
        }
        // Idle for long enough that those rest which can.
        (0..=REST_AFTER).for_each(|_| assert_eq!(turns.turn(), 0));
        ManyQueues { turns, drivers, depth }
    }

    /// Nanoseconds of one round: a turn, or with requests as many turns as they take.
    pub fn rounds(&mut self, rounds: u64) -> f64 {
        let (turns, depth) = (&mut self.turns, self.depth);
        if depth == 0 {
            let start = clock::ticks();
            (0..rounds).for_each(|_| assert_eq!(worker_turn(turns), 0));
            let ticks = clock::ticks().wrapping_sub(start);
            return clock::Scale::new().nanoseconds(ticks) as f64 / rounds as f64;
        }
        let time = self.drivers[0].measure(rounds, || {
            let mut work = 0;
            while work < depth {
                work += worker_turn(turns);
            }
        });
        time.as_nanos() as f64 / rounds as f64
    }
}

/// What is counted. A symbol of its own, for callgrind to find.
#[inline(never)]
fn worker_turn(turns: &mut Turns) -> usize {
    turns.turn()
}
