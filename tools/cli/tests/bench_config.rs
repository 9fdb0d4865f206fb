//! `pollux bench disks.toml`: the devices of a configuration are started, measured and stopped.
mod common;

use common::{Folder, WORKER, disk, running::Running, serving::Serving};
use pollux_core::stats::SegmentReader;
use pollux_testing::blk::wait_for;
use serde_json::Value;
use std::{fs, path::Path, process::Stdio};

const SOME: [&str; 10] = ["--rw", "randrw", "-n", "500", "--warm-up", "0", "-d", "4", "--rounds", "2"];

/// Two devices, whose sockets would be in the file's folder.
fn two_devices() -> String {
    let mut text = format!("{WORKER}[block.memory]\nplugin = \"mem\"\noptions = {{ size = \"1M\" }}\n");
    text += "[block.file]\nplugin = \"mem\"\noptions = { path = \"disk.img\" }\n";
    for (name, block) in [("blk0", "memory"), ("blk1", "file")] {
        text += &format!(
            "[device.{name}]\ntype = \"blk\"\nblock = \"{block}\"\nworkers = [\"io0\"]\nqueues = 2\n\
             transport = \"vhost-user\"\nsocket = \"{name}.sock\"\n"
        );
    }
    text
}

fn bench(folder: &Folder, arguments: &[&str]) -> Value {
    let ran = folder.run(&[&["bench"], arguments, &SOME[..], &["--json"]].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{arguments:?}: {}", ran.stdout);
    serde_json::from_str(&ran.stdout).expect("JSON and nothing else")
}

/// What was measured, and how often.
fn targets(json: &Value) -> Vec<(&str, &str, &str, usize)> {
    let text = |value: &'_ Value| -> &str { value.as_str().unwrap_or("-").to_owned().leak() };
    let runs = json["runs"].as_array().expect("runs");
    let count = |index: usize| runs.iter().filter(|run| run["target"] == index).count();
    let list = json["targets"].as_array().expect("targets").iter().enumerate();
    list.map(|(index, one)| (text(&one["kind"]), text(&one["path"]), text(&one["name"]), count(index))).collect()
}

fn remaining(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("pollux-bench-")).collect()
}

#[test]
fn all_devices_of_a_file_are_measured_or_the_one_that_is_named() {
    let folder = Folder::new();
    // Where relative paths start is the folder of the file, not ours.
    fs::create_dir(folder.path().join("sub")).expect("a folder");
    fs::rename(folder.path().join("disk.img"), folder.path().join("sub/disk.img")).expect("an image");
    folder.write("sub/disks.toml", two_devices());
    let place = folder.path().join("temporary");
    fs::create_dir(&place).expect("a folder");
    let arguments = [&["bench", "sub/disks.toml", "--verify", "--queues", "2", "--json=r.json"], &SOME[..]].concat();
    let ran = folder.command(&arguments).env("TMPDIR", &place).output().expect("runs");
    assert_eq!((ran.status.code(), ran.stderr.as_slice()), (Some(0), &[][..]));
    let text = String::from_utf8_lossy(&ran.stdout);
    for words in ["A sub/disks.toml blk0", "B sub/disks.toml blk1", "all as they were written"] {
        assert!(text.contains(words), "{words} in:\n{text}");
    }
    let text = fs::read(folder.path().join("r.json")).expect("where we are, not where the file is");
    let json = serde_json::from_slice(&text).expect("JSON");
    let both = [("config", "sub/disks.toml", "blk0", 2), ("config", "sub/disks.toml", "blk1", 2)];
    assert_eq!(targets(&json), both);
    assert_eq!(remaining(&place), [""; 0], "the sockets are gone");
    let json = bench(&folder, &["sub/disks.toml", "--device", "blk1"]);
    assert_eq!(targets(&json), [both[1]]);
}

/// As a driver such as FreeBSD's makes them.
#[test]
fn requests_of_a_mebibyte_in_one_piece_are_within_what_a_device_offers() {
    let folder = Folder::new();
    folder.write("disks.toml", two_devices());
    for block_size in ["64k", "1M"] {
        let arguments = ["bench", "disks.toml", "--block-size", block_size, "-n", "50", "--warm-up", "0", "-d", "1"];
        let ran = folder.run(&arguments);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{block_size}: {}", ran.stdout);
    }
}

/// Whether the process has devices that have done so many requests.
fn has_done(process: u32, requests: u64) -> bool {
    let snapshot = SegmentReader::of_process(process).and_then(|reader| reader.snapshot());
    snapshot.is_ok_and(|snapshot| snapshot.queues.iter().map(|queue| queue.requests.get()).sum::<u64>() >= requests)
}

