//! A front end that misbehaves with what it shares (guest memory, rings, the in-flight region, the log of dirty pages)
//! takes nobody down: not the process, not a device beside its own, and not the next front end of its own device.
use pollux_core::ring::RingKind;
use pollux_testing::{
    blk::{Cut, IN, OK, OUT, pattern, wait_for},
    disk::{Behaviour, control},
    front_end::QUEUE_SIZE,
    neighbours::{Neighbours, QUEUES},
    raw_front_end::{RawFrontEnd, RawGuest, memory_table, single_region, vring_addresses, words32, words64},
};
use std::{
    fs::{File, OpenOptions},
    net::TcpListener,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::atomic::Ordering,
};
use vhost::{VhostUserMemoryRegionInfo, vhost_user::message::FrontendReq as Request};

/// LOG_ALL
const LOG_ALL: u64 = 1 << 26;
const FEATURES: u64 = 1 << 30 | 1 << 32;

fn memfd(bytes: u64) -> File {
    // SAFETY: the name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"hostile".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(bytes).expect("a length");
    file
}

fn region(guest: u64, bytes: u64, offset: u64, file: &File) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: bytes,
        userspace_addr: guest,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

fn inflight(bytes: u64, offset: u64, queues: u16, size: u16) -> Vec<u8> {
    [words64(&[bytes, offset]), [queues.to_ne_bytes(), size.to_ne_bytes()].concat(), vec![0; 4]].concat()
}

/// Lets a disk go that holds its requests, also when a test fails: its device would wait for them for ever.
struct Held(&'static str);

impl Drop for Held {
    fn drop(&mut self) {
        control(self.0).release();
    }
}

#[test]
fn descriptors_of_no_memory_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-kind", Behaviour::Inline);
    let path = folder.path().join("read-only");
    File::create(&path).expect("a file").set_len(1 << 20).expect("a length");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let others: Vec<OwnedFd> = vec![
        reader.into(),
        writer.into(),
        TcpListener::bind("127.0.0.1:0").expect("a socket").into(),
        File::open("/dev/null").expect("a device").into(),
        OpenOptions::new().read(true).write(true).open("/dev/zero").expect("a device").into(),
        File::open(folder.path()).expect("a folder").into(),
        File::open(Path::new("/proc/self/status")).expect("a file").into(),
        File::open(&path).expect("a file").into(),
        OpenOptions::new().write(true).open(&path).expect("a file").into(),
    ];
    let raw = RawFrontEnd::acknowledged(&both.path);
    RawGuest::new().start(&raw, 0);
    for other in others {
        let other = File::from(other);
        let one = region(1 << 40, 4096, 0, &other);
        let files = [other.as_raw_fd()];
        assert_eq!(raw.ask(Request::SET_MEM_TABLE, &memory_table(&[one]), &files), Some(1), "{other:?}");
        assert_eq!(raw.ask(Request::ADD_MEM_REG, &single_region(&one), &files), Some(1), "{other:?}");
        assert_eq!(raw.ask(Request::SET_LOG_BASE, &words64(&[4096, 0]), &files), Some(1), "{other:?}");
        let second = RawFrontEnd::acknowledged(&both.path);
        assert_eq!(second.ask(Request::SET_INFLIGHT_FD, &inflight(4096, 0, 1, 64), &files), Some(1), "{other:?}");
    }
    both.neighbour_works();
    drop(raw);
    both.all_work();
}

#[test]
fn regions_that_cannot_be_are_refused_and_the_table_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-region", Behaviour::Inline);
    let (raw, mut guest) = RawGuest::started(&both.path, 0);
    let file = memfd(1 << 20);
    let add = |one: &VhostUserMemoryRegionInfo| raw.ask(Request::ADD_MEM_REG, &single_region(one), &[file.as_raw_fd()]);
    let good = region(1 << 40, 1 << 16, 0, &file);
    assert_eq!(add(&good), Some(0));
    for (what, guest, bytes, offset) in [
        ("the same again", 1 << 40, 1 << 16, 0),
        ("reaches into another", (1 << 40) - 4096, 8192, 0),
        ("begins in another", (1 << 40) + 0xf000, 0x2000, 0),
        ("covers all", 0, 1 << 20, 0),
        ("beyond the file", 1 << 41, 1 << 16, 1 << 20),
        ("longer than the file", 1 << 41, (1 << 20) + 1, 0),
        ("inside a page", 1 << 41, 4096, 1),
        ("of the greatest size", 1 << 41, i64::MAX as u64 - (1 << 41), 0),
    ] {
        assert_eq!(add(&region(guest, bytes, offset, &file)), Some(1), "{what}");
    }
    for (what, guest, bytes, offset) in [
        ("empty", 1 << 41, 0, 0),
        ("wraps around", u64::MAX - 4095, 8192, 0),
        ("offset wraps around", 1 << 41, 8192, u64::MAX - 4095),
    ] {
        let other = RawFrontEnd::acknowledged(&both.path);
        let one = region(guest, bytes, offset, &file);
        let answer = other.ask(Request::ADD_MEM_REG, &single_region(&one), &[file.as_raw_fd()]);
        assert_ne!(answer, Some(0), "{what}");
        let other = RawFrontEnd::acknowledged(&both.path);
        let answer = other.ask(Request::SET_MEM_TABLE, &memory_table(&[one]), &[file.as_raw_fd()]);
        assert_ne!(answer, Some(0), "{what}");
    }
    assert_eq!(raw.ask(Request::REM_MEM_REG, &single_region(&region(1 << 39, 1 << 16, 0, &file)), &[]), Some(1));
    assert_eq!(raw.ask(Request::REM_MEM_REG, &single_region(&good), &[]), Some(0));
    // After all that, the ring that was started before runs in the memory that it was started with.
    guest.read_first_sector();
    assert_eq!(wait_for("a request", || guest.driver.pop()).status, OK);
    drop(raw);
    both.all_work();
}

