//! Media that misbehave behind `pollux serve`, as a front end sees them.
mod common;

use common::{
    Folder, Ran, WORKER,
    disk::{BUFFERED, DIRECT, Disk, IMAGE_BYTES},
    running::Running,
    serving::{PATIENCE, Serving},
};
use pollux_core::stats::SegmentReader;
use pollux_loadgen::{Ended, FrontEnd, FrontEndOptions, Load, LoadLimits, Workload};
use pollux_testing::{blk::wait_for, media};
use std::{fs::File, process::Stdio, time::Duration};

/// Two devices on one worker: `bad` with that script, in which `FOLDER` stands for the test's folder, and `good`.
fn serve(folder: &Folder, script: &str) -> Serving {
    let script = script.replace("FOLDER", &folder.path().display().to_string());
    let (plugin, image) = (media::plugin(), folder.path().join("medium.img"));
    let mut text = format!("{WORKER}[block.good]\nplugin = \"mem\"\noptions = {{ size = \"4M\" }}\n");
    text += &format!("[block.bad]\nplugin = {plugin:?}\noptions = {{ path = {image:?}, size = \"4M\", {script} }}\n");
    for name in ["good", "bad"] {
        text += &format!(
            "[device.{name}]\ntype = \"blk\"\nblock = \"{name}\"\nworkers = [\"io0\"]\n\
             transport = \"vhost-user\"\nsocket = \"{name}.sock\"\n"
        );
    }
    folder.write("disks.toml", text);
    let mut command = folder.command(&["serve", "disks.toml"]);
    command.stderr(Stdio::piped());
    Serving::start(folder, command)
}

fn bench(folder: &Folder, socket: &str, arguments: &[&str]) -> Ran {
    let always = ["bench", socket, "--warm-up", "0", "-n", "2000", "-d", "8", "--json"];
    folder.run(&[&always[..], arguments].concat())
}

/// Requests that a device of this process has completed.
fn done(process: u32, device: &str) -> u64 {
    let snapshot = SegmentReader::of_process(process).and_then(|reader| reader.snapshot()).expect("statistics");
    let queues = snapshot.queues.iter().filter(|queue| queue.device() == device);
    queues.filter_map(|queue| queue.blk()).map(|blk| blk.reads.get() + blk.writes.get()).sum()
}

/// Requests that it has taken and not completed.
fn in_flight(process: u32, device: &str) -> u64 {
    let snapshot = SegmentReader::of_process(process).and_then(|reader| reader.snapshot()).expect("statistics");
    let queues = snapshot.queues.iter().filter(|queue| queue.device() == device);
    queues.map(|queue| queue.in_flight.get()).sum()
}

/// Requests and errors of the only run.
fn counts(ran: &Ran) -> (u64, u64) {
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("JSON: {ran:?}"));
    let number =
        |name: &str| json["runs"][0]["total"][name].as_u64().unwrap_or_else(|| panic!("{name}: {}", ran.stdout));
    (number("requests"), number("errors"))
}

#[test]
fn errors_reach_the_front_end_of_their_device_one_for_one_and_no_other() {
    let folder = Folder::new();
    let server = serve(&folder, "script = [{ operation = \"write\", after = 500, count = 123, error = \"EIO\" }]");
    let bad = bench(&folder, "bad.sock", &["--rw", "randwrite"]);
    assert_eq!((bad.status, counts(&bad)), (Some(1), (2000, 123)), "{}", bad.stderr);
    let good = bench(&folder, "good.sock", &["--rw", "randrw", "--verify"]);
    assert_eq!((good.status, counts(&good)), (Some(0), (2000, 0)), "{}", good.stderr);
    let again = bench(&folder, "bad.sock", &["--rw", "randrw", "--verify"]);
    assert_eq!((again.status, counts(&again)), (Some(0), (2000, 0)), "it has recovered: {}", again.stderr);
    assert_eq!(server.stop().status, Some(0));
}

