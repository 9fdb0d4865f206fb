//! Signals that a request raises are an error of that request, and what was ignored when the program began stays
//! ignored.
mod common;

use common::{
    Folder,
    disk::{BUFFERED, Disk, IMAGE_BYTES},
    serving::Serving,
};
use pollux_testing::{
    blk::{Cut, IN, IOERR, OK, OUT, pattern},
    front_end::FrontEnd,
};
use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

/// Changes something in the process of a command before it becomes the program.
fn before(command: &mut Command, change: fn()) -> &mut Command {
    // SAFETY: the changes below are single system calls.
    unsafe {
        command.pre_exec(move || {
            change();
            Ok(())
        })
    }
}

fn limit_file_size() {
    let half = libc::rlimit { rlim_cur: IMAGE_BYTES / 2, rlim_max: IMAGE_BYTES / 2 };
    // SAFETY: a whole rlimit.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &half) };
}

#[test]
fn a_write_beyond_the_limit_on_file_sizes_fails_alone() {
    let disk = Disk::new("uring", BUFFERED, 1);
    let mut command = disk.folder.command(&["serve", "disks.toml"]);
    before(&mut command, limit_file_size).stderr(Stdio::piped());
    let serving = Serving::start(&disk.folder, command);
    let mut front = FrontEnd::new(&disk.socket(), 1);
    front.start();
    let data = pattern(1, 4096);
    let beyond = IMAGE_BYTES / 512 - 8;
    for sector in [0, beyond, 8, beyond] {
        let status = front.request(0, OUT, sector, &data, &Cut::plain(4096, 0)).status;
        assert_eq!(status, if sector == beyond { IOERR } else { OK }, "sector {sector}");
    }
    for sector in [0, 8] {
        assert_eq!(front.request(0, IN, sector, &[], &Cut::plain(0, 4096)).data, data);
    }
    let ran = serving.stop();
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
}

#[test]
fn nohup_means_what_it_says() {
    let disk = Disk::new("mem", "size = \"1M\"", 1);
    // SAFETY: one system call.
    let ignore = || unsafe { _ = libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let mut command = disk.folder.command(&["serve", "disks.toml", "-v"]);
    before(&mut command, ignore).stderr(Stdio::piped());
    let serving = Serving::start(&disk.folder, command);
    (0..3).for_each(|_| serving.signal(libc::SIGHUP));
    let ran = serving.stop();
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(!ran.stderr.contains("SIGHUP"), "{}", ran.stderr);

    let arguments = ["bench", "disks.toml", "--warm-up", "0", "-d", "1", "-n", "20", "--rounds", "2"];
    let mut command = disk.folder.command(&arguments);
    // It ends by itself, however often the terminal goes.
    let mut child = before(&mut command, ignore).stdout(Stdio::piped()).spawn().expect("starts");
    while child.try_wait().expect("wait").is_none() {
        // SAFETY: the child has not been waited for, so its number is still its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGHUP) };
        std::thread::yield_now();
    }
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn without_nohup_a_hangup_is_a_look_at_the_media() {
    let folder = Folder::new();
    folder.write("disks.toml", common::disk::config("mem", "size = \"1M\"", 1, "blk0.sock"));
    let mut child = folder.command(&["serve", "disks.toml", "-v"]).stderr(Stdio::piped()).spawn().expect("starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(log.by_ref().any(|line| line.contains("serving on")));
    // SAFETY: the child has not been waited for, so its number is still its own.
    let signal = |signal| assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    signal(libc::SIGHUP);
    assert!(log.any(|line| line.contains("SIGHUP: measuring all media again")));
    signal(libc::SIGXCPU);
    assert_eq!(child.wait().expect("ended").code(), Some(0), "a limit on CPU time is a wish to end, in order");
}

#[test]
fn standard_error_that_nobody_reads_changes_no_exit_status() {
    let folder = Folder::new();
    for (arguments, status) in [(["bench", "none.sock"], 1), (["check", "none.toml"], 2), (["stats", "none"], 1)] {
        let mut child = folder.command(&arguments).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stderr.take());
        assert_eq!(child.wait().expect("ended").code(), Some(status), "{arguments:?}");
    }
}