#[test]
fn a_signal_stops_it_in_order_with_a_report_of_what_was_measured() {
    let folder = Folder::new();
    folder.write("disks.toml", two_devices());
    let place = folder.path().join("temporary");
    fs::create_dir(&place).expect("a folder");
    let endless = ["bench", "disks.toml", "--warm-up", "0", "-d", "4", "-t", "3600"];
    let many = ["bench", "disks.toml", "--warm-up", "0", "-d", "4", "-n", "500", "--rounds", "10000"];
    let cases: [(&[&str], i32, u64, &str); 3] = [
        (&endless, libc::SIGTERM, 1, "pollux: stopped by signal 15; 0 of 2 measurements were done\n"),
        // The first request after those of a measurement is of the next one.
        (&many, libc::SIGINT, 501, " of 20000 measurements were done\n"),
        (&many, libc::SIGHUP, 501, " of 20000 measurements were done\n"),
    ];
    for (arguments, signal, requests, words) in cases {
        let mut command = folder.command(arguments);
        let bench = Running::start(command.env("TMPDIR", &place).stdout(Stdio::piped()).stderr(Stdio::piped()));
        wait_for("requests", || has_done(bench.id(), requests).then_some(()));
        assert_eq!(remaining(&place).len(), 1, "a folder for sockets");
        bench.signal(signal);
        let ran = bench.wait();
        assert_eq!(ran.status, Some(128 + signal), "{}", ran.stderr);
        assert!(ran.stderr.ends_with(words) && ran.stderr.lines().count() == 1, "{}", ran.stderr);
        assert_eq!(ran.stdout.contains("IOPS"), requests > 1, "{}", ran.stdout);
        assert_eq!(remaining(&place), [""; 0], "the sockets are gone");
    }
}

#[test]
fn devices_of_files_and_sockets_are_compared() {
    let folder = Folder::new();
    folder.write("disks.toml", two_devices());
    let null = "[block.none]\nplugin = \"null\"\noptions = { size = \"1M\" }\n";
    let device = "[device.n]\ntype = \"blk\"\nblock = \"none\"\nworkers = [\"io0\"]\ntransport = \"vhost-user\"\n";
    folder.write("null.toml", format!("{WORKER}{null}{device}socket = \"n.sock\"\n"));
    // The same socket serves at the same time: ours are elsewhere.
    let _server = Serving::start(&folder, folder.command(&["serve", "null.toml"]));
    let null = ("config", "null.toml", "n", 2);
    let json = bench(&folder, &["null.toml", "--compare", "n.sock"]);
    assert_eq!(targets(&json), [null, ("socket", "n.sock", "-", 2)]);
    assert_eq!(json["ratios"].as_array().map(Vec::len), Some(1));
    folder.write("other.toml", disk::config("mem", disk::FILE, 2, "o.sock"));
    let json = bench(&folder, &["null.toml", "--compare", "other.toml"]);
    assert_eq!(targets(&json), [null, ("config", "other.toml", "blk0", 2)]);
    let json = bench(&folder, &["disks.toml", "--compare", "n.sock", "--device", "blk0"]);
    assert_eq!(targets(&json), [("config", "disks.toml", "blk0", 2), ("socket", "n.sock", "-", 2)]);
    let wrong: [(&[&str], &str); 3] = [
        (&["disks.toml", "--device", "blk7"], "pollux: disks.toml: there is no device `blk7`; it has blk0, blk1\n"),
        (
            &["n.sock", "--compare", "disks.toml"],
            "pollux: disks.toml: one device is compared with one other, and it has blk0, blk1; name one of them with \
             --device\n",
        ),
        (&["null.toml", "--queues", "3"], "3 queues asked for, and the backend has 1"),
    ];
    for (arguments, words) in wrong {
        let ran = folder.run(&[&["bench"], arguments].concat());
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.stderr.contains(words), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn a_device_gives_requests_back_in_order_if_both_say_so() {
    let folder = Folder::new();
    folder.write("plain.toml", disk::config("mem", disk::FILE, 1, "p.sock"));
    folder.write("order.toml", disk::config("mem", disk::FILE, 1, "o.sock") + "in_order = true\n");
    let image = fs::read(folder.path().join("disk.img")).expect("an image");
    for ring in ["split", "packed"] {
        // Without the records of the run before.
        folder.write("disk.img", &image);
        let json = bench(&folder, &["order.toml", "--ring", ring, "--in-order", "--batch", "--verify"]);
        assert_eq!(json["targets"][0]["device"]["in_order"], true, "{ring}");
        // Whoever does not ask for it does not have it.
        let json = bench(&folder, &["order.toml", "--ring", ring]);
        assert_eq!(json["targets"][0]["device"]["in_order"], false, "{ring}");
    }
    let ran = folder.run(&["bench", "plain.toml", "--in-order"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (Some(1), ""));
    let words = "the backend does not offer VIRTIO_F_IN_ORDER; leave --in-order out, or set in_order = true on a \
                 device of pollux serve";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}

#[test]
fn what_cannot_be_started_is_said_with_its_file() {
    let folder = Folder::new();
    folder.write("disks.toml", two_devices().replace("\"blk1.sock\"", "3"));
    let ran = folder.run(&["bench", "disks.toml"]);
    assert_eq!(ran.status, Some(2));
    assert!(ran.stderr.starts_with("disks.toml:") && !ran.stderr.contains("pollux:"), "{}", ran.stderr);
    folder.write("disks.toml", two_devices());
    folder.write("same.toml", disk::config("mem", disk::FILE, 1, "s.sock"));
    let _server = Serving::start(&folder, folder.command(&["serve", "same.toml"]));
    let ran = folder.run(&["bench", "disks.toml"]);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("pollux: disks.toml: cannot start its devices: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("disk.img is in use by process"), "{}", ran.stderr);
}
