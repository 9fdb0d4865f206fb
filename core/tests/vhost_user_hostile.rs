//! A front end that misbehaves on the wire takes nobody down: not the process, not a device beside its own, and not the
//! next front end of its own device. What it can do with memory is in `vhost_user_hostile_memory`.
use pollux_testing::{
    blk::{Cut, IN, pattern, wait_for},
    disk::{Behaviour, control},
    neighbours::{Neighbours, QUEUES},
    raw_front_end::{NEED_REPLY, PROTOCOL_FEATURES, RawFrontEnd, RawGuest, VERSION, words32, words64},
};
use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};
use vhost::vhost_user::message::FrontendReq as Request;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Features of a driver that cannot be: a legacy one has no packed rings.
const PACKED_WITHOUT_VERSION_1: u64 = PROTOCOL_FEATURES | 1 << 34;

/// Every request number that the document has, some that it has not, and the extremes.
fn requests() -> impl Iterator<Item = u32> {
    (0..=64).chain([255, 1000, 1 << 31, u32::MAX])
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("eventfd")
}

/// Sends messages one by one, over a new connection whenever one has been closed.
struct Persistent<'h> {
    both: &'h Neighbours,
    raw: RawFrontEnd,
}

impl<'h> Persistent<'h> {
    fn new(both: &'h Neighbours) -> Self {
        Persistent { both, raw: RawFrontEnd::acknowledged(&both.path) }
    }

    fn send(&mut self, code: u32, flags: u32, payload: &[u8], files: &[RawFd]) {
        self.raw.send_message(code, flags, payload.len() as u32, payload, files);
        if !self.raw.is_alive() {
            self.raw = RawFrontEnd::acknowledged(&self.both.path);
        }
    }
}

#[test]
fn a_header_that_is_none_ends_the_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-header", Behaviour::Inline);
    let get = Request::GET_FEATURES as u32;
    for flags in [0, 2, 3, VERSION | 4, VERSION | NEED_REPLY | 4, VERSION | 16, VERSION | 1 << 31, u32::MAX] {
        let raw = RawFrontEnd::connect(&both.path);
        raw.send_message(get, flags, 0, &[], &[]);
        assert_eq!(raw.receive(), None, "flags {flags:#x}");
    }
    for size in [4097, 1 << 16, 1 << 31, u32::MAX] {
        let raw = RawFrontEnd::connect(&both.path);
        raw.send_message(get, VERSION, size, &[0; 4097], &[]);
        assert_eq!(raw.receive(), None, "size {size}");
    }
    both.all_work();
}

#[test]
fn any_request_may_be_of_any_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-size", Behaviour::Inline);
    for flags in [VERSION, VERSION | NEED_REPLY] {
        let mut front = Persistent::new(&both);
        for code in requests() {
            for size in [0, 1, 7, 8, 9, 12, 15, 16, 24, 40, 4096] {
                for fill in [0, 1, 0xff] {
                    front.send(code, flags, &vec![fill; size], &[]);
                }
            }
        }
    }
    both.all_work();
}

#[test]
fn any_request_may_come_with_any_number_of_descriptors() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-files", Behaviour::Inline);
    let (event, file) = (eventfd(), tempfile::tempfile().expect("a file"));
    let (_, writer) = std::io::pipe().expect("a pipe");
    let mut front = Persistent::new(&both);
    for code in requests() {
        for count in [0, 1, 2, 3, 31, 32, 33, 40] {
            for file in [event.as_raw_fd(), file.as_raw_fd(), writer.as_raw_fd()] {
                for size in [0, 8, 16, 40] {
                    front.send(code, VERSION | NEED_REPLY, &vec![0; size], &vec![file; count]);
                }
            }
        }
    }
    both.all_work();
}

