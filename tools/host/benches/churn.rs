//! Adds and removes a backend, a device and its export many times beside a neighbour under verified load, and prints
//! what the process has before and after: `cargo bench -p pollux-host --bench churn -- 10000`.
#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    // Cargo says `--bench`.
    let rounds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(10_000);
    let folder = tempfile::tempdir().expect("a folder");
    let report = common::churn::churn(folder.path(), rounds);
    println!("{rounds} rounds");
    println!("before: {:?}", report.before);
    println!("after:  {:?}", report.after);
    println!("neighbour alone:  {}", report.alone);
    println!("neighbour beside: {}", report.beside);
    println!("blocks checked: {}, wrong sectors: {}", report.blocks_checked, report.faults);
}
