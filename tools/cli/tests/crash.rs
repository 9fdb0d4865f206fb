//! `pollux serve` is killed under load, over and over, and started again. Its guest, which keeps its memory and the
//! record of requests in flight as QEMU does, must not lose, see twice, or find damaged anything.
//!
//! `POLLUX_CRASH_ROUNDS` sets the number of rounds of all tests together (360), `POLLUX_CRASH_SEED` repeats the choice
//! of their lengths: `POLLUX_CRASH_ROUNDS=10000 cargo test --release -p pollux --test crash -- --nocapture`.
mod common;

use common::disk::{BUFFERED, DEPTH, DIRECT, Disk, FILE, Guest};
use pollux_core::ring::RingKind;
use pollux_loadgen::{Ended, FrontEndOptions, Indirect};
use std::{
    env,
    str::FromStr,
    time::{Instant, SystemTime},
};

/// Runs that share the rounds.
const RUNS: u64 = 11;
/// Completions after which a round ends, at most.
const ROUND_MAX: u64 = 1500;

/// What came together in the rounds of one test.
#[derive(Default)]
struct Tally {
    /// Requests that the guest had in flight at the crashes.
    in_flight: u64,
    /// Of these: taken by the backend and not given back, so that the next one does them again.
    replayed: u64,
    /// Crashes with head 0 among these.
    head_zero: u64,
    /// Crashes with anything among these.
    replays: u64,
}

impl Tally {
    fn add(&mut self, guest: &Guest) {
        let taken = guest.taken();
        self.in_flight += guest.front_end.in_flight();
        self.replayed += taken.iter().map(|heads| heads.len() as u64).sum::<u64>();
        self.head_zero += u64::from(taken.iter().any(|heads| heads.contains(&0)));
        self.replays += u64::from(taken.iter().any(|heads| !heads.is_empty()));
    }
}

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn rounds() -> u64 {
    from_environment("POLLUX_CRASH_ROUNDS").unwrap_or(360_u64).div_ceil(RUNS)
}

fn random() -> (u64, fastrand::Rng) {
    let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    let seed = from_environment("POLLUX_CRASH_SEED").unwrap_or_else(now);
    (seed, fastrand::Rng::with_seed(seed))
}

/// The rounds of one test, on `disk`.
fn crash(test: &str, disk: &Disk, options: FrontEndOptions) -> Tally {
    let (seed, mut random) = random();
    let rounds = rounds();
    println!("{test}: POLLUX_CRASH_SEED={seed}");
    let mut server = disk.serve();
    let mut guest = Guest::new(disk, options);
    let mut tally = Tally::default();
    let start = Instant::now();
    for _ in 0..rounds {
        let (length, depth) = (random.u64(0..ROUND_MAX), *random.choice([1, 8, DEPTH].iter()).expect("one"));
        let ended = guest.run(depth, None, &mut |progress| {
            if progress.requests >= length {
                server.kill();
            }
        });
        assert_eq!(ended, Ended::Lost);
        tally.add(&guest);
        server = disk.serve();
        guest.front_end.reconnect(&disk.socket()).expect("the backend is back");
    }
    guest.check_all();
    disk.stop(server);
    guest.check_no_duplicate();
    let Tally { in_flight, replayed, head_zero, replays, .. } = &tally;
    println!(
        "{test}: {rounds} rounds, {} requests, {in_flight} in flight at crashes, {replayed} replayed in {replays} \
         rounds, head 0 among them in {head_zero}; {:.1} s",
        guest.completed,
        start.elapsed().as_secs_f64()
    );
    tally
}

#[test]
fn uring_with_one_queue() {
    let disk = Disk::new("uring", BUFFERED, 1);
    crash("uring_with_one_queue", &disk, FrontEndOptions::default());
}

#[test]
fn uring_with_four_queues() {
    let disk = Disk::new("uring", BUFFERED, 4);
    crash("uring_with_four_queues", &disk, FrontEndOptions { indirect: Indirect::Never, ..FrontEndOptions::default() });
}

#[test]
fn uring_with_four_queues_and_direct_io() {
    let test = "uring_with_four_queues_and_direct_io";
    let disk = Disk::new("uring", DIRECT, 4);
    if disk.takes_direct(test) {
        let tally = crash(test, &disk, FrontEndOptions::default());
        // SPDK loses exactly this one (spdk#3766): a head of 0 must be as good as any other.
        let (rounds, head_zero) = (rounds(), tally.head_zero);
        assert!(
            head_zero >= rounds / 20,
            "head 0 was in flight at {head_zero} of {rounds} crashes: too few to show anything"
        );
    }
}

#[test]
fn mem_with_one_queue() {
    let disk = Disk::new("mem", FILE, 1);
    crash("mem_with_one_queue", &disk, FrontEndOptions { event_idx: false, ..FrontEndOptions::default() });
}

#[test]
fn mem_with_four_queues() {
    let disk = Disk::new("mem", FILE, 4);
    crash("mem_with_four_queues", &disk, FrontEndOptions::default());
}

#[test]
fn packed_rings_of_four_queues_and_direct_io() {
    let test = "packed_rings_of_four_queues_and_direct_io";
    let disk = Disk::new("uring", DIRECT, 4);
    if disk.takes_direct(test) {
        let options = FrontEndOptions { ring: RingKind::Packed, ..FrontEndOptions::default() };
        let tally = crash(test, &disk, options);
        let (rounds, replays) = (rounds(), tally.replays);
        assert!(
            replays >= rounds / 4,
            "requests were in flight at {replays} of {rounds} crashes: too few to show anything"
        );
    }
}

#[test]
fn a_packed_ring_of_chains_in_the_ring_itself() {
    let disk = Disk::new("mem", FILE, 1);
    let options = FrontEndOptions {
        ring: RingKind::Packed,
        indirect: Indirect::Never,
        event_idx: false,
        ..FrontEndOptions::default()
    };
    crash("a_packed_ring_of_chains_in_the_ring_itself", &disk, options);
}

/// What has ended out of its order waits in the backend, and is done once more by the next one.
#[test]
fn requests_in_order_with_four_queues_and_direct_io() {
    let test = "requests_in_order_with_four_queues_and_direct_io";
    let disk = Disk::in_order("uring", DIRECT, 4);
    if disk.takes_direct(test) {
        for (ring, indirect) in [(RingKind::Split, Indirect::Auto), (RingKind::Packed, Indirect::Never)] {
            crash(test, &disk, FrontEndOptions { ring, indirect, in_order: true, ..FrontEndOptions::default() });
        }
    }
}

#[test]
fn requests_in_order_that_end_at_once() {
    let disk = Disk::in_order("mem", FILE, 1);
    for ring in RingKind::BOTH {
        crash(
            "requests_in_order_that_end_at_once",
            &disk,
            FrontEndOptions { ring, in_order: true, ..FrontEndOptions::default() },
        );
    }
}