/// Descriptors of events that are something else, on which a worker could be made to wait.
#[test]
fn an_event_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-event", Behaviour::Inline);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // Full: the next write would wait.
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe");
    while writer.write(&[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).expect("a pipe");
    let (empty, _writer) = std::io::pipe().expect("a pipe");
    let (socket, _peer) = UnixStream::pair().expect("sockets");
    let null = File::open("/dev/null").expect("a device");
    let others: [OwnedFd; 5] = [reader.into(), writer.into(), empty.into(), socket.into(), null.into()];
    let (raw, _guest) = RawGuest::started(&both.path, 0);
    for other in &others {
        for request in [Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR] {
            assert_eq!(raw.ask(request, &words64(&[0]), &[other.as_raw_fd()]), Some(1), "{request:?}");
        }
        both.neighbour_works();
    }
    drop(raw);
    both.all_work();
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-number", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    let event = eventfd();
    for index in [QUEUES as u32, 255, 256, 1 << 31, u32::MAX] {
        for request in [Request::SET_VRING_NUM, Request::SET_VRING_BASE, Request::SET_VRING_ENABLE] {
            assert_eq!(raw.ask(request, &words32(&[index, 1]), &[]), Some(1), "{request:?} of queue {index}");
        }
        let addresses = [words32(&[index, 0]), vec![0; 32]].concat();
        assert_eq!(raw.ask(Request::SET_VRING_ADDR, &addresses, &[]), Some(1), "queue {index}");
        let other = RawFrontEnd::acknowledged(&both.path);
        assert_eq!(other.ask(Request::GET_VRING_BASE, &words32(&[index, 0]), &[]), None, "queue {index}");
    }
    for request in [Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR] {
        assert_eq!(raw.ask(request, &words64(&[QUEUES as u64]), &[event.as_raw_fd()]), Some(1), "{request:?}");
        assert_eq!(raw.ask(request, &words64(&[255 | 1 << 8]), &[]), Some(1), "{request:?} without a descriptor");
    }
    let refused =
        |request, value| assert_eq!(raw.ask(request, &words32(&[0, value]), &[]), Some(1), "{request:?} {value}");
    [0, 3, 65535, 65536, u32::MAX].into_iter().for_each(|size| refused(Request::SET_VRING_NUM, size));
    [65536, u32::MAX].into_iter().for_each(|base| refused(Request::SET_VRING_BASE, base));
    [2, u32::MAX].into_iter().for_each(|value| refused(Request::SET_VRING_ENABLE, value));
    for features in [1 << 63, u64::MAX] {
        assert_eq!(raw.ask(Request::SET_FEATURES, &words64(&[features]), &[]), Some(1), "{features:#x}");
    }
    both.all_work();
}

#[test]
fn features_that_cannot_be_together_do_not_start_and_features_stay_while_a_ring_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-legacy", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    let guest = RawGuest::new();
    let steps = guest.steps(0);
    for (request, payload, files) in &steps {
        let payload = if *request == Request::SET_FEATURES { &words64(&[PACKED_WITHOUT_VERSION_1]) } else { payload };
        let expected = u64::from(*request == Request::SET_VRING_ENABLE);
        assert_eq!(raw.ask(*request, payload, files), Some(expected), "{request:?}");
    }
    // It is told by the error event as well, and works with the right features.
    assert!(guest.error.read().is_ok());
    assert_eq!(raw.ask(steps[1].0, &steps[1].1, &[]), Some(0));
    assert_eq!(raw.ask(Request::SET_VRING_ENABLE, &words32(&[0, 1]), &[]), Some(0));
    assert_eq!(raw.ask(Request::SET_FEATURES, &words64(&[PROTOCOL_FEATURES | 1 << 32 | 1 << 29]), &[]), Some(1));
    drop(raw);
    both.all_work();
}

