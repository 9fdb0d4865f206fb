//! NVMe drives: asking the device for the end of requests, and passthrough. They need a drive of their own, whose
//! content is lost: its block device is named by the environment variable `LAB_NVME0`, which the lab sets
//! (`cargo xtask lab-test nvme`).
use super::*;
use crate::testing::{Memory, check_against_model, check_segment_splits, request, transfer};
use pollux_abi::block_v1::*;

/// The block device of the drive.
fn drive() -> Option<PathBuf> {
    let drive = std::env::var_os("LAB_NVME0").map(PathBuf::from);
    if drive.is_none() {
        println!("SKIPPED: LAB_NVME0 names no NVMe drive to be overwritten");
    }
    drive
}

/// Its generic device.
fn generic(drive: &Path) -> PathBuf {
    drive.to_str().expect("UTF-8").replace("/nvme", "/ng").into()
}

fn with_poll(path: &Path, poll: &str) -> String {
    format!(r#"{{"path": {path:?}, "poll": "{poll}"}}"#)
}

fn check_drive(path: &Path, poll: &str, way: &str, seed: u64) {
    let instance = Instance::<Uring>::open(&with_poll(path, poll)).expect("it opens");
    let log = instance.log();
    println!("{log}");
    assert!(log.contains(way) && log.contains("polled") == (poll == "on"), "{log}");
    let info = instance.info();
    assert!(info.offers(POLLUX_BLOCK_DISCARD) && info.offers(POLLUX_BLOCK_WRITE_ZEROES), "{log}");
    let mut queue = instance.queue(64);
    if info.maximum_transfer == 0 {
        check_segment_splits(&mut queue, info.logical_block_size as usize);
    }
    let blocks = info.capacity / u64::from(info.logical_block_size);
    check_against_model(&mut queue, &info, 0, blocks.min(16384), 64, seed);
    // Durable writes, flushes and zeroes between reads and writes.
    let memory = Memory::holding(&[7; 8192]);
    let segments = [memory.segment(0, 8192)];
    let write = BlockRequest { flags: POLLUX_BLOCK_FUA, ..transfer(POLLUX_BLOCK_WRITE, 4096, &segments) };
    checked(&mut queue, write);
    checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
    checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 4096, 4096, POLLUX_BLOCK_FUA));
    assert!(is_zero(&queue.read(4096, 4096)));
    assert_eq!(queue.read(8192, 4096), [7; 4096]);
    checked(&mut queue, request(POLLUX_BLOCK_DISCARD, 0, 65536, 0));
}

#[test]
fn a_drive_is_polled_or_not() {
    let Some(drive) = drive() else { return };
    check_drive(&drive, "on", "by io_uring", 51);
    check_drive(&drive, "off", "by io_uring", 52);
    let log = Instance::<Uring>::open(&with_poll(&drive, "auto")).expect("it opens").log();
    assert!(log.contains("polled"), "{log}");
}

#[test]
fn commands_go_straight_to_a_namespace() {
    let Some(drive) = drive() else { return };
    check_drive(&generic(&drive), "on", "by NVMe commands", 53);
    check_drive(&generic(&drive), "off", "by NVMe commands", 54);
}

#[test]
fn a_namespace_and_its_block_device_are_one_medium() {
    let Some(drive) = drive() else { return };
    let options = |path: &Path| format!(r#"{{"path": {path:?}, "lock": false}}"#);
    let by_block = Instance::<Uring>::open(&options(&drive)).expect("it opens");
    let by_command = Instance::<Uring>::open(&options(&generic(&drive))).expect("it opens");
    let (first, second) = (by_block.info(), by_command.info());
    assert_eq!((first.capacity, first.logical_block_size), (second.capacity, second.logical_block_size));
    assert_eq!(
        (first.identity_device, first.identity_object),
        (second.identity_device, second.identity_object),
        "the host must notice that they are the same"
    );
    let (mut first, mut second) = (by_block.queue(8), by_command.queue(8));
    assert_eq!(first.write(65536, &[1; 4096]), 0);
    assert_eq!(second.read(65536, 4096), [1; 4096]);
    assert_eq!(second.write(65536, &[2; 4096]), 0);
    assert_eq!(first.read(65536, 4096), [2; 4096]);
}

#[test]
fn a_namespace_in_use_is_refused() {
    let Some(drive) = drive() else { return };
    let path = generic(&drive);
    let by_block = Instance::<Uring>::open(&options(&drive, true)).expect("it opens");
    let message = Instance::<Uring>::open(&options(&path, true)).err().expect("its block device is in use");
    assert!(message.contains("in use") && message.contains("lock = false"), "{message}");
    drop(by_block);
    let by_command = Instance::<Uring>::open(&options(&path, true)).expect("it opens");
    assert!(Instance::<Uring>::open(&options(&drive, true)).is_err());
    assert!(Instance::<Uring>::open(&options(&path, true)).is_err());
    drop(by_command);
    Instance::<Uring>::open(&options(&drive, true)).expect("it opens");
}

#[test]
fn a_worker_does_not_sleep_while_a_polled_request_is_in_flight() {
    let Some(drive) = drive() else { return };
    let instance = Instance::<Uring>::open(&with_poll(&drive, "on")).expect("it opens");
    let mut queue = instance.queue(4);
    let memory = Memory::new(4096);
    let segments = [memory.segment(0, 4096)];
    for _ in 0..100 {
        assert_eq!(queue.submit(&[transfer(POLLUX_BLOCK_READ, 0, &segments)]), 1);
        if queue.done.is_empty() {
            assert!(queue.arm(true), "nothing would wake it");
            queue.arm(false);
        }
        queue.wait(1);
    }
    assert_eq!(queue.submit(&[request(POLLUX_BLOCK_FLUSH, 0, 0, 0)]), 1);
    queue.wait(1);
}

#[test]
fn a_medium_that_cannot_be_polled_is_named_with_what_to_do() {
    let fixture = Fixture::new(1 << 20);
    let refusal = |options: &str| Instance::<Uring>::open(options).err().expect("it does not poll");
    let message = refusal(&with_poll(&fixture.path, "on"));
    assert!(message.contains("disk.img is no block device") && message.contains("poll = \"auto\""), "{message}");
    let message = refusal(&format!(r#"{{"path": {:?}, "poll": "on", "direct": false}}"#, fixture.path));
    assert!(message.contains("direct = false"), "{message}");
    let Some(device) = super::device::LoopDevice::new(1 << 20, 512) else { return };
    let message = refusal(&with_poll(&device.path, "on"));
    assert!(message.contains("nvme.poll_queues"), "{message}");
    let log = Instance::<Uring>::open(&with_poll(&device.path, "auto")).expect("it opens").log();
    assert!(!log.contains("polled"), "{log}");
}
