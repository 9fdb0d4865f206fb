//! A plugin that panics or breaks its contract fails its own device: every request ends with an error, once, and
//! others go on, whatever layers are in between.
use pollux_core::{
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{Cut, IN, IOERR, OK, OUT, UNTOUCHED, wait_for},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::sync::atomic::Ordering;

const DISK_BYTES: u64 = 1 << 20;

fn fails_alone(behaviour: Behaviour, expected: &[u8]) {
    (0..3).for_each(|layers| fails_alone_behind(layers, behaviour, expected));
}

fn fails_alone_behind(layers: usize, behaviour: Behaviour, expected: &[u8]) {
    let worker = Worker::spawn("contract", None, IdlePolicy::Adaptive).expect("worker");
    let handle = [worker.handle()];
    let good = disk::open("contract-good", DISK_BYTES, Behaviour::Deferred).expect("disk");
    let bad = disk::open("contract-bad", DISK_BYTES, behaviour).expect("disk");
    let mut good = Guest::new("good", good, 1, &handle);
    let mut bad = Guest::new("bad", disk::behind(layers, bad), 1, &handle);
    assert_eq!(good.start() & STATUS_NEEDS_RESET, 0);
    for round in 0..3 {
        assert_eq!(bad.start() & STATUS_NEEDS_RESET, 0, "{behaviour:?}: a reset starts it afresh, round {round}");
        for sector in 0..8 {
            bad.drivers[0].add(IN, sector, &[], &Cut::plain(0, 512)).expect("room");
        }
        if bad.drivers[0].ring.publish() {
            bad.device.kick(0).expect("queue").write(1).expect("kick");
        }
        let mut statuses: Vec<u8> = (0..8).map(|_| bad.finish(0).status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, expected, "{behaviour:?} behind {layers} layers");
        wait_for("DEVICE_NEEDS_RESET", || (bad.device.status() & STATUS_NEEDS_RESET != 0).then_some(()));
        assert!(bad.drivers[0].pop().is_none(), "{behaviour:?}: each request ends once");
        assert_eq!(good.request(0, OUT, 1, &[2; 512], &Cut::plain(512, 0)).status, OK);
    }
}

#[test]
fn a_panic_in_submit() {
    fails_alone(Behaviour::PanicSubmit, &[IOERR; 8]);
}

#[test]
fn a_panic_in_poll() {
    fails_alone(Behaviour::PanicPoll, &[IOERR; 8]);
}

#[test]
fn a_completion_for_a_request_that_never_was() {
    fails_alone(Behaviour::Unknown, &[IOERR; 8]);
}

#[test]
fn a_request_that_completes_twice() {
    // The first one's success counts; its second completion gives the plugin away.
    fails_alone(Behaviour::Twice, &[OK, IOERR, IOERR, IOERR, IOERR, IOERR, IOERR, IOERR]);
}

#[test]
fn a_failed_backend_is_stopped_before_the_guest_has_its_buffers_back() {
    for layers in 0..3 {
        let worker = Worker::spawn("stop", None, IdlePolicy::Adaptive).expect("worker");
        let name = format!("stop-first-{layers}");
        let disk = disk::open(&name, DISK_BYTES, Behaviour::PanicPoll).expect("disk");
        let mut guest = Guest::new(&name, disk::behind(layers, disk), 1, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, IOERR);
        assert_eq!(disk::control(&name).stops.load(Ordering::SeqCst), 1);
        drop(guest);
        assert_eq!(disk::control(&name).stops.load(Ordering::SeqCst), 1, "and only once");
    }
}

#[test]
fn a_backend_that_cannot_stop_keeps_its_requests_and_its_device_for_ever() {
    for layers in 0..3 {
        let worker = Worker::spawn("lost", None, IdlePolicy::Adaptive).expect("worker");
        let disk = disk::open("unstoppable", DISK_BYTES, Behaviour::Unstoppable).expect("disk");
        let mut guest = Guest::new("unstoppable", disk::behind(layers, disk), 1, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        let head = guest.submit(0, IN, 0, &[], &Cut::plain(0, 512));
        wait_for("DEVICE_NEEDS_RESET", || (guest.device.status() & STATUS_NEEDS_RESET != 0).then_some(()));
        assert_eq!(guest.drivers[0].peek_status(head), UNTOUCHED, "its buffer may still be written to");
        guest.device.set_status(0);
        assert_eq!(guest.device.status(), 0, "the reset does not wait for ever");
        assert_ne!(guest.start() & STATUS_NEEDS_RESET, 0, "but the device does not start again");
    }
}