/// As many regions as there is room for, and more. Each costs a mapping and a descriptor of ours.
#[test]
fn regions_are_limited() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-many", Behaviour::Inline);
    let file = memfd(1 << 20);
    let raw = RawFrontEnd::acknowledged(&both.path);
    RawGuest::new().start(&raw, 0);
    let refused = (0..2000u64).find(|index| {
        let one = region((1 << 40) + index * 8192, 4096, 0, &file);
        raw.ask(Request::ADD_MEM_REG, &single_region(&one), &[file.as_raw_fd()]) != Some(0)
    });
    assert!(refused.is_some_and(|count| (500..1100).contains(&count)), "{refused:?}");
    // There is enough left for everybody else.
    both.neighbour_works();
    drop(raw);
    both.all_work();
}

/// How often this process has mapped a file from `offset` on.
fn mappings(file: RawFd, offset: u64) -> usize {
    let metadata = std::fs::metadata(format!("/proc/self/fd/{file}")).expect("an open file");
    let inode = std::os::unix::fs::MetadataExt::ino(&metadata).to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc");
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(4) == Some(&&*inode) && fields.get(2) == Some(&&*format!("{offset:08x}"))
    };
    maps.lines().filter(is_one).count()
}

/// A front end whose guest has a request in flight with a backend that holds it.
fn request_in_flight(both: &Neighbours) -> (RawFrontEnd, RawGuest) {
    let (raw, mut guest) = RawGuest::started(&both.path, 0);
    guest.read_first_sector();
    wait_for("a request in flight", || both.stats.blk_queues().any(|record| record.in_flight.get() == 1).then_some(()));
    (raw, guest)
}

/// Requests in flight keep the memory that they were made in. A front end that changes its table faster than they end
/// must not make that pile up.
#[test]
fn memory_that_is_kept_for_requests_in_flight_is_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-pile", Behaviour::Held);
    let _held = Held("hostile-pile");
    let (raw, mut guest) = request_in_flight(&both);
    let file = memfd(4096);
    for index in 0..100u64 {
        let one = region((1 << 40) + index * 4096, 4096, 0, &file);
        raw.send(Request::ADD_MEM_REG, &single_region(&one), &[file.as_raw_fd()]);
        raw.send(Request::REM_MEM_REG, &single_region(&one), &[]);
    }
    both.neighbour_works();
    // Far fewer than that are mapped, however long the request takes.
    let mapped = || mappings(file.as_raw_fd(), 0);
    wait_for("messages to be heard", || (mapped() > 4).then_some(()));
    (0..50).for_each(|_| both.neighbour_works());
    assert!(mapped() < 50, "{} mappings", mapped());
    control("hostile-pile").release();
    assert!(raw.is_alive());
    assert_eq!(wait_for("a request", || guest.driver.pop()).status, OK);
    drop(raw);
    both.all_work();
}

/// A ring breaks because its memory goes, with a request in flight: the backend has that memory until the request is
/// done.
#[test]
fn a_backend_keeps_the_memory_of_a_request_in_flight_on_a_ring_that_breaks() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-kept", Behaviour::Held);
    let _held = Held("hostile-kept");
    let (raw, guest) = request_in_flight(&both);
    let first = guest.regions()[0];
    let mapped = || mappings(first.mmap_handle, first.mmap_offset);
    let kept = mapped();
    let rest = memory_table(&guest.regions()[1..]);
    for _ in 0..2 {
        assert_eq!(raw.ask(Request::SET_MEM_TABLE, &rest, &[guest.regions()[1].mmap_handle]), Some(0));
    }
    wait_for("the error event", || guest.error.read().ok());
    both.neighbour_works();
    assert!(mapped() >= kept);
    control("hostile-kept").release();
    // The broken ring itself stays where it was, too, until its front end gives it up.
    drop(raw);
    wait_for("the region to be taken back", || (mapped() < kept).then_some(()));
    assert_eq!(control("hostile-kept").added_regions.load(Ordering::SeqCst), 0, "a backend cannot pin such memory");
    both.all_work();
}

