//! A host or a container that forbids io_uring.
mod common;

use common::{
    Folder, Ran,
    disk::{Disk, config},
    serving::Serving,
};
use pollux_testing::{
    blk::{Cut, FLUSH, IN, OK, OUT, pattern},
    front_end::FrontEnd,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    thread,
};

/// Runs `start`, which starts a program, on a thread that may not use io_uring, and so leaves the program no other
/// choice.
fn forbidden<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let forbid = || {
        let rules: BTreeMap<_, _> = [(libc::SYS_io_uring_setup, vec![])].into();
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let architecture = std::env::consts::ARCH.try_into().expect("an architecture of seccomp's");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).expect("a filter");
        let program: BpfProgram = filter.try_into().expect("a program");
        apply_filter(&program).expect("seccomp");
        start()
    };
    thread::scope(|scope| scope.spawn(forbid).join().expect("no panic"))
}

fn output(mut command: Command) -> Ran {
    forbidden(|| command.output().expect("the program starts")).into()
}

#[test]
fn a_configuration_that_insists_on_it_is_refused_with_the_way_out() {
    for command in ["check", "serve"] {
        let folder = Folder::new();
        let options = "path = \"disk.img\", direct = false, engine = \"io_uring\"";
        folder.write("disks.toml", config("uring", options, 1, "blk0.sock"));
        let ran = output(folder.command(&[command, "disks.toml"]));
        assert_eq!(ran.status, Some(2), "{}", ran.stderr);
        for words in [
            "disks.toml:5:48: error: disk: engine = \"io_uring\", but io_uring is switched off on this host",
            "kernel.io_uring_disabled",
            "or write engine = \"sync\" to do without",
            "Operation not permitted",
        ] {
            assert!(ran.stderr.contains(words), "{words:?} is not in {}", ran.stderr);
        }
    }
}

#[test]
fn by_default_the_disk_is_served_by_system_calls_and_the_log_says_so_once() {
    let disk = Disk::new("uring", "path = \"disk.img\", direct = false", 1);
    let ran = output(disk.folder.command(&["check", "disks.toml"]));
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let mut command = disk.folder.command(&["serve", "disks.toml"]);
    command.stderr(Stdio::piped());
    let server = forbidden(|| Serving::start(&disk.folder, command));
    let mut front = FrontEnd::new(&disk.socket(), 1);
    front.start();
    let data = pattern(5, 4096);
    assert_eq!(front.request(0, OUT, 64, &data, &Cut::plain(4096, 0)).status, OK);
    assert_eq!(front.request(0, FLUSH, 0, &[], &Cut::plain(0, 0)).status, OK);
    assert!(front.request(0, IN, 64, &[], &Cut::plain(0, 4096)).data == data);
    drop(front);
    let ran = server.stop();
    assert_eq!(ran.status, Some(0));
    let said = "so requests are system calls, during which the worker waits for the medium";
    assert_eq!(ran.stderr.matches(said).count(), 1, "{}", ran.stderr);
}
