//! `pollux stats`: the numbers of another process, while it runs and after it was killed.
mod common;

use common::{Folder, WORKER, running::Running, serving::Serving};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write(
        "disks.toml",
        format!(
            "{WORKER}[block.zero]\nplugin = \"null\"\n[device.blk0]\ntype = \"blk\"\nblock = \"zero\"\nqueues = 2\n\
             workers = [\"io0\"]\ntransport = \"vhost-user\"\nsocket = \"a.sock\"\n"
        ),
    );
    folder
}

fn serve(folder: &Folder, arguments: &[&str]) -> Serving {
    Serving::start(folder, folder.command(&[&["serve", "disks.toml"], arguments].concat()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_running_process_is_read_by_number_and_by_file_and_a_killed_one_by_file() {
    let folder = folder();
    let mut served = serve(&folder, &["--stats-segment", "segment"]);
    let pid = served.id().to_string();
    for source in [pid.as_str(), "segment"] {
        let ran = folder.run(&["stats", source, "--json"]);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{source}");
        let numbers = json(&ran.stdout);
        assert_eq!(numbers["process"], serde_json::json!({ "pid": served.id(), "alive": true, "ended": false }));
        assert_eq!(numbers["queues"][1]["device"], "blk0");
        assert_eq!(
            (&numbers["workers"][0]["worker"], &numbers["workers"][0]["idle"]),
            (&"io0".into(), &"adaptive".into())
        );
    }
    let table = folder.run(&["stats", "segment"]);
    assert!(table.stdout.starts_with(&format!("process {pid} runs\ndevice  worker")), "{}", table.stdout);
    assert!(!table.stdout.contains('\u{1b}'), "no colours outside of a terminal");
    served.kill();
    let table = folder.run(&["stats", "segment"]);
    assert_eq!(table.status, Some(0));
    assert!(table.stdout.starts_with(&format!("process {pid} is gone and has not ended in order")), "{}", table.stdout);
    let ran = folder.run(&["stats", &pid]);
    assert_eq!((ran.status, ran.stderr), (Some(1), format!("pollux: process {pid}: there is no such process\n")));
}

#[test]
fn without_a_file_a_process_is_found_all_the_same() {
    let folder = folder();
    let served = serve(&folder, &[]);
    let ran = folder.run(&["stats", &served.id().to_string()]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("\nio0     0    adaptive"), "{}", ran.stdout);
    let ran = folder.run(&["stats", &std::process::id().to_string()]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("it has no statistics segment"), "{}", ran.stderr);
}

#[test]
fn watching_shows_each_period_and_ends_with_the_process() {
    let folder = folder();
    let served = serve(&folder, &["--stats-segment", "segment"]);
    let mut command = folder.command(&["stats", "segment", "--json", "--watch", "0.05"]);
    let mut watching = Running::start(command.stdout(Stdio::piped()));
    let mut lines = BufReader::new(watching.child().stdout.take().expect("piped")).lines();
    for _ in 0..3 {
        let numbers = json(&lines.next().expect("a line").expect("text"));
        assert!(numbers["period"]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
        assert_eq!(numbers["period"]["queues"].as_array().map(Vec::len), Some(2));
    }
    drop(served);
    let last = lines.map(|line| json(&line.expect("text"))).last().expect("a last line");
    assert_eq!(last["process"]["alive"], false);
    assert_eq!(watching.wait().status, Some(0));
}

#[test]
fn a_segment_takes_the_place_of_another_and_of_nothing_else() {
    let folder = folder();
    drop(serve(&folder, &["--stats-segment", "segment"]));
    fs::remove_file(folder.path().join("a.sock")).expect("left behind");
    drop(serve(&folder, &["--stats-segment", "segment"]));
    let ran = folder.run(&["serve", "disks.toml", "--stats-segment", "disk.img"]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("cannot make the statistics segment") && ran.stderr.contains("choose another place"));
    assert_eq!(fs::metadata(folder.path().join("disk.img")).expect("untouched").len(), 1 << 20);
    let ran = folder.run(&["stats", "disk.img"]);
    assert_eq!(ran.stderr, "pollux: disk.img: is not a statistics segment: it does not begin with POLLUXST\n");
    assert_eq!(folder.run(&["stats", "segment", "--watch", "never"]).status, Some(2));
}
