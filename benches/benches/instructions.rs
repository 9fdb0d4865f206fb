//! Instructions that the device executes for one request and for an idle turn, counted by callgrind: the same on a
//! noisy machine as on a quiet one, so that a loss on the hot path shows however small it is.
//!
//! `cargo bench --bench instructions` counts each case in processes of its own. The numbers hold for one compiler and
//! one profile: those in `instructions.json` say what they were taken with, and `cargo xtask instructions` compares.
//! With `--json` a machine reads them.
#![allow(missing_docs)]
use pollux_benches::{Prepared, backend, callgrind};
use pollux_core::{
    queue::BATCH,
    worker::{REST_AFTER, Task},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{IN, OUT},
    disk,
    rig::prepared_queue,
    turns::Turns,
};
use serde_json::{Map, Value, json};
use std::{env, ffi::CStr, process::Command};

/// Rounds of the shorter run.
const ROUNDS: u64 = 2000;
/// What callgrind counts: the functions whose names have this.
const COUNTED: &str = "counted_turn_of";

/// What the device has to do, again and again.
#[derive(Clone, Copy)]
struct Case {
    plugin: &'static str,
    /// A request's type.
    operation: u32,
    kind: RingKind,
    /// Number of requests that are there at once; 0: the queue is idle.
    depth: usize,
    indirect: bool,
    /// Number of layers in front of the plugin, each of which does nothing.
    layers: usize,
    /// Number of queues of the worker, whose others are idle; 0: the queue is polled without a worker.
    queues: usize,
}

const NULL: Case =
    Case { plugin: "null", operation: IN, kind: RingKind::Split, depth: 1, indirect: false, layers: 0, queues: 0 };
const MEM: Case = Case { plugin: "mem", ..NULL };
const WRITE: Case = Case { operation: OUT, ..MEM };

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [RingKind::Split, RingKind::Packed] {
        for indirect in [false, true] {
            cases.extend([1, 8, 32].map(|depth| Case { kind, indirect, depth, ..NULL }));
        }
        cases.extend([MEM, WRITE].map(|case| Case { kind, depth: 32, ..case }));
        cases.push(Case { kind, depth: 0, ..NULL });
    }
    cases.extend([1, 2].map(|layers| Case { layers, depth: 32, ..NULL }));
    cases.extend([0, 1].map(|depth| Case { depth, queues: 256, ..NULL }));
    cases
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--run") {
        let number = |index: usize| arguments[at + index].parse::<u64>().expect("a number");
        cases()[number(1) as usize].run(number(2));
        return;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // As a test: each case runs.
        cases().into_iter().for_each(|case| case.run(2));
        return;
    }
    let Some(valgrind) = callgrind::version() else {
        println!("skipped: there is no valgrind; install it to count instructions");
        return;
    };
    let is_json = arguments.iter().any(|argument| argument == "--json");
    if !is_json {
        println!("instructions per request of 4 KiB, or per turn that has none");
    }
    let mut counts = Map::new();
    for (index, case) in cases().into_iter().enumerate() {
        let count = case.count(index);
        if !is_json {
            println!("{:<40} {count:>10.1}", case.name());
        }
        counts.insert(case.name(), json!((count * 10.0).round() / 10.0));
    }
    if is_json {
        println!("{}", json!({ "made_with": made_with(valgrind), "cases": counts }));
    }
}

/// All that the counts depend on beside this tree.
fn made_with(valgrind: String) -> Value {
    let rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version").output();
    let rustc = rustc.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    let avx = if cfg!(target_feature = "avx") { " with AVX" } else { "" };
    // SAFETY: it returns a string that is never freed.
    let libc = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    json!({
        "processor": format!("{}{avx}", env::consts::ARCH),
        "compiler": rustc.trim(),
        "C library": libc.to_string_lossy(),
        "counter": valgrind,
    })
}

impl Case {
    fn name(&self) -> String {
        let Case { plugin, operation, kind, depth, indirect, layers, queues } = *self;
        let kind = match kind {
            RingKind::Split => "split",
            RingKind::Packed => "packed",
        };
        let operation = if operation == OUT { "write" } else { "read" };
        let chain = if indirect { ", indirect" } else { "" };
        let layers = if layers > 0 { format!(", layers {layers}") } else { String::new() };
        match (queues, depth) {
            (0, 0) => format!("idle turn, {kind}"),
            (0, _) => format!("{plugin} {operation}, {kind}, depth {depth}{chain}{layers}"),
            (_, 0) => format!("idle turn of {queues} queues, {kind}"),
            _ => format!("{plugin} {operation}, {kind}, depth {depth}, one of {queues} queues"),
        }
    }

    /// Instructions of one request, or of one turn if there is none.
    fn count(&self, index: usize) -> f64 {
        let arguments = |rounds: u64| vec![index.to_string().into(), rounds.to_string().into()];
        match callgrind::per_round(COUNTED, ROUNDS, arguments) {
            Ok(round) => round / self.depth.max(1) as f64,
            Err(why) => panic!("{}: {why}", self.name()),
        }
    }

    /// Plays drivers and device for `rounds` rounds.
    fn run(&self, rounds: u64) {
        let backend = backend(self.plugin, r#"{"size": 16777216}"#);
        let mut drivers: Vec<Prepared> = (0..self.queues.max(1))
            .map(|_| Prepared::with_operation(self.operation, self.kind, self.depth, self.indirect))
            .collect();
        let mut tasks = drivers.iter().map(|driver| {
            prepared_queue(
                self.kind,
                disk::behind(self.layers, backend.clone()),
                &driver.memory,
                driver.driver.config(),
            )
        });
        if self.queues == 0 {
            let mut queue = tasks.next().expect("a queue");
            let turns = self.depth.div_ceil(BATCH).max(1);
            drivers[0].measure(rounds, || (0..turns).for_each(|_| _ = counted_turn_of_queue(&mut *queue)));
            return;
        }
        let mut turns = Turns::default();
        tasks.for_each(|task| turns.add(task));
        // Idle for long enough that those rest which can.
        (0..=REST_AFTER).for_each(|_| assert_eq!(turns.turn(), 0));
        drivers[0].measure(rounds, || {
            let mut work = counted_turn_of_worker(&mut turns);
            while work < self.depth {
                work += counted_turn_of_worker(&mut turns);
            }
        });
    }
}

/// A symbol of its own, for callgrind to find.
#[inline(never)]
fn counted_turn_of_queue(queue: &mut dyn Task) -> usize {
    queue.poll()
}

/// The same.
#[inline(never)]
fn counted_turn_of_worker(turns: &mut Turns) -> usize {
    turns.turn()
}
