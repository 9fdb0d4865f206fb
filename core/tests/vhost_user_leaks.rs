//! Whatever a front end does, the process has as many descriptors and mappings afterwards as before, and logs no more
//! lines than a budget. The only test of its process: it counts what belongs to all.
use pollux_testing::{
    blk::{Cut, IN, wait_for},
    disk::Behaviour,
    neighbours::Neighbours,
    raw_front_end::{RawFrontEnd, RawGuest, VERSION, single_region, words32, words64},
};
use std::{
    fs, io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tracing_subscriber::fmt::MakeWriter;
use vhost::{VhostUserMemoryRegionInfo, vhost_user::message::FrontendReq as Request};

/// Counts lines.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(bytes.iter().filter(|byte| **byte == b'\n').count(), Ordering::Relaxed);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Lines;
    fn make_writer(&'w self) -> Lines {
        self.clone()
    }
}

/// Open descriptors, and mappings of files in memory: those of thread stacks come and go.
fn held() -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    let files = fs::read_dir("/proc/self/fd").expect("/proc").count();
    (files, maps.lines().filter(|line| line.contains("memfd:")).count())
}

/// One that misbehaves in several ways, and goes.
fn round(both: &Neighbours, number: u32) {
    let (raw, mut guest) = RawGuest::started(&both.path, number % 2);
    let one = VhostUserMemoryRegionInfo { guest_phys_addr: 1 << 40, ..guest.regions()[1] };
    assert_eq!(raw.ask(Request::ADD_MEM_REG, &single_region(&one), &[one.mmap_handle]), Some(0));
    let ask = words32(&[0; 6]);
    assert_eq!(raw.ask(Request::GET_INFLIGHT_FD, &ask[..16], &[]), None, "no queues: not a question");
    let raw = RawFrontEnd::acknowledged(&both.path);
    let wait = |raw: &RawFrontEnd| guest.start(raw, number % 2);
    wait(&raw);
    for on in [0, 1, 0, 1, 0, 1] {
        assert_eq!(raw.ask(Request::SET_VRING_ENABLE, &words32(&[number % 2, on]), &[]), Some(0));
    }
    let event = guest.kick.as_raw_fd();
    raw.send_message(Request::SET_VRING_KICK as u32, VERSION, 8, &words64(&[7]), &[event; 20]);
    assert_eq!(raw.receive(), None, "twenty descriptors for a ring that is not there");
    let raw = RawFrontEnd::acknowledged(&both.path);
    guest.start(&raw, number % 2);
    guest.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    guest.driver.ring.split().set_available_index(9999);
    guest.kick.write(1).expect("a kick");
    raw.send_message(Request::SET_MEM_TABLE as u32, VERSION, 4096, &[0; 50], &[event; 5]);
}

#[test]
fn nothing_is_left_behind_and_the_log_stays_short() {
    let lines = Lines::default();
    tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).init();
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-leak", Behaviour::Threaded);
    let before = held();
    for number in 0..100 {
        round(&both, number);
    }
    wait_for("all to be given back", || (held() <= before).then_some(()));
    assert_eq!(held(), before);
    both.all_work();
    wait_for("all to be given back", || (held() <= before).then_some(()));
    both.stop();
    // A hundred for what the front end does, a hundred for what its guest does, and some of our own.
    let count = lines.0.load(Ordering::Relaxed);
    assert!(count < 250, "{count} lines");
}
