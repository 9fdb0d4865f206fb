//! A front end that holds up whoever signals it: its eventfd is full, and made to block after it was handed over.
use pollux_testing::{
    blk::{Cut, IN, OK, wait_for},
    disk::Behaviour,
    front_end::FrontEnd,
    neighbours::{Neighbours, QUEUES},
    raw_front_end::{RawGuest, block, words32},
};
use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};
use vhost::vhost_user::message::FrontendReq as Request;
use vmm_sys_util::eventfd::EventFd;

/// A counter that is full, and whose reader has made it block, must not stop the worker that signals it, nor a server
/// that stops.
#[test]
fn an_event_that_is_full_and_blocks_delays_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-full", Behaviour::Inline);
    for queue in 0..QUEUES as u32 {
        let (raw, mut guest) = RawGuest::started(&both.path, queue);
        for event in [&guest.call, &guest.error] {
            block(event);
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

/// It loses its connection. The next one may do the same on every queue, over and over: that holds up nobody, and
/// honest events are signalled as before.
#[test]
fn a_front_end_that_holds_up_a_worker_is_cut_off_and_holds_it_up_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-once", Behaviour::Inline);
    let (raw, mut guest) = RawGuest::started(&both.path, 0);
    block(&guest.call);
    guest.read_first_sector();
    wait_for("the end of the connection", || (!raw.is_alive()).then_some(()));

    let (raw, mut guest) = RawGuest::started(&both.path, 1);
    let start = Instant::now();
    for _ in 0..200 {
        let call = EventFd::new(0).expect("an eventfd");
        call.write(u64::MAX - 1).expect("room");
        assert_eq!(raw.ask(Request::SET_VRING_CALL, &1u64.to_ne_bytes(), &[call.as_raw_fd()]), Some(0));
        block(&call);
        assert_eq!(guest.request(IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    }
    // Each would take 50 ms and more if it waited for somebody to interrupt it.
    assert!(start.elapsed() < Duration::from_secs(8), "200 full events took {:?}", start.elapsed());
    assert!(raw.is_alive(), "it has held up nobody");
    assert_eq!(raw.ask(Request::SET_VRING_CALL, &1u64.to_ne_bytes(), &[guest.call.as_raw_fd()]), Some(0));
    let _ = guest.call.read();
    assert_eq!(guest.request(IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    wait_for("an interrupt", || guest.call.read().ok());
    both.neighbour_works();
    drop(raw);
    both.all_work();
    both.stop();
}

/// The connection's thread waits for the worker, to stop its queue, and the thread that is to look at the medium waits
/// for the connection's: none of them is what frees the worker.
#[test]
fn a_look_at_the_medium_does_not_keep_a_worker_held_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-look", Behaviour::Inline);
    let (raw, mut guest) = RawGuest::started(&both.path, 0);
    block(&guest.call);
    guest.read_first_sector();
    // It is in the used ring before the worker signals it.
    wait_for("a request", || guest.driver.pop());
    assert!(raw.send(Request::SET_VRING_ENABLE, &words32(&[0, 0]), &[]));
    both.server.as_ref().expect("a server").handle().refresh();
    both.neighbour_works();
    both.all_work();
    both.stop();
}

/// A front end that comes while the requests of one that was killed still end waits for them; it is not told that
/// somebody else has the device.
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
