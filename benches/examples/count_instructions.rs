//! Turns one block queue over the `null` plugin a fixed number of times, for a tool that counts instructions. The device's part is
//! `device_turn`, so that this counts what it alone does:
//!
//! ```text
//! cargo build --release -p pollux-benches --example count_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*device_turn*' \
//!     target/release/examples/count_instructions 32 direct 1000
//! ```
use pollux_benches::{Prepared, backend};
use pollux_core::{testing::rig::prepared_queue, worker::Task};

/// As a worker polls it: through the trait object, a batch of 64 at a time.
#[inline(never)]
fn device_turn(queue: &mut dyn Task, depth: usize) {
    for _ in 0..depth.div_ceil(64) {
        queue.poll();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, depth, shape, rounds] = &arguments[..] else {
        eprintln!("usage: count_instructions DEPTH direct|indirect ROUNDS");
        std::process::exit(2);
    };
    let depth: usize = depth.parse().expect("a depth");
    let rounds: u64 = rounds.parse().expect("a number of rounds");
    let mut prepared = Prepared::new(depth, shape == "indirect");
    let null = backend("null", r#"{"size": 1073741824}"#);
    let mut queue = prepared_queue(null, &prepared.memory, prepared.driver.config());
    prepared.measure(rounds, |_| device_turn(&mut *queue, depth));
    println!("{} requests", rounds * depth as u64);
}
