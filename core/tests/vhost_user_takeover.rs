//! What one connection to a device says before its rings run is its own affair, and goes with it: the cache mode, the
//! memory.
use pollux_testing::{
    blk::{Cut, OUT, pattern, wait_for},
    disk::{Behaviour, control},
    front_end::FrontEnd,
    neighbours::Neighbours,
    raw_front_end::{PROTOCOL_FEATURES, RawFrontEnd, words32, words64},
};
use std::{fs, os::unix::fs::MetadataExt, sync::atomic::Ordering};
use vhost::{
    VhostBackend,
    vhost_user::{
        VhostUserFrontend,
        message::{FrontendReq as Request, VhostUserConfigFlags},
    },
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Whether a write is durable when it completes.
fn writes_through(name: &str, front: &mut FrontEnd) -> bool {
    let before = control(name).durable_writes.load(Ordering::SeqCst);
    assert_eq!(front.request(0, OUT, 0, &pattern(1, 512), &Cut::plain(512, 0)).status, 0);
    control(name).durable_writes.load(Ordering::SeqCst) > before
}

fn stop_all(front: &FrontEnd) {
    for queue in 0..2 {
        assert_eq!(front.stop(queue), front.drivers[queue].ring.base(false));
    }
}

#[test]
fn another_connection_does_not_change_the_cache_mode_of_a_running_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let both = Neighbours::new(folder.path(), "takeover-cache", Behaviour::Inline);
    let mut first = FrontEnd::new(&both.path, 2);
    first.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).expect("SET_CONFIG");
    first.start();
    assert!(writes_through("takeover-cache", &mut first));
    // It accepts a write cache, and switches it on.
    let mut second = FrontEnd::new(&both.path, 2);
    second.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &[1]).expect("SET_CONFIG");
    assert!(writes_through("takeover-cache", &mut first));
    // When it takes over, it has what it has asked for.
    stop_all(&first);
    second.start();
    assert!(!writes_through("takeover-cache", &mut second));
    stop_all(&second);
    (0..2).for_each(|queue| first.set_up(queue, first.drivers[queue].ring.base(false)));
    assert!(writes_through("takeover-cache", &mut first), "and so has the first one, back again");
}

/// A driver without FLUSH cannot make its writes durable afterwards, so they are when they complete, whatever was reset
/// before. And a front end that resets to pause shows its guest the cache mode that was last set.
#[test]
fn a_reset_switches_no_write_cache_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let both = Neighbours::new(folder.path(), "takeover-reset", Behaviour::Inline);
    let mut front = FrontEnd::new(&both.path, 2);
    let without_flush = front.features() & !(1 << VIRTIO_BLK_F_FLUSH);
    for (features, config) in [(without_flush, None), (front.features(), Some(0))] {
        front.wire.set_features(features).expect("SET_FEATURES");
        if let Some(mode) = config {
            front.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &[mode]).expect("SET_CONFIG");
        }
        for _ in 0..2 {
            front.send_memory();
            for queue in 0..2 {
                front.set_up(queue, front.drivers[queue].ring.base(false));
                front.enable(queue, true);
            }
            assert!(writes_through("takeover-reset", &mut front), "features {features:#x}");
            front.wire.reset_device().expect("RESET_DEVICE");
            front.wire.set_features(features).expect("SET_FEATURES");
        }
    }
}

/// The memory of a guest is unmapped when its front end goes, and not when the next one comes: its pages may be what
/// the next one is made of.
#[test]
fn the_memory_of_a_guest_goes_with_its_front_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let both = Neighbours::new(folder.path(), "takeover-memory", Behaviour::Inline);
    let mut front = FrontEnd::new(&both.path, 2);
    front.start();
    let memory = front.memory.clone();
    let inode = memory.map().iter().next().and_then(|region| region.file_offset()).expect("a file");
    let inode = inode.file().metadata().expect("a file").ino().to_string();
    let mappings = || {
        let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
        maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
    };
    let ours = memory.map().iter().count();
    assert_eq!(mappings(), 2 * ours, "ours, and those of the back end");
    stop_all(&front);
    assert_eq!(mappings(), 2 * ours, "kept while it only pauses");
    drop(front);
    wait_for("the mappings to go", || (mappings() == ours).then_some(()));
}

/// What needs no running ring is answered before one ever ran; features without VIRTIO 1 matter at the start alone.
#[test]
fn asking_needs_no_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let both = Neighbours::new(folder.path(), "takeover-ask", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    assert_eq!(raw.ask(Request::SET_FEATURES, &words64(&[PROTOCOL_FEATURES]), &[]), Some(0));
    raw.send(Request::GET_VRING_BASE, &words32(&[1, 0]), &[]);
    assert_eq!(raw.receive().map(|reply| reply.payload), Some(words32(&[1, 0])), "of a queue that never ran");
    assert_eq!(raw.ask(Request::RESET_OWNER, &[], &[]), Some(0));
    assert_eq!(raw.ask(Request::RESET_DEVICE, &[], &[]), Some(0));
    assert_eq!(raw.ask(Request::SET_VRING_ENABLE, &words32(&[1, 0]), &[]), Some(0));
    assert!(raw.is_alive());
}
