//! What an idle device costs, and what its first request after a pause does, for each idle policy; beside it the
//! machine's own floor for a wake-up: a write to an eventfd that another thread waits for in poll, and the word that it
//! stores then.
//!
//! And what a reader of the statistics costs the queue that it reads: nothing but the lines that it looks at.
#![allow(missing_docs)]
use nix::sys::eventfd::EventFd;
use pollux_benches::{median, pin};
use pollux_core::{
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{Cut, IN, OK},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::{
    env,
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const DRIVER_CPU: usize = 0;
const WORKER_CPU: usize = 1;
/// Between two wake-ups: long for every policy.
const PAUSE: Duration = Duration::from_millis(3);

fn main() {
    let measures = env::args().any(|argument| argument == "--bench");
    let wake_ups = if measures { 1000 } else { 3 };
    if measures {
        pin(DRIVER_CPU);
    }
    println!("wake-up, µs: p10, p50, p90 of {wake_ups}");
    println!("{:>22}  {}", "floor", spread(floor(wake_ups, measures)));
    for policy in [IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        for devices in [1, 32] {
            let name = format!("{policy}, {devices} device{}", if devices == 1 { "" } else { "s" });
            println!("{name:>22}  {}", spread(first_requests(policy, devices, wake_ups, measures)));
        }
    }
    println!("{:>22}  {}", "floor once more", spread(floor(wake_ups, measures)));
    let idle_for = if measures { Duration::from_secs(3) } else { Duration::from_millis(5) };
    println!("CPU time of an idle worker, and of one with a request every {PAUSE:?}");
    for policy in [IdlePolicy::Adaptive, IdlePolicy::Interrupt] {
        let shares = [false, true].map(|ticking| 100.0 * idle_share(policy, idle_for, ticking));
        println!("{:>22}  {:.3} %  {:.3} %", policy.to_string(), shares[0], shares[1]);
    }
    readers(if measures { 9 } else { 1 }, if measures { Duration::from_millis(300) } else { Duration::from_millis(2) });
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100].as_nanos() as f64 / 1000.0;
    format!("{:>8.1} {:>8.1} {:>8.1}", at(10), at(50), at(90))
}

/// How long it takes from a write to what a thread does that was blocked on it.
fn floor(count: usize, pinned: bool) -> Vec<Duration> {
    let kick = EventFd::new().expect("eventfd");
    let (seen, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            if pinned {
                pin(WORKER_CPU);
            }
            let mut fds = [nix::poll::PollFd::new(kick.as_fd(), nix::poll::PollFlags::POLLIN)];
            while !ends.load(Ordering::Relaxed) {
                nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE).expect("poll");
                seen.fetch_add(1, Ordering::Release);
                kick.read().expect("a sign");
            }
        });
        let times = (1..=count as u64).map(|round| {
            thread::sleep(PAUSE);
            let start = Instant::now();
            kick.write(1).expect("eventfd");
            while seen.load(Ordering::Acquire) < round {
                std::hint::spin_loop();
            }
            start.elapsed()
        });
        let times = times.collect();
        ends.store(true, Ordering::Relaxed);
        kick.write(1).expect("eventfd");
        times
    })
}

fn worker(policy: IdlePolicy, pinned: bool, stats: &StatsSegment) -> Worker {
    let record = stats.add_worker("bench").expect("room");
    Worker::spawn_counted("bench", pinned.then_some(WORKER_CPU), policy, record).expect("a worker")
}

fn guests(count: usize, worker: &Worker) -> Vec<Guest> {
    let guest = |_| {
        let disk = disk::open("bench", 1 << 20, Behaviour::Inline).expect("a disk");
        let mut guest = Guest::new("bench", disk, 1, &[worker.handle()]);
        guest.start();
        guest
    };
    (0..count).map(guest).collect()
}

/// How long the first request takes after a pause.
fn first_requests(policy: IdlePolicy, devices: usize, count: usize, pinned: bool) -> Vec<Duration> {
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let worker = worker(policy, pinned, &stats);
    let mut guests = guests(devices, &worker);
    let times = (0..count).map(|round| {
        thread::sleep(PAUSE);
        let start = Instant::now();
        let finished = guests[round % devices].request(0, IN, 0, &[], &Cut::plain(0, 512));
        let time = start.elapsed();
        assert_eq!(finished.status, OK);
        time
    });
    times.collect()
}

/// The share of a CPU that a worker takes whose device is idle, or has a request now and then.
fn idle_share(policy: IdlePolicy, time: Duration, ticking: bool) -> f64 {
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let worker = worker(policy, false, &stats);
    let mut guests = guests(1, &worker);
    thread::sleep(PAUSE);
    let run_ns = || stats.snapshot().schedules[0].map_or(0, |schedule| schedule.run_ns);
    let (start, before) = (Instant::now(), run_ns());
    while start.elapsed() < time {
        thread::sleep(PAUSE);
        if ticking {
            guests[0].request(0, IN, 0, &[], &Cut::plain(0, 512));
        }
    }
    (run_ns() - before) as f64 / start.elapsed().as_nanos() as f64
}

/// Requests per second of a queue that nobody reads, and of one whose segment is read all the time, and once in 100 ms.
fn readers(rounds: usize, time: Duration) {
    let worker = Worker::spawn("bench", None, IdlePolicy::Adaptive).expect("a worker");
    let mut guest = guests(1, &worker).pop().expect("a guest");
    let (reads_for_ever, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    let gap_us = AtomicU64::new(100_000);
    thread::scope(|scope| {
        let segment = guest.stats.clone();
        scope.spawn({
            let (reads, ends, gap_us) = (&reads_for_ever, &ends, &gap_us);
            move || {
                while !ends.load(Ordering::Relaxed) {
                    if reads.load(Ordering::Relaxed) {
                        std::hint::black_box(segment.snapshot());
                    }
                    thread::sleep(Duration::from_micros(gap_us.load(Ordering::Relaxed)));
                }
            }
        });
        println!("requests per second at depth 1: unread; read every 100 ms; every ms ({rounds} rounds: median)");
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (case, rates) in rates.iter_mut().enumerate() {
                reads_for_ever.store(case > 0, Ordering::Relaxed);
                gap_us.store(if case == 2 { 1000 } else { 100_000 }, Ordering::Relaxed);
                let (start, mut requests) = (Instant::now(), 0);
                while start.elapsed() < time {
                    guest.request(0, IN, 0, &[], &Cut::plain(0, 512));
                    requests += 1;
                }
                rates.push(f64::from(requests) / start.elapsed().as_secs_f64());
            }
        }
        ends.store(true, Ordering::Relaxed);
        println!(
            "{:>22}  {:>9.0} {:>9.0} {:>9.0}",
            "",
            median(&mut rates[0]),
            median(&mut rates[1]),
            median(&mut rates[2])
        );
    });
}
