//! Turns one block queue over the `null` plugin a fixed number of times, for a tool that counts instructions. The device's part is
//! `device_turn`, so that this counts what it alone does:
//!
//! ```text
//! cargo build --release -p pollux-benches --example count_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*device_turn*' \
//!     target/release/examples/count_instructions split direct 32 1000
//! ```
use pollux_benches::{Prepared, backend};
use pollux_core::{
    device::blk::queue::BATCH,
    testing::{driver::RingKind, rig::prepared_queue},
    worker::Task,
};

/// As a worker polls it: through the trait object, a batch at a time.
#[inline(never)]
fn device_turn(queue: &mut dyn Task, depth: usize) {
    for _ in 0..depth.div_ceil(BATCH) {
        queue.poll();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kind, shape, depth, rounds] = &arguments[..] else {
        eprintln!("usage: count_instructions split|packed direct|indirect DEPTH ROUNDS");
        std::process::exit(2);
    };
    let kind = if kind == "packed" { RingKind::Packed } else { RingKind::Split };
    let depth: usize = depth.parse().expect("a depth");
    let rounds: u64 = rounds.parse().expect("a number of rounds");
    let mut prepared = Prepared::new(kind, depth, shape == "indirect");
    let null = backend("null", r#"{"size": 1073741824}"#);
    let mut queue = prepared_queue(kind, null, &prepared.memory, prepared.driver.config());
    prepared.measure(rounds, || device_turn(&mut *queue, depth));
    println!("{} requests", rounds * depth as u64);
}
