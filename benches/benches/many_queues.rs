//! What idle queues cost the worker that has them: one among 256, and 255 beside a busy one.
//!
//! By time, as the least of several rounds with the spread beside it, and by instructions as callgrind counts them,
//! which are the same on a noisy machine. One thread plays all drivers and the worker.
#![allow(missing_docs)]
use pollux_benches::{callgrind, many_queues::ManyQueues, pin};
use pollux_core::ring::RingKind;
use std::env;

const KINDS: [(&str, RingKind); 2] = [("split", RingKind::Split), ("packed", RingKind::Packed)];
const QUEUES: usize = 256;
const DEPTHS: [usize; 2] = [1, 32];
const ROUNDS: u64 = 1000;
const REPEATS: usize = 15;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        let number = |index: usize| arguments[at + index].parse::<u64>().expect("a number");
        let kind = KINDS[number(1) as usize].1;
        let mut case = ManyQueues::with_rings(kind, number(2) as usize, number(3) as usize);
        case.rounds(number(4));
        return;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // As a test: the case runs.
        KINDS.into_iter().for_each(|(_, kind)| _ = ManyQueues::with_rings(kind, 3, 1).rounds(2));
        return;
    }
    pin(0);
    println!("idle turns, ns (instructions) per turn and queue; {REPEATS} repeats: least, median, most");
    for (index, (name, kind)) in KINDS.into_iter().enumerate() {
        for queues in [1, 16, QUEUES] {
            let mut case = ManyQueues::with_rings(kind, queues, 0);
            let times = repeat(|| case.rounds(10 * ROUNDS) / queues as f64);
            let count = instructions(index, queues, 0, queues as u64);
            println!("{name:>6} {queues:>5} queues  {}  {count}", spread(&times));
        }
    }
    println!("one busy queue, ns (instructions) per round of requests: alone, and beside {} idle ones", QUEUES - 1);
    for (index, (name, kind)) in KINDS.into_iter().enumerate() {
        for depth in DEPTHS {
            let [mut alone, mut beside] = [1, QUEUES].map(|queues| ManyQueues::with_rings(kind, queues, depth));
            // In turn, so that both meet the same machine.
            let pairs: Vec<(f64, f64)> = (0..REPEATS).map(|_| (alone.rounds(ROUNDS), beside.rounds(ROUNDS))).collect();
            let (alone, beside): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
            let ratios: Vec<f64> = pairs.iter().map(|(alone, beside)| beside / alone).collect();
            let counts = [1, QUEUES].map(|queues| instructions(index, queues, depth, 1));
            println!("{name:>6} depth {depth:>2} alone   {}  {}", spread(&sorted(alone)), counts[0]);
            println!("{name:>6} depth {depth:>2} beside  {}  {}", spread(&sorted(beside)), counts[1]);
            println!("{name:>6} depth {depth:>2} ratio   {}", spread(&sorted(ratios)));
        }
    }
}

fn repeat(mut measure: impl FnMut() -> f64) -> Vec<f64> {
    sorted((0..REPEATS).map(|_| measure()).collect())
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn spread(sorted: &[f64]) -> String {
    format!("{:>8.2} {:>8.2} {:>8.2}", sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}

/// Instructions of a round, divided by `share`.
fn instructions(kind: usize, queues: usize, depth: usize, share: u64) -> String {
    let arguments =
        |rounds| [kind as u64, queues as u64, depth as u64, rounds].map(|number| number.to_string().into()).into();
    callgrind::per_round("worker_turn", 200, arguments)
        .map_or_else(|why| format!("({why})"), |round| format!("({:.1})", round / share as f64))
}
