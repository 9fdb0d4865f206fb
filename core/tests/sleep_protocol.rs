//! No wake-up is lost between arming and sleeping: the workers' own code for it, run by loom in every order of the
//! threads' steps against models of a driver with its kicks, a backend with its wake descriptor, and the mailbox with
//! its bell. A wake-up that is lost is a deadlock, which loom reports.
#[path = "../src/worker/sleep.rs"]
mod sleep;

use loom::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
    thread,
};
use sleep::Sleeper;
// Not loom's, whose destructor panics once more when a deadlock is found.
use std::sync::Arc;

/// The eventfds: signs that stay until they are taken, and a wait for any of them.
#[derive(Default)]
struct Signs {
    given: Mutex<[bool; 3]>,
    any: Condvar,
}

const BELL: usize = 0;
const KICK: usize = 1;
const WAKE: usize = 2;

impl Signs {
    fn give(&self, which: usize) {
        self.given.lock().expect("no panics")[which] = true;
        self.any.notify_all();
    }

    fn take(&self, which: usize) {
        self.given.lock().expect("no panics")[which] = false;
    }

    fn wait(&self) {
        let mut given = self.given.lock().expect("no panics");
        while given.iter().all(|given| !given) {
            given = self.any.wait(given).expect("no panics");
        }
    }
}

/// What a worker and one of the others share: work that was made, and whether a sign is wanted with the next.
#[derive(Default)]
struct Source {
    made: AtomicUsize,
    wants_sign: AtomicBool,
}

impl Source {
    /// As a driver makes a request available (virtio 1.3, 2.7.13), and a backend a completion.
    fn make(&self, signs: &Signs, which: usize) {
        self.made.fetch_add(1, Ordering::Release);
        // Partner: the fence in `arm`.
        fence(Ordering::SeqCst);
        if self.wants_sign.load(Ordering::Relaxed) {
            signs.give(which);
        }
    }
}

#[derive(Default)]
struct World {
    signs: Signs,
    driver: Source,
    backend: Source,
    /// The mailbox, whose bell is rung after each command in any case.
    commands: AtomicUsize,
}

/// A mistake to make on purpose, for a proof that the model would find it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    LooksBeforeArming,
    NoFence,
    SignsTakenAfterTheLook,
}

struct Worker {
    world: Arc<World>,
    done: [usize; 2],
    mistake: Mistake,
}

impl Worker {
    fn sources(&self) -> [(&Source, usize, usize); 2] {
        [(&self.world.driver, self.done[0], KICK), (&self.world.backend, self.done[1], WAKE)]
    }

    /// A turn: takes all work, returns how much there was.
    fn turn(&mut self) -> usize {
        let now = [&self.world.driver, &self.world.backend].map(|source| source.made.load(Ordering::Acquire));
        let work = now.iter().sum::<usize>() - self.done.iter().sum::<usize>();
        self.done = now;
        work
    }

    /// Runs until so much work and so many commands are done.
    fn run(&mut self, work: usize, commands: usize) {
        let mut taken = 0;
        loop {
            let all = self.world.commands.load(Ordering::Acquire);
            taken = all.max(taken);
            let found = self.turn();
            if self.done.iter().sum::<usize>() == work && taken == commands {
                return;
            }
            if found == 0 {
                let mut attempt = Attempt { commands_taken: taken, worker: self };
                sleep::sleep(&mut attempt);
            }
        }
    }
}

struct Attempt<'w> {
    worker: &'w mut Worker,
    commands_taken: usize,
}

impl Sleeper for Attempt<'_> {
    fn arm(&mut self) -> bool {
        let mistake = self.worker.mistake;
        let has_work = |source: &Source, done| source.made.load(Ordering::Acquire) != done;
        for (source, done, _) in self.worker.sources() {
            if mistake == Mistake::LooksBeforeArming && has_work(source, done) {
                return true;
            }
            source.wants_sign.store(true, Ordering::Relaxed);
            if mistake != Mistake::NoFence {
                // Partner: the fence in `Source::make`.
                fence(Ordering::SeqCst);
            }
            if mistake != Mistake::LooksBeforeArming && has_work(source, done) {
                return true;
            }
        }
        if mistake == Mistake::SignsTakenAfterTheLook {
            [KICK, WAKE].iter().for_each(|&which| self.worker.world.signs.take(which));
        }
        false
    }

    fn has_commands(&self) -> bool {
        self.worker.world.commands.load(Ordering::Acquire) != self.commands_taken
    }

    fn wait(&mut self) {
        self.worker.world.signs.wait();
    }

    fn clear_bell(&mut self) {
        self.worker.world.signs.take(BELL);
    }

    fn disarm(&mut self) {
        for (source, _, sign) in self.worker.sources() {
            source.wants_sign.store(false, Ordering::Relaxed);
            self.worker.world.signs.take(sign);
        }
    }
}

/// Everything in every order, with at most `preemptions` involuntary switches between the threads.
fn check(mistake: Mistake, requests: usize, completions: usize, commands: usize, preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let world = Arc::new(World::default());
        let mut threads = Vec::new();
        if requests > 0 {
            let world = world.clone();
            threads.push(thread::spawn(move || (0..requests).for_each(|_| world.driver.make(&world.signs, KICK))));
        }
        if completions > 0 {
            let world = world.clone();
            threads.push(thread::spawn(move || (0..completions).for_each(|_| world.backend.make(&world.signs, WAKE))));
        }
        if commands > 0 {
            let world = world.clone();
            threads.push(thread::spawn(move || {
                for _ in 0..commands {
                    world.commands.fetch_add(1, Ordering::Release);
                    world.signs.give(BELL);
                }
            }));
        }
        Worker { world, done: [0; 2], mistake }.run(requests + completions, commands);
        threads.into_iter().for_each(|thread| thread.join().expect("no panics"));
    });
}

#[test]
fn no_kick_is_lost() {
    check(Mistake::None, 2, 0, 0, 4);
}

#[test]
fn no_command_is_lost() {
    check(Mistake::None, 0, 0, 2, 4);
}

#[test]
fn nothing_is_lost_of_all_three_at_once() {
    check(Mistake::None, 1, 1, 1, 2);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_finds_a_look_before_arming() {
    check(Mistake::LooksBeforeArming, 2, 0, 0, 4);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_finds_a_missing_fence() {
    check(Mistake::NoFence, 2, 0, 0, 4);
}

#[test]
#[should_panic(expected = "deadlock")]
fn the_model_finds_signs_that_are_taken_too_late() {
    check(Mistake::SignsTakenAfterTheLook, 2, 0, 0, 4);
}