#[test]
fn rings_outside_of_memory_do_not_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-ring", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    let guest = RawGuest::new();
    let good = guest.addresses();
    guest.start(&raw, 0);
    assert!(raw.ask(Request::GET_VRING_BASE, &words32(&[0, 0]), &[]).is_some());
    let end = {
        let first = guest.regions()[0];
        first.userspace_addr + first.memory_size
    };
    for part in 0..3 {
        for address in [0, 4096, end - 16, end, !15, 1 << 63, (1 << 63) - 16] {
            let mut addresses = good;
            addresses[part] = address;
            assert!(raw.ask(Request::GET_VRING_BASE, &words32(&[0, 0]), &[]).is_some());
            assert_eq!(raw.ask(Request::SET_VRING_ADDR, &vring_addresses(0, addresses), &[]), Some(0));
            let kicked = raw.ask(Request::SET_VRING_KICK, &words64(&[0]), &[guest.kick.as_raw_fd()]);
            assert_eq!(kicked, Some(1), "part {part} at {address:#x}");
        }
        let mut addresses = good;
        addresses[part] += 1;
        let other = RawFrontEnd::acknowledged(&both.path);
        assert_eq!(other.ask(Request::SET_VRING_ADDR, &vring_addresses(0, addresses), &[]), None, "part {part}");
    }
    assert_eq!(raw.ask(Request::SET_VRING_ADDR, &vring_addresses(0, good), &[]), Some(0));
    assert_eq!(raw.ask(Request::SET_VRING_ADDR, &vring_addresses(0, [good[0] + 16, good[1], good[2]]), &[]), Some(1));
    drop(raw);
    both.all_work();
}

/// The memory of a running ring goes in each way in which it can, while requests are in flight.
#[test]
fn memory_that_goes_under_a_running_ring_ends_that_ring_alone() {
    for behaviour in [Behaviour::Inline, Behaviour::Threaded] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut both = Neighbours::new(folder.path(), &format!("hostile-gone-{behaviour:?}"), behaviour);
        for queue in 0..QUEUES as u32 {
            for way in ["a table without it", "REM_MEM_REG", "a file that shrinks to nothing", "a file that shrinks"] {
                let (raw, mut guest) = RawGuest::started(&both.path, queue);
                let table = guest.regions();
                for sector in 0..6 {
                    guest.driver.submit(OUT, sector, &pattern(sector, 512), &Cut::plain(512, 0)).expect("room");
                }
                guest.kick.write(1).expect("a kick");
                // SAFETY: the descriptor is open.
                let shrink = |length| unsafe { assert_eq!(libc::ftruncate(table[0].mmap_handle, length), 0) };
                match way {
                    "a table without it" => {
                        let one = memory_table(&table[1..]);
                        assert_eq!(raw.ask(Request::SET_MEM_TABLE, &one, &[table[1].mmap_handle]), Some(0));
                        wait_for("the error event", || guest.error.read().ok());
                    }
                    "REM_MEM_REG" => {
                        assert_eq!(raw.ask(Request::REM_MEM_REG, &single_region(&table[0]), &[]), Some(0));
                        wait_for("the error event", || guest.error.read().ok());
                    }
                    _ => {
                        shrink(if way.ends_with("nothing") { 0 } else { 4096 });
                        guest.kick.write(1).expect("a kick");
                        // From here on, the driver may not look at its own ring. Whether the device did before the
                        // connection goes is its own affair.
                    }
                }
                both.neighbour_works();
                drop(raw);
                both.all_work();
            }
        }
    }
}