/// Two rings that cannot start: each is tried, and every request has one answer.
#[test]
fn a_ring_that_cannot_start_neither_hides_another_nor_answers_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-both", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    let guests = [RawGuest::new(), RawGuest::new()];
    let mut last = None;
    for (index, guest) in guests.iter().enumerate() {
        for (request, payload, files) in guest.steps(index as u32) {
            match request {
                // Last of all; without it, no ring is tried.
                Request::SET_MEM_TABLE => last = Some((request, payload, files)),
                Request::SET_FEATURES => {
                    assert_eq!(raw.ask(request, &words64(&[PACKED_WITHOUT_VERSION_1]), &[]), Some(0));
                }
                _ => assert_eq!(raw.ask(request, &payload, &files), Some(0), "{request:?}"),
            }
        }
    }
    let (request, payload, files) = last.expect("a table");
    assert_eq!(raw.ask(request, &payload, &files), Some(1));
    assert!(guests.iter().all(|guest| guest.error.read().is_ok()), "each is told");
    for _ in 0..3 {
        assert_eq!(raw.ask(Request::GET_QUEUE_NUM, &[], &[]), Some(QUEUES as u64));
    }
    drop(raw);
    both.all_work();
}

#[test]
fn configuration_is_read_and_written_within_its_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-config", Behaviour::Inline);
    let mut front = Persistent::new(&both);
    for request in [Request::GET_CONFIG, Request::SET_CONFIG] {
        for offset in [0, 1, 32, 59, 60, 255, 256, 4096, 1 << 31, u32::MAX] {
            for size in [0, 1, 60, 255, 256, 257, 4084, 1 << 31, u32::MAX] {
                for given in [size as usize, 0, 1, 256] {
                    let space = vec![0xff; given.min(4084)];
                    for flags in [0, 1, 2, u32::MAX] {
                        let payload = [words32(&[offset, size, flags]), space.clone()].concat();
                        front.send(request as u32, VERSION | NEED_REPLY, &payload, &[]);
                    }
                }
            }
        }
    }
    both.all_work();
}

/// Answers that nobody reads fill the socket; whoever waits to send the next one must still hear that the server stops.
#[test]
fn a_front_end_that_reads_no_answers_delays_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-flood", Behaviour::Inline);
    let raws: Vec<_> = (0..3).map(|_| RawFrontEnd::acknowledged(&both.path)).collect();
    RawGuest::new().start(&raws[0], 0);
    let header = words32(&[Request::GET_FEATURES as u32, VERSION, 0]);
    for raw in &raws {
        // Both directions are full when nothing more is taken for so long.
        raw.stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a socket");
        (0..100_000).find(|_| (&raw.stream).write(&header).is_err()).expect("an end");
    }
    both.neighbour_works();
    both.stop();
}

#[test]
fn a_front_end_that_falls_silent_delays_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-silent", Behaviour::Inline);
    let message = [words32(&[Request::SET_VRING_NUM as u32, VERSION, 8]), words32(&[0, 128])].concat();
    let silent: Vec<_> = [0, 1, 11, 12, 13, 19]
        .into_iter()
        .map(|length| {
            let raw = RawFrontEnd::connect(&both.path);
            assert!(length == 0 || raw.send_bytes(&message[..length], &[]));
            raw
        })
        .collect();
    both.all_work();
    both.stop();
    assert!(silent.iter().all(|raw| raw.receive().is_none()), "all are closed");
}

#[test]
fn a_front_end_may_go_at_any_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-leave", Behaviour::Inline);
    let count = RawGuest::new().steps(0).len();
    for queue in 0..QUEUES as u32 {
        for last in 0..=count {
            let raw = RawFrontEnd::acknowledged(&both.path);
            let guest = RawGuest::new();
            for (request, payload, files) in &guest.steps(queue)[..last] {
                raw.send(*request, payload, files);
            }
            drop(raw);
        }
        both.all_work();
    }
}

