//! What a guest was told of its disk, and what it has set, holds until it changes that itself: also when the back end
//! was away, and has come back with another medium (virtio 1.3, 5.2.5.2).
use pollux_core::{
    device::blk::Blk,
    stats::StatsSegment,
    transport::vhost_user::Server,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, control},
    front_end::{self, FrontEnd},
    rig::options,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};
use vhost::vhost_user::{VhostUserFrontend, message::VhostUserConfigFlags};

pollux_testing::on_both_rings!(
    a_guest_in_write_through_is_in_it_still_when_the_back_end_comes_back,
    without_a_record_writes_of_a_guest_from_elsewhere_are_durable_until_it_says_otherwise,
    a_front_end_does_not_inherit_what_another_has_set,
    a_resize_while_the_back_end_was_away_is_told_once,
    a_guest_that_runs_is_not_told_of_another_block_size,
);

/// Offsets in the configuration space.
const BLOCK_SIZE: u32 = 20;
const WRITEBACK: u32 = 32;

/// A device that comes and goes, on a socket in a folder of its own.
struct Host {
    kind: RingKind,
    name: String,
    server: Option<Server>,
    path: PathBuf,
    // For their destructors, in this order.
    worker: Worker,
    _folder: tempfile::TempDir,
}

impl Host {
    fn new(kind: RingKind, name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk.sock");
        let worker = Worker::spawn("io0", None, IdlePolicy::Adaptive).expect("a worker");
        let mut host = Host { kind, name: format!("{name}-{kind:?}"), server: None, path, worker, _folder: folder };
        host.serve(1 << 20, 512);
        host
    }

    /// Serves a disk of this size, in place of the one before.
    fn serve(&mut self, size: u64, block_size: u32) {
        self.server = None;
        let json = format!(r#"{{"size": {size}, "block_size": {block_size}}}"#);
        let backend = disk::open_with(&self.name, &json, false).expect("a disk");
        let stats = StatsSegment::anonymous(1).expect("statistics");
        let model = Blk::new(options(&self.name, 1, &[self.worker.handle()]), backend, &stats);
        self.server = Some(front_end::serve(model, &self.path));
    }

    fn front_end(&self) -> FrontEnd {
        FrontEnd::with_rings(self.kind, &self.path, 1)
    }

    /// Whether a write is durable when it completes.
    fn is_durable(&self, front: &mut FrontEnd) -> bool {
        let count = || control(&self.name).durable_writes.load(Ordering::SeqCst);
        let before = count();
        assert_eq!(front.request(0, OUT, 8, &pattern(1, 4096), &Cut::plain(4096, 0)).status, OK);
        count() > before
    }
}

fn set_writeback(front: &mut FrontEnd, value: u8) {
    front.wire.set_config(WRITEBACK, VhostUserConfigFlags::WRITABLE, &[value]).expect("SET_CONFIG");
}

fn a_guest_in_write_through_is_in_it_still_when_the_back_end_comes_back(kind: RingKind) {
    let mut host = Host::new(kind, "told-cache");
    let mut front = host.front_end();
    front.track_inflight();
    front.start();
    assert!(!host.is_durable(&mut front), "a guest begins in write-back");
    for (value, is_durable) in [(0, true), (1, false), (0, true)] {
        set_writeback(&mut front, value);
        for _ in 0..2 {
            assert_eq!(host.is_durable(&mut front), is_durable, "the guest has set {value}");
            host.serve(1 << 20, 512);
            front.reconnect(&host.path);
        }
        assert_eq!(host.is_durable(&mut front), is_durable, "the guest has set {value}");
        assert_eq!(front.config(WRITEBACK, 1), [value]);
    }
    // It stops and goes on, as when it is paused.
    let base = front.stop(0);
    front.set_base(0, base);
    front.send_kick(0);
    assert!(host.is_durable(&mut front));
}

fn without_a_record_writes_of_a_guest_from_elsewhere_are_durable_until_it_says_otherwise(kind: RingKind) {
    let mut host = Host::new(kind, "told-nothing");
    let mut front = host.front_end();
    front.start();
    assert!(!host.is_durable(&mut front));
    host.serve(1 << 20, 512);
    front.reconnect(&host.path);
    assert!(host.is_durable(&mut front), "the safe side");
    set_writeback(&mut front, 1);
    assert!(!host.is_durable(&mut front), "it has said what it wants");
}

fn a_front_end_does_not_inherit_what_another_has_set(kind: RingKind) {
    let host = Host::new(kind, "told-other");
    let mut first = host.front_end();
    first.start();
    set_writeback(&mut first, 0);
    assert!(host.is_durable(&mut first));
    drop(first);
    wait_for("the device as it was", || (host.front_end().config(WRITEBACK, 1) == [1]).then_some(()));
    let mut second = host.front_end();
    assert_eq!(second.config(WRITEBACK, 1), [1]);
    second.start();
    assert!(!host.is_durable(&mut second));
}

/// Connects a guest that runs to the back end that has come back, with a channel for the back end's own requests.
fn reconnect_with_channel(front: &mut FrontEnd, path: &Path) -> UnixStream {
    front.reconnect(path);
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    front.wire.set_backend_request_fd(&theirs).expect("SET_BACKEND_REQ_FD");
    ours
}

/// Whether a message comes within a second.
fn hears(channel: &UnixStream) -> bool {
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&second)).expect("poll") > 0
}

fn a_resize_while_the_back_end_was_away_is_told_once(kind: RingKind) {
    let mut host = Host::new(kind, "told-resize");
    let mut front = host.front_end();
    front.track_inflight();
    front.start();
    assert!(!host.is_durable(&mut front));
    host.serve(1 << 20, 512);
    let channel = reconnect_with_channel(&mut front, &host.path);
    assert!(!hears(&channel), "it is as it was told");

    host.serve(2 << 20, 512);
    let mut channel = reconnect_with_channel(&mut front, &host.path);
    let mut message = [0; 12];
    channel.read_exact(&mut message).expect("a message");
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "CONFIG_CHANGE_MSG, version 1, no payload");
    assert_eq!(front.config(0, 8), (2u64 << 20 >> 9).to_le_bytes());
    assert_eq!(front.request(0, IN, 2048, &[], &Cut::plain(0, 512)).status, OK, "what is new can be read");
    assert!(!hears(&channel), "it is told once");

    host.serve(2 << 20, 512);
    let channel = reconnect_with_channel(&mut front, &host.path);
    assert!(!hears(&channel), "it has heard of that");
}

fn a_guest_that_runs_is_not_told_of_another_block_size(kind: RingKind) {
    let mut host = Host::new(kind, "told-block");
    let mut front = host.front_end();
    front.track_inflight();
    front.start();
    assert!(!host.is_durable(&mut front));
    host.serve(1 << 20, 4096);
    front.reconnect(&host.path);
    assert_eq!(front.config(BLOCK_SIZE, 4), 512u32.to_le_bytes(), "as it was told");
    assert!(!host.is_durable(&mut front), "whole blocks are written as before");
    assert_eq!(host.front_end().config(BLOCK_SIZE, 4), 4096u32.to_le_bytes(), "a new one is told what there is");
}
