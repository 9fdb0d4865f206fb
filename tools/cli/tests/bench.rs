//! `pollux bench`: exit status, output streams, files.
mod common;

use common::{Ran, running::Running};
use pollux_testing::sockets::leave_behind;
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// `pollux bench` with these arguments, in `folder`.
fn bench(folder: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
    command.arg("bench").args(arguments).current_dir(folder).output().expect("the program starts").into()
}

/// qemu-storage-daemon that serves an image of 4 MiB on `s`. `None`, with the reason printed: it is not installed.
fn backend(test: &str, folder: &Path) -> Option<Running> {
    let image = fs::File::create(folder.join("disk.img")).expect("an image");
    image.set_len(4 << 20).expect("an image");
    let started = Command::new("qemu-storage-daemon")
        .args(["--blockdev", "driver=file,node-name=n,filename=disk.img"])
        .args(["--export", "type=vhost-user-blk,id=e,addr.type=unix,addr.path=s,node-name=n,writable=on,num-queues=2"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn();
    let Ok(child) = started else {
        eprintln!("SKIPPED: {test}: qemu-storage-daemon is not installed (Debian: qemu-utils)");
        return None;
    };
    let backend = Running::of(child);
    let start = Instant::now();
    while UnixStream::connect(folder.join("s")).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "the backend listens");
        thread::yield_now();
    }
    Some(backend)
}

#[test]
fn failures_end_with_1_and_mistakes_with_2() {
    let folder = tempfile::tempdir().expect("a folder");
    leave_behind(&folder.path().join("dead"));
    fs::write(folder.path().join("disks.toml"), "").expect("a file");
    let cases: [(&[&str], i32, &str); 11] = [
        (&["none"], 1, "pollux: none: no such socket; start the backend first, or correct the path\n"),
        (&["dead"], 1, "pollux: dead: nobody listens on this socket; its backend has ended, start it again\n"),
        (&["disks.toml"], 2, "disks.toml"),
        (
            &["none", "--device", "blk0"],
            2,
            "pollux: --device blk0 names a device of a configuration, and none is given",
        ),
        (&["none", "--cpu", "100000"], 2, "cannot run on CPU 100000"),
        (&["none", "--block-size", "4q"], 2, "`q` is no unit"),
        (&["none", "--block-size", "2G"], 2, "1G is the end"),
        (&["none", "--depth", "8,0"], 2, "--depth"),
        (&["none", "--queue-size", "100"], 2, "a power of two"),
        (&["none", "--rate", "0"], 2, "--rate"),
        (&["none", "--html", "no/such/folder.html"], 1, "cannot write no/such/folder.html"),
    ];
    for (arguments, status, words) in cases {
        let ran = bench(folder.path(), arguments);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(status), ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(words), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn results_go_to_standard_output_and_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(_backend) = backend("results_go_to_standard_output_and_files", folder.path()) else { return };
    let some = ["s", "--rw", "randrw", "--verify", "-n", "2000", "--warm-up", "0"];
    let ran = bench(folder.path(), &[&some[..], &["-d", "8", "--json=r.json", "--html", "r.html"]].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "no progress bar where there is no terminal");
    for words in ["IOPS", "p99.99", "round trip", "\u{2588}", "all as they were written"] {
        assert!(ran.stdout.contains(words), "{words} in:\n{}", ran.stdout);
    }
    let read = |name: &str| fs::read_to_string(PathBuf::from(folder.path()).join(name)).expect(name);
    let json: serde_json::Value = serde_json::from_str(&read("r.json")).expect("JSON");
    assert_eq!(json["runs"][0]["verified"]["fault_count"], 0);
    assert!(read("r.html").ends_with("</html>\n"));
    let ran = bench(folder.path(), &[&some[..], &["-d", "1,4", "--queues", "2", "--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON and nothing else");
    assert_eq!((ran.status, json["runs"].as_array().map(Vec::len)), (Some(0), Some(2)));
}

#[test]
fn wrong_data_ends_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(_backend) = backend("wrong_data_ends_with_1", folder.path()) else { return };
    let writes = ["s", "--rw", "write", "--verify", "-n", "1024", "--warm-up", "0", "-d", "4"];
    assert_eq!(bench(folder.path(), &writes).status, Some(0));
    // A record that moved from one sector to another is found even by a run that has written nothing.
    let mut image = fs::read(folder.path().join("disk.img")).expect("the image");
    image.copy_within(512 * 40..512 * 41, 512 * 99);
    fs::write(folder.path().join("disk.img"), image).expect("the image");
    let ran = bench(folder.path(), &["s", "--rw", "read", "--verify", "-n", "1024", "--warm-up", "0", "-d", "4"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(1), ""), "{}", ran.stdout);
    assert!(ran.stdout.contains("sector 99: not written by this run, found the record of sector 40"), "{}", ran.stdout);
    assert!(ran.stdout.contains("NOT verified: 1 wrong sectors in 1,024 blocks read"), "{}", ran.stdout);
}
