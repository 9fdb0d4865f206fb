//! What a layer that does nothing costs a request: ring, block device model and the `null` plugin through its real
//! shared library, with none, one, two and four layers in between.
//!
//! `cargo bench --bench layers`. One thread plays driver and device in turn, and only the device's turns are timed. The
//! four take turns every few milliseconds, so that a machine that changes its speed changes it for all of them.
#![allow(missing_docs)]
use pollux_benches::{Prepared, backend, median};
use pollux_core::worker::Task;
use pollux_driver::RingKind;
use pollux_testing::{disk, rig::prepared_queue};
use std::env;

const LAYERS: [usize; 4] = [0, 1, 2, 4];
const DEPTH: usize = 32;
/// Turns of one measurement.
const TURNS: u64 = 2000;
/// Measurements of each.
const ROUNDS: usize = 101;

fn main() {
    let (turns, rounds) = if env::args().any(|argument| argument == "--bench") { (TURNS, ROUNDS) } else { (2, 1) };
    if let Some(&cpu) = pollux_core::cpus::current().last() {
        pollux_core::cpus::pin(cpu).expect("it runs there");
    }
    println!("nanoseconds per read of 4 KiB at depth {DEPTH}, and what they are more than without a layer");
    for kind in RingKind::BOTH {
        let mut devices: Vec<_> = LAYERS.iter().map(|&count| device(kind, count)).collect();
        let mut times = vec![Vec::new(); devices.len()];
        for _ in 0..rounds {
            for ((prepared, queue), times) in devices.iter_mut().zip(&mut times) {
                let time = prepared.measure(turns, || _ = queue.poll());
                times.push(time.as_nanos() as f64 / (turns * DEPTH as u64) as f64);
            }
        }
        for (index, count) in LAYERS.iter().enumerate() {
            let more = times[index].iter().zip(&times[0]).map(|(with, without)| with - without);
            let (more, time) = (median(&mut more.collect::<Vec<_>>()), median(&mut times[index].clone()));
            println!("{:<8} {count} layers {time:>8.2} {more:>+8.2}", format!("{kind:?}").to_lowercase());
        }
    }
}

/// A queue of a device with so many layers, and its driver.
fn device(kind: RingKind, layers: usize) -> (Prepared, Box<dyn Task>) {
    let null = backend("null", r#"{"size": 1073741824}"#);
    let prepared = Prepared::new(kind, DEPTH, false);
    let queue = prepared_queue(kind, disk::behind(layers, null), &prepared.memory, prepared.driver.config());
    (prepared, queue)
}
