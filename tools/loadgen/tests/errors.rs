//! What goes wrong, and what is said about it.
mod common;

use common::{PATIENCE, Place, limits, options};
use pollux_loadgen::{Error, FrontEnd, FrontEndOptions, Load, LoadLimits, Workload};
use pollux_testing::sockets::leave_behind;
use std::{fs, os::unix::net::UnixListener, path::Path, process::Command, thread, time::Duration};

fn refuses(path: &Path, options: &FrontEndOptions, words: &str) -> Error {
    let error = FrontEnd::connect(path, options).expect_err(words);
    let message = error.to_string();
    assert!(message.starts_with(&path.display().to_string()) && message.contains(words), "{message}");
    error
}

#[test]
fn a_place_where_nobody_listens_is_told_from_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    assert!(!refuses(&path, &options(), "no such socket; start the backend first").is_usage());
    leave_behind(&path);
    assert!(!refuses(&path, &options(), "nobody listens on this socket").is_usage());
    let file = folder.path().join("disk.img");
    fs::write(&file, "").expect("a file");
    assert!(refuses(&file, &options(), "this is not a socket").is_usage());
}

#[test]
fn a_listener_that_says_nothing_or_hangs_up_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    let short = FrontEndOptions { patience: Duration::from_millis(50), ..options() };
    refuses(&path, &short, "no answer to GET_FEATURES within 50ms; most backends serve one front end at a time");
    let server = thread::spawn(move || {
        drop(listener.accept());
        drop(listener.accept());
    });
    refuses(&path, &options(), "closed the connection at GET_FEATURES");
    server.join().expect("a server");
}

#[test]
fn what_the_device_cannot_do_is_said_before_anything_is_sent() {
    let Some(place) = Place::new("what_the_device_cannot_do_is_said_before_anything_is_sent") else { return };
    let backend = place.null("s", "writable=off");
    let socket = &backend.socket;
    let many = FrontEndOptions { queues: 5, ..options() };
    assert!(refuses(socket, &many, "5 queues asked for, and the backend has 4").is_usage());
    let deep = FrontEndOptions { depth: 300, queue_size: Some(128), ..options() };
    let error = FrontEnd::connect(socket, &deep).expect_err("a depth");
    assert!(error.to_string().contains("give --queue-size 512"), "{error}");
    let mut front_end = FrontEnd::connect(socket, &options()).expect("a front end");
    assert!(front_end.facts().read_only);
    let writes = Workload { read_share: 0, ..Workload::default() };
    let error = Load::new(&writes, &mut front_end, false).expect_err("writes");
    assert!(error.is_usage() && error.to_string().contains("the device is read-only"), "{error}");
    let far = Workload { offset: 64 << 20, size: Some(4096), ..Workload::default() };
    let error = Load::new(&far, &mut front_end, false).expect_err("a range");
    assert!(error.to_string().contains("ends beyond the device, which has 67108864 bytes"), "{error}");
    let mut load = Load::new(&Workload::default(), &mut front_end, false).expect("a load");
    let cpus = LoadLimits { cpus: vec![100_000], ..limits(1) };
    let error = load.run(&mut front_end, &cpus, &mut |_| {}).expect_err("a CPU");
    assert!(error.is_usage() && error.to_string().starts_with("cannot run on CPU 100000"), "{error}");
}

#[test]
fn a_backend_that_stops_answering_is_given_up() {
    let Some(place) = Place::new("a_backend_that_stops_answering_is_given_up") else { return };
    let backend = place.null("s", "writable=on");
    let mut front_end = FrontEnd::connect(&backend.socket, &options()).expect("a front end");
    let mut load = Load::new(&Workload::default(), &mut front_end, false).expect("a load");
    let signal = |name: &str| {
        let done = Command::new("kill").args([name, &backend.id().to_string()]).status().expect("kill runs");
        assert!(done.success(), "kill {name}");
    };
    let mut stopped = false;
    let endless = LoadLimits { requests: None, patience: Duration::from_millis(300), ..limits(0) };
    let result = load.run(&mut front_end, &endless, &mut |progress| {
        if !stopped && progress.requests > 100 {
            signal("-STOP");
            stopped = true;
        }
    });
    signal("-CONT");
    let message = result.expect_err("nothing comes back").to_string();
    assert!(message.contains("queue 0: no completion for 300ms with 16 requests in flight"), "{message}");
    // It goes on where it was.
    let patient = LoadLimits { patience: PATIENCE, ..limits(1000) };
    load.run(&mut front_end, &patient, &mut |_| {}).expect("the backend is back");
    assert_eq!(front_end.in_flight(), 0);
}
