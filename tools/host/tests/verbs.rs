//! What is in use is not removed, and what cannot be done is said with the names of who is in the way.
mod common;

use common::{PATIENCE, WORKER, block, device, host, socket};
use pollux_host::{Backend, BackendSpec, description::DevicePlace};
use pollux_testing::{
    blk::{Cut, OUT, wait_for},
    disk::{self, Behaviour, ReleasedAtEnd},
    front_end::FrontEnd,
    neighbours::write_and_read,
};
use std::time::Duration;

/// No longer than a medium that hangs is worth.
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn what_is_in_use_is_not_removed_and_the_error_names_the_users() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("blk0", "disk"), PATIENCE).expect("a device");
    let path = folder.path().join("blk0.sock");
    host.add_export("blk0", socket(&path)).expect("an export");

    let said = host.remove_backend("disk").expect_err("in use").to_string();
    assert_eq!(said, "block disk: it is used by device blk0; remove that first");
    let said = host.remove_worker(WORKER).expect_err("in use").to_string();
    assert_eq!(said, "worker io0: it serves device blk0; remove that first");
    let said = host.remove_device("blk0", PATIENCE).expect_err("in use").to_string();
    assert_eq!(said, format!("blk0: it is served on {}; remove that export first", path.display()));
    let said = host.add_device(device("blk1", "disk"), PATIENCE).expect_err("written by two").to_string();
    assert!(said.starts_with("blk1: device blk0 uses the same medium (block disk)"), "{said}");
    let said = host.add_device(device("blk1", "other"), PATIENCE).expect_err("no such block").to_string();
    assert_eq!(said, "blk1: there is no block other; there is disk");

    host.remove_export("blk0", PATIENCE).expect("no export");
    assert!(!path.exists(), "the socket goes with its export");
    host.remove_device("blk0", PATIENCE).expect("no device");
    host.remove_backend("disk").expect("no backend");
    host.remove_worker(WORKER).expect("no worker");
    let left = host.describe();
    assert!(left.devices.is_empty() && left.backends.is_empty() && left.workers.is_empty(), "{left:?}");
}

#[test]
fn a_device_keeps_its_data_when_its_export_is_removed_and_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("blk0", "disk"), PATIENCE).expect("a device");
    let path = folder.path().join("blk0.sock");
    let mut read = Vec::new();
    for round in 0..3 {
        host.add_export("blk0", socket(&path)).expect("an export");
        let mut front = FrontEnd::new(&path, 1);
        front.start();
        if round == 0 {
            write_and_read(&mut front, 0, 7);
        }
        let sector = 8 * 7;
        read.push(front.request(0, pollux_testing::blk::IN, sector, &[], &Cut::plain(0, 4096)).data);
        host.remove_export("blk0", PATIENCE).expect("no export");
    }
    assert!(read[0].iter().any(|byte| *byte != 0) && read.iter().all(|data| *data == read[0]));
}

#[test]
fn a_paused_device_takes_no_request_until_it_is_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("blk0", "disk"), PATIENCE).expect("a device");
    let said = host.pause_device("blk0", PATIENCE).expect_err("nobody reaches it").to_string();
    assert_eq!(said, "blk0: nobody reaches it; serve it or attach it first");
    let path = folder.path().join("blk0.sock");
    host.add_export("blk0", socket(&path)).expect("an export");
    let mut front = FrontEnd::new(&path, 1);
    front.start();
    write_and_read(&mut front, 0, 1);
    host.pause_device("blk0", PATIENCE).expect("paused");
    let head = front.submit(0, OUT, 0, &[1; 512], &Cut::plain(512, 0));
    front.kick(0);
    assert!(front.drivers[0].pop().is_none());
    host.resume_device("blk0", PATIENCE).expect("resumed");
    assert_eq!(front.finish(0).head, head);
}

