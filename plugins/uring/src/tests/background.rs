//! The kernel's threads of io_uring keep off the worker's CPU.
use super::*;
use crate::testing::{DEADLINE, request};
use pollux_abi::block_v1::*;
use std::time::Instant;

/// Pins the calling thread. False: it may not run there.
fn pin(cpu: usize) -> bool {
    // SAFETY: an all-zero set is a value of the type, and has room for the numbers that are used here.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set) == 0
    }
}

/// The CPUs of each kernel thread that io_uring has made for the calling thread.
fn cpus_of_threads() -> Vec<String> {
    // SAFETY: no memory is passed.
    let name = format!("iou-wrk-{}", unsafe { libc::gettid() });
    let threads = std::fs::read_dir("/proc/self/task").expect("a folder").flatten().map(|entry| entry.path());
    threads
        .filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name))
        .filter_map(|path| std::fs::read_to_string(path.join("status")).ok())
        .filter_map(|status| {
            status.lines().find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned()))
        })
        .collect()
}

/// Flushes on the calling thread, which it pins, until the kernel has a thread for that, and returns where those are.
fn flushed(instance: &Instance<Uring>, worker: usize) -> Option<Vec<String>> {
    pin(worker).then(|| {
        let mut queue = instance.queue(4);
        let begin = Instant::now();
        loop {
            checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
            let cpus = cpus_of_threads();
            if !cpus.is_empty() {
                return cpus;
            }
            assert!(begin.elapsed() < DEADLINE, "no thread was ever seen");
        }
    })
}

/// Flushes on CPU `worker` an image that was opened on CPU `control`. Returns where the kernel does it, and the log.
fn opened_and_flushed(control: usize, worker: usize) -> Option<(Vec<String>, String)> {
    let open_and_flush = || {
        if !pin(control) {
            return None;
        }
        let fixture = Fixture::new(1 << 20);
        let instance = fixture.open_with(false, "io_uring");
        let shared = &instance;
        let cpus =
            std::thread::scope(|scope| scope.spawn(move || flushed(shared, worker)).join().expect("it did not panic"));
        cpus.map(|cpus| (cpus, instance.log()))
    };
    std::thread::scope(|scope| scope.spawn(open_and_flush).join().expect("it did not panic"))
}

#[test]
fn a_flush_runs_where_the_image_was_opened_and_not_where_the_worker_polls() {
    let Some((cpus, log)) = opened_and_flushed(0, 1) else {
        println!("SKIPPED: CPUs 0 and 1 are not both there for this process");
        return;
    };
    assert!(cpus.iter().all(|cpus| cpus == "0"), "{cpus:?}");
    assert!(!log.contains("worker's own CPU"), "{log}");
    let (cpus, log) = opened_and_flushed(1, 1).expect("no error");
    assert!(cpus.iter().all(|cpus| cpus == "1"), "there is no other: {cpus:?}");
    assert_eq!(log.matches("run on the worker's own CPU: workers and vCPUs have all CPUs").count(), 1, "{log}");
}
