//! Backends, devices and exports that come and go, beside a neighbour on the same worker that is under verified load.
use super::{PATIENCE, block, device, host, socket};
use pollux_host::{BackendSpec, Host};
use pollux_loadgen::{Ended, FrontEnd, FrontEndOptions, Load, LoadLimits, Workload, latency::Latencies};
use pollux_testing::{blk::wait_for, front_end, neighbours::write_and_read};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Rounds in which everything has its first time: allocations that stay, threads that are started once.
const WARM_UP: usize = 40;
/// One round in so many has a front end that reads and writes.
const USED: usize = 5;
/// Requests of the neighbour between two looks whether it is to end.
const STRETCH: u64 = 500;

/// What the process has of what may leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) mappings: usize,
    pub(crate) resident_kib: usize,
}

impl Resources {
    fn now() -> Self {
        let entries = |folder: &str| fs::read_dir(folder).expect("a folder of /proc").count();
        let status = fs::read_to_string("/proc/self/status").expect("the process's status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its size");
        Resources {
            // One is that of the look itself.
            descriptors: entries("/proc/self/fd") - 1,
            threads: entries("/proc/self/task"),
            mappings: fs::read_to_string("/proc/self/maps").expect("its mappings").lines().count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().expect("a number"),
        }
    }
}

/// What the neighbour's load saw.
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    latencies: Latencies,
}

impl Seen {
    fn microseconds(&self, share: f64) -> u64 {
        self.latencies.quantile(share).unwrap_or(0) / 1000
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (self.microseconds(0.5), self.microseconds(0.99));
        write!(formatter, "{} requests, {} errors, p50 {p50} us, p99 {p99} us", self.requests, self.errors)
    }
}

/// What came out.
pub(crate) struct Report {
    pub(crate) before: Resources,
    pub(crate) after: Resources,
    pub(crate) alone: Seen,
    pub(crate) beside: Seen,
    pub(crate) blocks_checked: u64,
    pub(crate) faults: u64,
}

/// Adds and removes a backend, a device and its export so many times, on the same socket.
pub(crate) fn churn(folder: &Path, rounds: usize) -> Report {
    let host = host(folder);
    let neighbour = folder.join("neighbour.sock");
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("neighbour", "disk"), PATIENCE).expect("a device");
    host.add_export("neighbour", socket(&neighbour)).expect("an export");
    let options = FrontEndOptions { depth: 4, ..FrontEndOptions::default() };
    let mut front_end = FrontEnd::connect(&neighbour, &options).expect("a front end");
    let workload = Workload { read_share: 50, ..Workload::default() };
    let mut load = Load::new(&workload, &mut front_end, true).expect("a load");

    let guest = Rounds { host: &host, path: folder.join("churn.sock"), block: block("churn") };
    guest.run(0..WARM_UP);
    // As long as the rounds last: about as many requests.
    let alone = while_running(&mut load, &mut front_end, || thread::sleep(std::time::Duration::from_secs(2)));
    let before = Resources::now();
    let beside = while_running(&mut load, &mut front_end, || guest.run(WARM_UP..WARM_UP + rounds));
    let limits = limits();
    let ended = load.read_back(&mut front_end, &limits).expect("all is read back").ended;
    assert_eq!(ended, Ended::Complete);
    // Threads that have been waited for may be listed a moment longer.
    let settled = || Some(Resources::now()).filter(|now| now.threads <= before.threads);
    let after = wait_for("threads that have ended", settled);
    Report { before, after, alone, beside, blocks_checked: load.blocks_checked(), faults: load.fault_count() }
}

struct Rounds<'h> {
    host: &'h Host,
    path: PathBuf,
    block: BackendSpec,
}

impl Rounds<'_> {
    fn run(&self, rounds: std::ops::Range<usize>) {
        for round in rounds {
            self.host.add_backend(self.block.clone()).expect("a backend");
            self.host.add_device(device("churn", "churn"), PATIENCE).expect("a device");
            self.host.add_export("churn", socket(&self.path)).expect("an export, on the same path each time");
            if round.is_multiple_of(USED) {
                let mut front = front_end::FrontEnd::new(&self.path, 1);
                front.start();
                write_and_read(&mut front, 0, round as u64);
            }
            self.host.remove_export("churn", PATIENCE).expect("no export");
            self.host.remove_device("churn", PATIENCE).expect("no device");
            self.host.remove_backend("churn").expect("no backend");
        }
    }
}

fn limits() -> LoadLimits {
    LoadLimits { depth: 4, interrupts: true, requests: Some(STRETCH), ..LoadLimits::default() }
}

/// Has the neighbour under load while `action` runs.
fn while_running(load: &mut Load, front_end: &mut FrontEnd, action: impl FnOnce()) -> Seen {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let mut seen = Seen { requests: 0, errors: 0, latencies: Latencies::default() };
            while !is_over.load(Ordering::Relaxed) {
                let outcome = load.run(front_end, &limits(), &mut |_| {}).expect("the neighbour is served");
                assert_eq!(outcome.ended, Ended::Complete);
                let total = outcome.total();
                seen.requests += total.requests;
                seen.errors += total.errors;
                seen.latencies.merge(&total.latencies);
            }
            seen
        });
        // Also when it panics: the load would keep the scope from ending.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        is_over.store(true, Ordering::Relaxed);
        let seen = loading.join().expect("no panic");
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen
    })
}