#[test]
fn in_flight_regions_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-inflight", Behaviour::Inline);
    let raw = RawFrontEnd::acknowledged(&both.path);
    let file = memfd(1 << 20);
    let needed = RingKind::Split.inflight_bytes(QUEUE_SIZE) * QUEUES as u64;
    let set = |bytes, offset, queues, size| {
        raw.ask(Request::SET_INFLIGHT_FD, &inflight(bytes, offset, queues, size), &[file.as_raw_fd()])
    };
    for (bytes, offset, queues, size) in [
        (needed - 1, 0, 2, QUEUE_SIZE),
        (0, 0, 2, QUEUE_SIZE),
        (u64::MAX, 0, 2, QUEUE_SIZE),
        (needed, u64::MAX - 8, 2, QUEUE_SIZE),
        (needed, 1 << 20, 2, QUEUE_SIZE),
        (1 << 20, 0, 1024, 32768),
        (1 << 20, 0, u16::MAX, u16::MAX),
        (1 << 40, 0, 1, 1),
    ] {
        assert_eq!(set(bytes, offset, queues, size), Some(1), "{bytes} at {offset} for {queues} of {size}");
    }
    // Regions that are, but not for this ring: it does not start.
    for (offset, queues, size) in [(0, 1, QUEUE_SIZE), (0, 2, QUEUE_SIZE / 2), (4, 2, QUEUE_SIZE), (1, 2, QUEUE_SIZE)] {
        assert_eq!(set(needed, offset, queues, size), Some(0));
        let guest = RawGuest::new();
        let answers: Vec<_> = guest.steps(1).iter().map(|step| raw.ask(step.0, &step.1, &step.2)).collect();
        assert_eq!(answers.last(), Some(&Some(1)), "{queues} of {size} at {offset}");
    }
    for (queues, size) in [(0, 1), (1, 0), (1025, 1), (1, 32769), (u16::MAX, u16::MAX)] {
        let other = RawFrontEnd::acknowledged(&both.path);
        assert_eq!(other.ask(Request::GET_INFLIGHT_FD, &inflight(0, 0, queues, size), &[]), None);
    }
    drop(raw);
    both.all_work();
}

/// Whatever the region says: the ring starts or is refused, and what it takes from there it takes within its bounds.
#[test]
fn garbage_in_an_in_flight_region_stays_within_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-garbage", Behaviour::Threaded);
    let bytes = RingKind::Split.inflight_bytes(QUEUE_SIZE) * QUEUES as u64;
    for seed in 1..=40u64 {
        let raw = RawFrontEnd::acknowledged(&both.path);
        let file = memfd(bytes);
        let mut garbage = pattern(seed, bytes as usize);
        if seed % 2 == 0 {
            // One that is taken at its word: version 1, and this size.
            for start in [0, garbage.len() / QUEUES] {
                garbage[start + 8..start + 12].copy_from_slice(&[1, 0, QUEUE_SIZE as u8, (QUEUE_SIZE >> 8) as u8]);
            }
        }
        file.write_all_at(&garbage, 0).expect("garbage");
        let set = inflight(bytes, 0, QUEUES as u16, QUEUE_SIZE);
        assert_eq!(raw.ask(Request::SET_INFLIGHT_FD, &set, &[file.as_raw_fd()]), Some(0));
        let mut guest = RawGuest::new();
        let last = guest.steps(1).iter().map(|step| raw.ask(step.0, &step.1, &step.2)).next_back();
        assert!(last.flatten().is_some(), "an answer");
        guest.read_first_sector();
        if seed % 3 == 0 {
            file.set_len(0).expect("a length");
            guest.kick.write(1).expect("a kick");
        }
        both.neighbour_works();
        drop(raw);
    }
    both.all_work();
}

#[test]
fn a_log_of_any_size_may_shrink_while_pages_are_logged() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut both = Neighbours::new(folder.path(), "hostile-log", Behaviour::Threaded);
    for queue in 0..QUEUES as u32 {
        let (raw, mut guest) = RawGuest::started(&both.path, queue);
        let small = memfd(1);
        for (bytes, offset) in [(4096, 0), (1 << 62, 0), (1, 1), (i64::MAX as u64, 0)] {
            let answer = raw.ask(Request::SET_LOG_BASE, &words64(&[bytes, offset]), &[small.as_raw_fd()]);
            assert_eq!(answer, Some(1), "{bytes} at {offset}");
        }
        // A log of one byte, at an odd place, and one that shrinks.
        for (length, bytes, offset) in [(8, 1, 7), (1 << 40, 1 << 40, 0), (1 << 20, 1 << 20, 0)] {
            let log = memfd(length);
            raw.send(Request::SET_LOG_BASE, &words64(&[bytes, offset]), &[log.as_raw_fd()]);
            assert_eq!(raw.receive().map(|reply| reply.code), Some(Request::SET_LOG_BASE as u32));
            assert_eq!(raw.ask(Request::SET_FEATURES, &words64(&[FEATURES | LOG_ALL]), &[]), Some(0));
            for round in 0..20 {
                guest.driver.submit(IN, round, &[], &Cut::plain(0, 4096)).expect("room");
                guest.kick.write(1).expect("a kick");
                if round == 10 {
                    log.set_len(0).expect("a length");
                }
                assert_eq!(wait_for("a request", || guest.driver.pop()).status, OK);
            }
            both.neighbour_works();
        }
        drop(raw);
        both.all_work();
    }
}
