//! Instructions that the device executes for one request, counted by callgrind: the same on a noisy machine as on a quiet one, so
//! that a loss on the hot path shows however small it is.
//!
//! `cargo bench --bench instructions` counts each case in a process of its own, with some rounds and with twice as many; the
//! difference is that of the rounds alone. The numbers hold for one compiler and one profile: compare a change with what was
//! before it, on the same machine.
#![allow(missing_docs)]
use pollux_benches::{Prepared, backend};
use pollux_core::{
    device::blk::queue::BATCH,
    testing::{driver::RingKind, rig::prepared_queue},
    worker::Task,
};
use std::{env, fs, process::Command};

/// Rounds of the shorter run.
const ROUNDS: u64 = 2000;
const DEPTHS: [usize; 3] = [1, 8, 32];

const KINDS: [(&str, RingKind); 2] = [("split", RingKind::Split), ("packed", RingKind::Packed)];

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        let number = |index: usize| arguments[at + index].parse::<u64>().expect("a number");
        run(KINDS[number(1) as usize].1, number(2) as usize, number(3) != 0, number(4));
        return;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // As a test: each case runs.
        KINDS.into_iter().for_each(|(_, kind)| run(kind, 8, true, 10));
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind; install it to count instructions");
        return;
    }
    println!("instructions per request, ring + blk + null, 4 KiB reads");
    println!("{:>7} {:>7} {:>12} {:>12}", "ring", "depth", "chain of 3", "indirect");
    for (index, (name, _)) in KINDS.into_iter().enumerate() {
        for depth in DEPTHS {
            let [plain, indirect] = [false, true].map(|indirect| per_request(index, depth, indirect));
            println!("{name:>7} {depth:>7} {plain:>12.1} {indirect:>12.1}");
        }
    }
}

/// Plays driver and device for `rounds` rounds.
fn run(kind: RingKind, depth: usize, indirect: bool, rounds: u64) {
    let mut prepared = Prepared::new(kind, depth, indirect);
    let null = backend("null", r#"{"size": 1073741824}"#);
    let mut queue = prepared_queue(kind, null, &prepared.memory, prepared.driver.config());
    prepared.measure(rounds, || {
        for _ in 0..depth.div_ceil(BATCH) {
            device_turn(&mut *queue);
        }
    });
}

/// What is counted. A symbol of its own, for callgrind to find.
#[inline(never)]
fn device_turn(queue: &mut dyn Task) -> usize {
    queue.poll()
}

/// Instructions of the device's turns for one request.
fn per_request(kind: usize, depth: usize, indirect: bool) -> f64 {
    let [short, long] = [ROUNDS, 2 * ROUNDS].map(|rounds| count(kind, depth, indirect, rounds));
    long.saturating_sub(short) as f64 / (ROUNDS * depth as u64) as f64
}

/// Instructions within the queue's turns of one process.
fn count(kind: usize, depth: usize, indirect: bool, rounds: u64) -> u64 {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("callgrind.out");
    let case = [kind.to_string(), depth.to_string(), u64::from(indirect).to_string(), rounds.to_string()];
    let finished = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*device_turn*"])
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(env::current_exe().expect("this program"))
        .arg("--run")
        .args(case)
        .output()
        .expect("valgrind");
    assert!(finished.status.success(), "{}", String::from_utf8_lossy(&finished.stderr));
    let text = fs::read_to_string(output).expect("callgrind's output");
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a total");
    total.trim().parse().expect("a number")
}
