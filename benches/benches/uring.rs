//! What the plugin `uring` costs above the calls to the kernel that it makes: its queue, called as a device calls it,
//! and a bare loop that does the same reads, in turns.
//!
//! `cargo bench --bench uring` prints nanoseconds per read of both, the ratio of each round, and instructions in user
//! space, which callgrind counts and a noisy machine does not change. Files lie in the folder that
//! `POLLUX_BENCH_FOLDER` names (the temporary one if it is not set) and in /dev/shm. Direct reads are compared only
//! where the folder's file system takes them.
#![allow(missing_docs)]
use pollux_benches::{
    callgrind, median,
    reads::{Bare, CASES, DEPTHS, Medium, Plugin},
};
use std::{
    env,
    path::{Path, PathBuf},
    time::Instant,
};

/// Reads of each measurement.
const READS: u64 = 40_000;
/// Reads of the shorter run under callgrind.
const COUNTED_READS: u64 = 3200;
const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        let number = |index: usize| arguments[at + index].parse::<u64>().expect("a number");
        let (case, depth) = (CASES[number(1) as usize], number(2) as usize);
        let file = Path::new(&arguments[at + 5]);
        match number(3) {
            0 => Bare::new(case, file, depth).run(number(4)),
            _ => Plugin::new(case, file, depth).run(number(4)),
        };
        return;
    }
    let is_test = !arguments.iter().any(|argument| argument == "--bench");
    let reads = if is_test { 64 } else { READS };
    println!(
        "4 KiB random reads; nanoseconds per read are medians of {ROUNDS} rounds in turns; the ratio's spread is all \
         of them"
    );
    println!(
        "{:<22} {:>5} {:>9} {:>9} {:>22} {:>12} {:>12}",
        "", "depth", "bare ns", "plugin ns", "ratio", "bare instr.", "plugin instr."
    );
    let place = env::var_os("POLLUX_BENCH_FOLDER").map_or_else(env::temp_dir, PathBuf::from);
    for (index, case) in CASES.iter().enumerate() {
        let medium = match Medium::new(case, &place) {
            Ok(medium) => medium,
            Err(error) => {
                println!("{:<22} skipped: no such file in {}: {error}", case.name, place.display());
                continue;
            }
        };
        for depth in DEPTHS {
            compare(index, depth, medium.path(), if case.waits { reads / 8 } else { reads }, is_test);
        }
    }
}

/// Measures both in turns, and prints a row.
fn compare(index: usize, depth: usize, path: &Path, reads: u64, is_test: bool) {
    let case = CASES[index];
    let (mut bare, mut plugin) = (Bare::new(case, path, depth), Plugin::new(case, path, depth));
    let per_read = |run: &mut dyn FnMut(u64)| {
        let begin = Instant::now();
        run(reads);
        begin.elapsed().as_nanos() as f64 / reads as f64
    };
    let (mut bares, mut plugins, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if is_test { 1 } else { ROUNDS } {
        let (first, second) = (per_read(&mut |reads| bare.run(reads)), per_read(&mut |reads| plugin.run(reads)));
        bares.push(first);
        plugins.push(second);
        ratios.push(second / first);
    }
    ratios.sort_by(f64::total_cmp);
    let spread = format!("{:.2} ({:.2} to {:.2})", ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1]);
    drop((bare, plugin));
    let counted = [0, 1].map(|which| if is_test { None } else { instructions(index, depth, which, path) });
    let [bare_count, plugin_count] = counted.map(|count| count.map_or("-".to_owned(), |count| format!("{count:.0}")));
    let (bare, plugin) = (median(&mut bares), median(&mut plugins));
    println!("{:<22} {depth:>5} {bare:>9.0} {plugin:>9.0} {spread:>22} {bare_count:>12} {plugin_count:>12}", case.name);
}

/// Instructions in user space of one read; `None` where callgrind does not run.
fn instructions(index: usize, depth: usize, which: u64, path: &Path) -> Option<f64> {
    if CASES[index].waits {
        return None;
    }
    let arguments = |reads: u64| {
        let numbers = [index as u64, depth as u64, which, reads].map(|number| number.to_string().into());
        numbers.into_iter().chain([path.into()]).collect()
    };
    callgrind::per_round("device_turn", COUNTED_READS, arguments).inspect_err(|why| println!("{why}")).ok()
}