#[test]
fn failures_are_a_line_an_episode_in_the_log_and_numbers_by_errno_in_the_statistics() {
    let folder = Folder::new();
    let script = "script = [{ operation = \"write\", after = 500, count = 123, error = \"ENOSPC\" }]";
    let server = serve(&folder, script);
    let bad = bench(&folder, "bad.sock", &["--rw", "randwrite"]);
    assert!(bad.stderr.contains("123 requests failed: 123 with IOERR"), "{}", bad.stderr);
    let json: serde_json::Value = serde_json::from_str(&bad.stdout).expect("JSON");
    assert_eq!(json["runs"][0]["total"]["errors_by_status"], serde_json::json!({ "IOERR": 123 }));
    let table = folder.run(&["stats", &server.id().to_string()]).stdout;
    assert!(table.contains("\nbad on io0: failed: 123 with ENOSPC (No space left on device)\n"), "{table}");
    let snapshot = SegmentReader::of_process(server.id()).and_then(|reader| reader.snapshot()).expect("statistics");
    let queue = snapshot.queues.iter().find(|queue| queue.device() == "bad").expect("a queue");
    assert_eq!(
        (queue.errors.get(), queue.blk().expect("a block device").bytes_written.get()),
        (123, (2000 - 123) * 4096),
        "what failed moved nothing"
    );
    let log = server.stop().stderr;
    let words = "No space left on device (os error 28)";
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(words)).collect();
    assert!(lines.len() >= 2 && lines.len() < 10, "{log}");
    assert!(lines[0].contains("bad: a write at offset ") && lines[0].contains(" failed: "), "{log}");
    let counted =
        lines[1..].iter().filter_map(|line| line.split("bad: ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
    assert_eq!(counted.sum::<u32>(), 122, "{log}");
}

#[test]
fn a_neighbour_is_served_while_a_medium_hangs_and_nothing_is_lost_when_it_comes_back() {
    let folder = Folder::new();
    let server = serve(&folder, "script = [{ after = 500, hang = true, until = \"FOLDER/back\" }]");
    let mut command = folder.command(&["bench", "bad.sock", "--warm-up", "0", "-n", "2000", "-d", "8", "--json"]);
    command.args(["--rw", "randrw", "--verify"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let hanging = Running::start(&mut command);
    // All eight of its requests hang, and it has been served until then.
    wait_for("a medium that hangs", || (done(server.id(), "bad") == 500).then_some(()));
    let good = bench(&folder, "good.sock", &["--rw", "randrw", "--verify"]);
    assert_eq!((good.status, counts(&good)), (Some(0), (2000, 0)), "{}", good.stderr);
    assert_eq!(done(server.id(), "bad"), 500, "it hangs still");
    folder.write("back", "");
    let ran = hanging.wait();
    assert_eq!((ran.status, counts(&ran)), (Some(0), (2000, 0)), "{}", ran.stderr);
    assert_eq!(server.stop().status, Some(0));
}

#[test]
fn a_backend_that_is_killed_while_its_medium_hangs_leaves_the_requests_to_the_next_one() {
    let folder = Folder::new();
    let script = "script = [{ after = 500, hang = true, until = \"FOLDER/back\" }]";
    let mut server = serve(&folder, script);
    let options = FrontEndOptions { depth: 8, patience: PATIENCE, ..FrontEndOptions::default() };
    let mut front_end = FrontEnd::connect(&folder.path().join("bad.sock"), &options).expect("a backend");
    let workload = Workload { read_share: 30, ..Workload::default() };
    let mut load = Load::new(&workload, &mut front_end, true).expect("a load");
    let mut run = |front_end: &mut FrontEnd, requests| {
        let limits = LoadLimits { depth: 8, requests, patience: PATIENCE, ..LoadLimits::default() };
        let outcome = load.run(front_end, &limits, &mut |progress| {
            // Which is all that it gets.
            if requests.is_none() && progress.requests == 500 {
                server.kill();
            }
        });
        let outcome = outcome.expect("the rings are in order");
        assert_eq!((outcome.total().errors, load.faults().len()), (0, 0));
        outcome.ended
    };
    assert_eq!(run(&mut front_end, None), Ended::Lost);
    folder.write("back", "");
    let server = serve(&folder, script);
    front_end.reconnect(&folder.path().join("bad.sock")).expect("the backend is back");
    assert_eq!(run(&mut front_end, Some(1000)), Ended::Complete);
    assert_eq!(front_end.in_flight(), 0);
    assert_eq!(server.stop().status, Some(0));
}

#[test]
fn an_image_that_is_truncated_under_a_load_fails_requests_and_gives_no_wrong_data() {
    for options in [BUFFERED, DIRECT] {
        let disk = Disk::new("uring", options, 1);
        if options == DIRECT && !disk.takes_direct("a truncated image") {
            continue;
        }
        let mut command = disk.folder.command(&["serve", "disks.toml"]);
        command.stderr(Stdio::piped());
        let server = Serving::start(&disk.folder, command);
        let arguments = ["bench", "blk0.sock", "--rw", "randrw", "--verify", "-d", "8", "--warm-up", "0", "--json"];
        let mut command = disk.folder.command(&arguments);
        command.args(["-n", "8000", "--rate", "4000"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let load = Running::start(&mut command);
        wait_for("a load", || (done(server.id(), "blk0") > 1000).then_some(()));
        // No write is on its way when the file is cut: the load stands still, and what it has asked for has ended.
        load.signal(libc::SIGSTOP);
        let mut before = None;
        wait_for("a load that stands still", || {
            std::thread::sleep(Duration::from_millis(20));
            let now = Some(done(server.id(), "blk0"));
            (std::mem::replace(&mut before, now) == now && in_flight(server.id(), "blk0") == 0).then_some(())
        });
        let image = disk.folder.path().join("disk.img");
        let file = File::options().write(true).open(&image).expect("the image");
        file.set_len(IMAGE_BYTES / 2).expect("a shorter file");
        load.signal(libc::SIGCONT);
        let ran = load.wait();
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("JSON: {ran:?}"));
        assert_eq!(json["runs"][0]["verified"]["fault_count"], 0, "{options}: a wrong sector: {}", ran.stderr);
        let (requests, errors) = counts(&ran);
        assert!(errors > 0 && errors < requests, "{options}: {errors} of {requests} failed");
        assert_eq!(ran.status, Some(1), "{options}: {}", ran.stderr);
        assert_eq!(file.metadata().expect("a length").len(), IMAGE_BYTES / 2, "{options}: it has become longer");
        let log = server.stop().stderr;
        assert_eq!(log.matches("but the guest was told of").count(), 1, "{options}: {log}");
    }
}
