//! Legacy drivers: those of firmware and old systems, which a front end such as QEMU's transitional device carries on
//! without VIRTIO_F_VERSION_1 (virtio 1.3, 1.3.1 and 2.7.3).
use pollux_core::{
    device::blk::Blk,
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{Cut, FLUSH, IN, OK, OUT, pattern},
    disk::{self, Behaviour, control},
    front_end,
    raw_front_end::{RawFrontEnd, RawGuest},
    rig::options,
};
use std::sync::atomic::Ordering;
use vhost::vhost_user::message::FrontendReq as Request;
use virtio_bindings::{
    virtio_blk::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX},
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED},
};

/// What firmware accepts, and what an old Linux does.
const FIRMWARE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
const OLD_SYSTEM: u64 = FIRMWARE | 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX;

#[test]
fn a_legacy_driver_reads_writes_and_flushes_and_the_next_one_goes_on_after_a_reset() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let worker = Worker::spawn("io0", None, IdlePolicy::Adaptive).expect("a worker");
    let backend = disk::open("legacy", 1 << 20, Behaviour::Inline).expect("a disk");
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let _server = front_end::serve(Blk::new(options("legacy", 1, &[worker.handle()]), backend, &stats), &path);
    let data = pattern(8, 4096);

    let raw = RawFrontEnd::acknowledged(&path);
    let mut firmware = RawGuest::new();
    firmware.start_with(&raw, 0, FIRMWARE);
    assert_eq!(firmware.request(OUT, 16, &data, &Cut::plain(4096, 0)).status, OK);
    assert_eq!(control("legacy").durable_writes.load(Ordering::SeqCst), 1, "it has no flush to make them durable with");

    // The system that it starts resets the device and sets up rings of its own.
    assert_eq!(raw.ask(Request::SET_VRING_ENABLE, &[0; 8], &[]), Some(0));
    let mut system = RawGuest::new();
    system.start_with(&raw, 0, OLD_SYSTEM);
    let read = system.request(IN, 16, &[], &Cut::plain(0, 4096));
    assert_eq!((read.status, read.data == data), (OK, true), "what the firmware wrote is read");
    assert_eq!(system.request(OUT, 24, &data, &Cut::plain(4096, 0)).status, OK);
    assert_eq!(system.request(FLUSH, 0, &[], &Cut::plain(0, 0)).status, OK);
}

#[test]
fn features_that_a_legacy_driver_cannot_see_are_refused_without_version_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let worker = Worker::spawn("io0", None, IdlePolicy::Adaptive).expect("a worker");
    let backend = disk::open("legacy-mixed", 1 << 20, Behaviour::Inline).expect("a disk");
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let mut options = options("legacy-mixed", 1, &[worker.handle()]);
    options.queues.in_order = true;
    let _server = front_end::serve(Blk::new(options, backend, &stats), &path);
    for feature in [VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER] {
        let raw = RawFrontEnd::acknowledged(&path);
        let guest = RawGuest::new();
        let mut steps = guest.steps_with(0, 1 << feature);
        let (last, enable, _) = steps.pop().expect("steps");
        for (request, payload, files) in steps {
            assert_eq!(raw.ask(request, &payload, &files), Some(0), "{request:?}");
        }
        assert_eq!(raw.ask(last, &enable, &[]), Some(1), "a ring that cannot be");
        assert!(raw.is_alive());
    }
}
