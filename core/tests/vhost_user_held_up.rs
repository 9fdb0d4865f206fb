//! A front end that holds up whoever signals it: its eventfd is full, and made to block after it was handed over.
use pollux_core::testing::{
    blk::{Cut, IN, wait_for},
    disk::Behaviour,
    front_end::FrontEnd,
    neighbours::{Neighbours, QUEUES},
    raw_front_end::RawGuest,
};
use std::os::fd::AsRawFd;

/// A counter that is full, and whose reader has made it block, must not stop the worker that signals it, nor a server that stops.
#[test]
fn an_event_that_is_full_and_blocks_delays_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-full", Behaviour::Inline);
    for queue in 0..QUEUES as u32 {
        let (raw, mut guest) = RawGuest::started(&both.path, queue);
        for event in [&guest.call, &guest.error] {
            // What the start has signalled.
            let _ = event.read();
            event.write(u64::MAX - 1).expect("a full counter");
            // SAFETY: the descriptor is open.
            let flags = unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, libc::O_RDWR) };
            assert_eq!(flags, 0);
        }
        guest.read_first_sector();
        wait_for("a request", || guest.driver.pop());
        guest.driver.ring.split().set_available_index(5000);
        guest.kick.write(1).expect("a kick");
        both.neighbour_works();
        drop(raw);
        both.all_work();
    }
    both.stop();
}

/// A front end that comes while the requests of one that was killed still end waits for them; it is not told that somebody else
/// has the device.
#[test]
fn the_next_front_end_waits_for_the_requests_of_one_that_has_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-gone", Behaviour::Threaded);
    for _ in 0..20 {
        let mut first = FrontEnd::new(&both.path, 2);
        first.start();
        for _ in 0..30 {
            first.submit(0, IN, 0, &[], &Cut::plain(0, 4096));
        }
        drop(first);
        let mut second = FrontEnd::new(&both.path, 2);
        second.start();
        assert_eq!(second.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, 0);
    }
    both.stop();
}