/// It goes with requests in flight, which nobody can call back. The device comes free when they are done; until then
/// nothing changes for the neighbour.
#[test]
fn a_front_end_may_go_with_requests_in_flight() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-held", Behaviour::Held);
    let (raw, mut guest) = RawGuest::started(&both.path, 1);
    for sector in 0..4 {
        guest.driver.submit(IN, sector, &[], &Cut::plain(0, 512)).expect("room");
    }
    guest.kick.write(1).expect("a kick");
    wait_for("requests in flight", || both.stats.blk_queues().any(|record| record.in_flight.get() == 4).then_some(()));
    drop((raw, guest));
    (0..20).for_each(|_| both.neighbour_works());
    control("hostile-held").release();
    both.all_work();
}

#[test]
fn more_connections_than_there_is_room_for_are_turned_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-crowd", Behaviour::Inline);
    let crowd: Vec<_> = (0..100).map(|_| RawFrontEnd::connect(&both.path)).collect();
    let alive = crowd.iter().filter(|raw| raw.is_alive()).count();
    assert!((1..100).contains(&alive), "{alive} are heard");
    both.neighbour_works();
    drop(crowd);
    wait_for("room", || RawFrontEnd::connect(&both.path).is_alive().then_some(()));
    both.all_work();
    let _crowd: Vec<_> = (0..100).map(|_| RawFrontEnd::connect(&both.path)).collect();
    both.stop();
}

#[test]
fn the_same_table_ten_thousand_times_is_no_burden() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-tables", Behaviour::Threaded);
    let (raw, guest) = RawGuest::started(&both.path, 0);
    let (request, payload, files) = &guest.steps(0)[2];
    for _ in 0..10_000 {
        raw.send(*request, payload, files);
    }
    both.neighbour_works();
    assert!(raw.is_alive());
    drop(raw);
    both.all_work();
}

/// A back end's requests go to a channel that the front end has filled, made blocking, or both.
#[test]
fn a_channel_that_is_full_delays_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-channel", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    assert_eq!(raw.ask(Request::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]), Some(0));
    theirs.set_nonblocking(true).expect("a socket");
    while (&theirs).write(&[0; 4096]).is_ok() {}
    theirs.set_nonblocking(false).expect("a socket");
    for size in 2..20u64 {
        control("hostile-channel").resize(size << 20);
        both.server.as_ref().expect("a server").handle().refresh();
        assert!(raw.is_alive());
    }
    control("hostile-channel").resize(1 << 20);
    both.server.as_ref().expect("a server").handle().refresh();
    both.neighbour_works();
    both.stop();
    drop(ours);
}

/// Twenty thousand messages of a generator: half of them well-formed, with the numbers that are likely to do harm.
#[test]
fn random_messages_do_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-random", Behaviour::Threaded);
    for seed in 1..=4u64 {
        let bytes = pattern(seed, 16 * 5000);
        let guest = RawGuest::new();
        let event = eventfd();
        let mut front = Persistent::new(&both);
        for dice in bytes.chunks_exact(16) {
            let number = |at: usize| usize::from(dice[at]);
            let (request, payload, files) = guest.steps((dice[0] % 3).into()).swap_remove(number(1) % 10);
            let (mut code, mut payload, mut files) = (request as u32, payload, files);
            match dice[2] % 8 {
                0 => code = number(3) as u32 % 48,
                1 => payload.truncate(number(3) % 41),
                2 if !payload.is_empty() => {
                    let at = number(3) % payload.len();
                    payload[at] = dice[4];
                }
                3 => files = vec![event.as_raw_fd(); number(3) % 4],
                4 => (code, payload) = (Request::GET_VRING_BASE as u32, words32(&[number(3) as u32 % 3, 0])),
                5 => (code, payload) = (Request::SET_VRING_ENABLE as u32, words32(&[number(3) as u32 % 3, 0])),
                _ => {}
            }
            let flags = if dice[5] % 2 == 0 { VERSION } else { VERSION | NEED_REPLY };
            front.send(code, flags, &payload, &files);
        }
        drop(front);
        both.all_work();
    }
}
