//! CPUs that workers have for themselves.
mod common;

use common::{
    disk::{BUFFERED, Disk, config},
    serving::Serving,
};
use pollux_core::cpus;
use pollux_testing::blk::wait_for;
use std::{collections::BTreeMap, fs, thread};

/// The CPUs of each thread of a process, by the thread's name. A new thread has its parent's name until it runs; the
/// last one that a worker starts is waited for.
fn threads(process: u32) -> BTreeMap<String, String> {
    wait_for("the thread that looks after the pins", || {
        Some(threads_now(process)).filter(|threads| threads.contains_key("pollux-pins"))
    })
}

fn threads_now(process: u32) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("/proc").flatten();
    let of = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?.trim().to_owned();
        let status = fs::read_to_string(path.join("status")).ok()?;
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        Some((name, cpus))
    };
    tasks.filter_map(|entry| of(entry.path())).collect()
}

/// `isolcpus` and `taskset` leave CPUs out that a thread can be pinned to all the same.
#[test]
fn a_worker_may_have_a_cpu_that_the_program_was_not_started_on() {
    let [first, .., last] = cpus::usable()[..] else {
        println!("SKIPPED: this process may use one CPU only");
        return;
    };
    let disk = Disk::new("uring", BUFFERED, 1);
    let text =
        config("uring", BUFFERED, 1, "blk0.sock").replace("[worker.io0]\n", &format!("[worker.io0]\ncpu = {last}\n"));
    disk.folder.write("disks.toml", text);
    thread::scope(|scope| {
        let narrow = || {
            cpus::pin(first).expect("a CPU");
            let ran = disk.folder.run(&["check", "disks.toml"]);
            assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
            let server = Serving::start(&disk.folder, disk.folder.command(&["serve", "disks.toml"]));
            let threads = threads(server.id());
            assert_eq!(threads["pollux-io0"], last.to_string(), "{threads:?}");
            let others = threads.iter().filter(|(name, _)| *name != "pollux-io0");
            assert!(others.clone().count() > 1, "{threads:?}");
            others.for_each(|(name, cpus)| assert_eq!(*cpus, first.to_string(), "{name}: {threads:?}"));
            let arguments = ["bench", "blk0.sock", "--requests", "100", "--cpu", &last.to_string()];
            let ran = disk.folder.run(&arguments);
            assert_eq!(ran.status, Some(0), "{}", ran.stderr);
            assert_eq!(server.stop().status, Some(0));
        };
        scope.spawn(narrow).join().expect("no panic");
    });
}

#[test]
fn other_threads_keep_off_the_cpu_of_a_worker() {
    let start = cpus::current();
    let [.., taken] = start[..] else { panic!("this thread runs") };
    if start.len() < 2 {
        println!("SKIPPED: this process may use one CPU only");
        return;
    }
    let disk = Disk::new("uring", BUFFERED, 1);
    let text =
        config("uring", BUFFERED, 1, "blk0.sock").replace("[worker.io0]\n", &format!("[worker.io0]\ncpu = {taken}\n"));
    disk.folder.write("disks.toml", text);
    let server = Serving::start(&disk.folder, disk.folder.command(&["serve", "disks.toml"]));
    let threads = threads(server.id());
    let taken = taken.to_string();
    let there: Vec<&String> = threads.iter().filter(|(_, cpus)| **cpus == taken).map(|(name, _)| name).collect();
    assert_eq!(there, ["pollux-io0"], "{threads:?}");
    let others = threads.iter().filter(|(name, _)| *name != "pollux-io0");
    others.for_each(|(name, cpus)| assert!(!cpus.ends_with(&taken), "{name}: {threads:?}"));
    assert_eq!(server.stop().status, Some(0));
}