#[test]
fn a_medium_that_hangs_is_given_up_waiting_for_and_the_host_answers_meanwhile() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    let plugin = disk::open("hangs-probe", 1 << 20, Behaviour::Held).expect("a disk").plugin().clone();
    let options = r#"{"size": 1048576, "behaviour": "held"}"#.into();
    let spec = BackendSpec { name: "hangs".into(), plugin: String::new(), options, read_only: false };
    host.add_probed_backend(Backend::probe(spec, plugin).expect("a backend")).expect("added");
    host.add_device(device("blk0", "hangs"), PATIENCE).expect("a device");
    let path = folder.path().join("blk0.sock");
    host.add_export("blk0", socket(&path)).expect("an export");
    let mut front = FrontEnd::new(&path, 1);
    front.start();
    let control = ReleasedAtEnd(disk::control("hangs"));
    front.submit(0, OUT, 0, &[1; 512], &Cut::plain(512, 0));
    front.kick(0);

    let said = host.remove_export("blk0", SHORT).expect_err("it hangs").to_string();
    assert_eq!(said, "blk0: it is still being drained after 0 s and continues; check the result later");
    let place = || host.describe().devices[0].place.clone();
    assert!(matches!(place(), DevicePlace::Changing { doing: "being drained", .. }), "{:?}", place());
    let said = host.remove_export("blk0", SHORT).expect_err("it is at work").to_string();
    assert_eq!(said, "blk0: it is being drained, since 0 s; try again later");
    // Another device comes and goes meanwhile.
    host.add_backend(block("other")).expect("a backend");
    host.add_device(device("blk1", "other"), PATIENCE).expect("a device");
    host.remove_device("blk1", PATIENCE).expect("no device");

    control.release();
    wait_for("the export's end", || Some(()).filter(|()| place() == DevicePlace::Idle));
    host.remove_device("blk0", PATIENCE).expect("no device");
}

#[test]
fn a_device_that_cannot_be_opened_or_served_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    let said = host.add_backend(BackendSpec { options: "{}".into(), ..block("bad") }).expect_err("no size").to_string();
    assert!(said.starts_with("bad: "), "{said}");
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("blk0", "disk"), PATIENCE).expect("a device");
    let nowhere = folder.path().join("nowhere").join("blk0.sock");
    let said = host.add_export("blk0", socket(&nowhere)).expect_err("no folder").to_string();
    assert!(said.starts_with(&format!("blk0: cannot listen on {}", nowhere.display())), "{said}");
    assert_eq!(host.describe().devices[0].place, DevicePlace::Idle, "it is free as before");
    // The statistics of this host have room for two queues.
    host.add_backend(block("disk1")).expect("a backend");
    host.add_backend(block("disk2")).expect("a backend");
    host.add_device(device("blk1", "disk1"), PATIENCE).expect("a device");
    let said = host.add_device(device("blk2", "disk2"), PATIENCE).expect_err("no room").to_string();
    assert_eq!(said, "blk2: the statistics have no room for its queues; remove another device, or start with more");
    // Nor is there for one whose name begins as that of another does.
    let said = host.add_device(device("blk01", "disk2"), PATIENCE).expect_err("no room").to_string();
    assert!(said.starts_with("blk01: the statistics have no room"), "{said}");
    assert_eq!(host.describe().devices.len(), 2);
}

#[test]
fn a_description_says_everything_as_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("blk0", "disk"), PATIENCE).expect("a device");
    let path = folder.path().join("blk0.sock");
    host.add_export("blk0", socket(&path)).expect("an export");
    let json = serde_json::to_value(host.describe()).expect("JSON");
    let device = &json["devices"][0];
    assert_eq!((&device["name"], &device["type"], &device["block"]), (&"blk0".into(), &"blk".into(), &"disk".into()));
    assert_eq!((&device["state"], device["socket"].as_str()), (&"exported".into(), path.to_str()));
    assert_eq!(json["backends"][0]["options"]["size"], "4M");
    assert_eq!(json["backends"][0]["capacity_bytes"], 4 << 20);
    assert_eq!(json["workers"][0]["devices"][0], "blk0");
    assert_eq!(json["plugins"][0]["name"], "mem");
    assert!(json["machine"].is_null());
}
