//! A device served over vhost-user, as its front end sees it.
use pollux_core::{
    block::Disk,
    device::blk::Blk,
    memory::GuestMemory,
    stats::StatsSegment,
    transport::vhost_user::Server,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, FLUSH, GET_ID, IN, IOERR, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour, control},
    front_end::{self, FrontEnd, regions},
    rig::options,
};
use std::{
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::PathBuf,
    sync::Arc,
};
use vhost::{
    VhostBackend, VhostUserDirtyLogRegion,
    vhost_user::{
        VhostUserFrontend,
        message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures},
    },
};

pollux_testing::on_both_rings!(
    a_front_end_reads_and_writes_on_every_queue_and_queues_are_dealt_to_the_workers,
    what_is_negotiated_is_what_is_offered,
    without_a_write_cache_writes_are_durable_at_once,
    a_kick_that_comes_early_is_not_lost,
    a_ring_that_is_stopped_says_where_it_stands_and_goes_on_there,
    a_disabled_ring_is_not_served_until_it_is_enabled_again,
    the_memory_table_changes_under_running_rings,
    a_request_in_flight_ends_in_the_memory_that_it_was_made_in,
    rings_whose_memory_goes_are_reported_and_come_back,
    a_guest_that_breaks_its_ring_is_reported_and_the_next_start_is_clean,
    a_second_front_end_may_ask_and_takes_over_when_the_first_has_stopped,
    a_reconnected_front_end_goes_on_where_it_was,
    a_resized_medium_is_told_to_the_front_end,
    written_pages_are_logged_while_the_front_end_wants_them,
    all_pages_of_a_read_in_portions_are_logged,
    a_server_that_stops_drains_and_flushes_before_it_closes,
);

/// How many layers there are between device and disk, where that is tried.
const LAYERS: std::ops::Range<usize> = 0..2;

/// Names a disk of one test.
fn unique(kind: RingKind, name: &str) -> String {
    format!("{name}-{kind:?}")
}

/// A device with two workers, served on a socket in a folder of its own.
struct Host {
    kind: RingKind,
    server: Server,
    path: PathBuf,
    stats: StatsSegment,
    // For their destructors, in this order.
    _workers: Vec<Worker>,
    _folder: tempfile::TempDir,
}

impl Host {
    fn new(kind: RingKind, name: &str, queues: usize, behaviour: Behaviour) -> Self {
        Self::with_policy(kind, name, queues, behaviour, IdlePolicy::Adaptive)
    }

    fn with_policy(kind: RingKind, name: &str, queues: usize, behaviour: Behaviour, policy: IdlePolicy) -> Self {
        Self::behind(0, kind, name, queues, behaviour, policy)
    }

    fn behind(
        layers: usize,
        kind: RingKind,
        name: &str,
        queues: usize,
        behaviour: Behaviour,
        policy: IdlePolicy,
    ) -> Self {
        let backend = disk::open(&unique(kind, name), 1 << 20, behaviour).expect("a disk");
        Self::with_backend(kind, name, queues, disk::behind(layers, backend), policy)
    }

    fn with_backend(kind: RingKind, name: &str, queues: usize, backend: Arc<dyn Disk>, policy: IdlePolicy) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk.sock");
        let workers: Vec<Worker> =
            (0..2).map(|index| Worker::spawn(&format!("io{index}"), None, policy).expect("a worker")).collect();
        let handles: Vec<_> = workers.iter().map(Worker::handle).collect();
        let stats = StatsSegment::anonymous(queues).expect("statistics");
        let model = Blk::new(options(name, queues, &handles), backend, &stats);
        let server = front_end::serve(model, &path);
        Host { kind, server, path, stats, _workers: workers, _folder: folder }
    }

    fn front_end(&self, queues: usize) -> FrontEnd {
        FrontEnd::with_rings(self.kind, &self.path, queues)
    }
}

fn write_and_read(front: &mut FrontEnd, queue: usize, seed: u64) {
    let data = pattern(seed, 4096);
    let sector = 8 * (seed % 200);
    assert_eq!(front.request(queue, OUT, sector, &data, &Cut::plain(4096, 0)).status, OK);
    let read = front.request(queue, IN, sector, &[], &Cut::plain(0, 4096));
    assert_eq!((read.status, read.data == data), (OK, true), "what was written is read");
}

fn a_front_end_reads_and_writes_on_every_queue_and_queues_are_dealt_to_the_workers(kind: RingKind) {
    let host = Host::new(kind, "vu-io", 4, Behaviour::Threaded);
    let mut front = host.front_end(4);
    front.start();
    for round in 0..50 {
        for queue in 0..4 {
            write_and_read(&mut front, queue, round * 4 + queue as u64);
        }
    }
    assert_eq!(front.request(2, FLUSH, 0, &[], &Cut::plain(0, 0)).status, OK);
    let id = front.request(3, GET_ID, 0, &[], &Cut::plain(0, 20));
    assert_eq!(id.data, b"serial-of-this-disk-");
    let queues = host.stats.blk_queues();
    let queues: Vec<_> = queues.map(|queue| (queue.device(), queue.index(), queue.worker())).collect();
    let expected = [(0, "io0"), (1, "io1"), (2, "io0"), (3, "io1")];
    assert_eq!(queues, expected.map(|(index, worker)| ("vu-io".into(), index, worker.into())));
    assert!(host.stats.blk_queues().all(|record| record.requests.get() >= 100), "each queue has its own counts");
}

fn what_is_negotiated_is_what_is_offered(kind: RingKind) {
    use VhostUserProtocolFeatures as F;
    let host = Host::new(kind, "vu-offer", 3, Behaviour::Inline);
    let mut front = host.front_end(3);
    let wanted = F::MQ
        | F::LOG_SHMFD
        | F::REPLY_ACK
        | F::BACKEND_REQ
        | F::CONFIG
        | F::INFLIGHT_SHMFD
        | F::RESET_DEVICE
        | F::CONFIGURE_MEM_SLOTS
        | F::STATUS;
    assert_eq!(front.wire.get_protocol_features().expect("protocol features"), wanted);
    assert_eq!(front.wire.get_queue_num().expect("queues"), 3);
    assert!(front.wire.get_max_mem_slots().expect("slots") >= 512);
    let refused = front.wire.set_features(front.features() | 1 << 63);
    assert!(refused.is_err(), "a feature that was not offered");
    write_config_and_capacity(&mut front);
}

/// The configuration space: capacity, number of queues, the write cache that can be switched off, and nothing behind
/// its end.
fn write_config_and_capacity(front: &mut FrontEnd) {
    assert_eq!(front.config(0, 8), (1u64 << 20 >> 9).to_le_bytes(), "capacity in sectors");
    assert_eq!(front.config(34, 2), 3u16.to_le_bytes(), "num_queues");
    assert_eq!(front.config(32, 1), [1], "write-back");
    front.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).expect("SET_CONFIG");
    assert_eq!(front.config(32, 1), [0], "write-through");
    assert_eq!(front.config(100, 156), [0; 156], "behind the end");
}

fn without_a_write_cache_writes_are_durable_at_once(kind: RingKind) {
    let host = Host::new(kind, "vu-durable", 1, Behaviour::Inline);
    let mut front = host.front_end(1);
    front.start();
    write_and_read(&mut front, 0, 1);
    assert_eq!(control(&unique(kind, "vu-durable")).durable_writes.load(std::sync::atomic::Ordering::SeqCst), 0);
    front.wire.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).expect("SET_CONFIG");
    write_and_read(&mut front, 0, 2);
    assert_eq!(control(&unique(kind, "vu-durable")).durable_writes.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// Requests and kicks that come before the ring may be served are served when it may, in whichever order the front end
/// says so.
fn a_kick_that_comes_early_is_not_lost(kind: RingKind) {
    for policy in [IdlePolicy::Spin, IdlePolicy::Adaptive] {
        for order in ["kick, enable", "enable, kick", "memory last"] {
            let host = Host::with_policy(kind, "vu-early", 1, Behaviour::Inline, policy);
            let mut front = host.front_end(1);
            front.submit(0, OUT, 0, &pattern(1, 512), &Cut::plain(512, 0));
            front.kick(0);
            let steps: &[fn(&mut FrontEnd)] = match order {
                "kick, enable" => &[
                    |front| front.send_memory(),
                    |front| front.set_up(0, front.drivers[0].ring.base(false)),
                    |front| front.enable(0, true),
                ],
                "enable, kick" => &[
                    |front| front.send_memory(),
                    |front| front.enable(0, true),
                    |front| front.set_up(0, front.drivers[0].ring.base(false)),
                ],
                _ => &[
                    |front| front.enable(0, true),
                    |front| front.set_up(0, front.drivers[0].ring.base(false)),
                    |front| front.send_memory(),
                ],
            };
            steps.iter().for_each(|step| step(&mut front));
            assert_eq!(front.finish(0).status, OK, "{order}, {policy}");
            assert!(front.calls[0].read().is_ok(), "the driver is told");
        }
    }
}

fn a_ring_that_is_stopped_says_where_it_stands_and_goes_on_there(kind: RingKind) {
    let host = Host::new(kind, "vu-stop", 2, Behaviour::Threaded);
    let mut front = host.front_end(2);
    front.start();
    (0..10).for_each(|seed| write_and_read(&mut front, 1, seed));
    for _ in 0..5 {
        front.submit(1, IN, 0, &[], &Cut::plain(0, 4096));
    }
    wait_for("all five to be taken", || {
        let record = host.stats.blk_queues().nth(1)?;
        (record.requests.get() + record.in_flight.get() == 25).then_some(())
    });
    // Stopping drains: all five are done.
    let base = front.stop(1);
    assert_eq!(base, front.drivers[1].ring.base(true));
    (0..5).for_each(|_| assert_eq!(front.drivers[1].pop().expect("done").status, OK));
    let flushes = control(&unique(kind, "vu-stop")).flushes.load(std::sync::atomic::Ordering::SeqCst);
    assert!(flushes >= 1, "a stopped ring is flushed");
    // The other queue was not disturbed.
    write_and_read(&mut front, 0, 77);
    front.submit(1, IN, 0, &[], &Cut::plain(0, 512));
    front.set_up(1, base);
    assert_eq!(front.finish(1).status, OK, "it is enabled still");
    write_and_read(&mut front, 1, 78);
}

fn a_disabled_ring_is_not_served_until_it_is_enabled_again(kind: RingKind) {
    let host = Host::new(kind, "vu-disable", 2, Behaviour::Inline);
    let mut front = host.front_end(2);
    front.start();
    write_and_read(&mut front, 1, 3);
    front.enable(1, false);
    front.submit(1, IN, 0, &[], &Cut::plain(0, 512));
    // Messages are in order: had it been served, it would be done by now or soon; the other queue's requests take as
    // long.
    (0..100).for_each(|seed| write_and_read(&mut front, 0, seed));
    assert!(front.drivers[1].pop().is_none());
    front.enable(1, true);
    assert_eq!(front.finish(1).status, OK);
    write_and_read(&mut front, 1, 4);
}

/// The table is replaced, grows and shrinks while requests are in flight, which end as if nothing had happened.
fn the_memory_table_changes_under_running_rings(kind: RingKind) {
    LAYERS.for_each(|layers| the_memory_table_changes_under_running_rings_behind(kind, layers));
}

fn the_memory_table_changes_under_running_rings_behind(kind: RingKind, layers: usize) {
    let host = Host::behind(layers, kind, "vu-memory", 2, Behaviour::Threaded, IdlePolicy::Spin);
    let mut front = host.front_end(2);
    front.start();
    let more = GuestMemory::create(&[(1 << 33, 1 << 20), (1 << 34, 1 << 20)], None).expect("memory to plug");
    let plugged = regions(&more);
    for round in 0..100u64 {
        let data = pattern(round, 4096);
        for queue in 0..2 {
            front.submit(queue, OUT, 8 * (round % 100 + 100 * queue as u64), &data, &Cut::plain(4096, 0));
        }
        match round % 4 {
            0 => front.send_memory(),
            1 => plugged.iter().for_each(|region| {
                front.wire.add_mem_region(region).expect("ADD_MEM_REG");
            }),
            2 => plugged.iter().for_each(|region| front.wire.remove_mem_region(region).expect("REM_MEM_REG")),
            _ => {
                let table = [front.regions(), plugged.clone()].concat();
                front.wire.set_mem_table(&table).expect("SET_MEM_TABLE");
                front.send_memory();
            }
        }
        for queue in 0..2 {
            assert_eq!(front.finish(queue).status, OK, "round {round}");
        }
    }
    for queue in 0..2 {
        for round in 0..100u64 {
            let read = front.request(queue, IN, 8 * (round + 100 * queue as u64), &[], &Cut::plain(0, 4096));
            assert_eq!((read.status, read.data == pattern(round, 4096)), (OK, true), "queue {queue}, round {round}");
        }
    }
}

fn a_request_in_flight_ends_in_the_memory_that_it_was_made_in(kind: RingKind) {
    LAYERS.for_each(|layers| a_request_in_flight_ends_in_the_memory_that_it_was_made_in_behind(kind, layers));
}

fn a_request_in_flight_ends_in_the_memory_that_it_was_made_in_behind(kind: RingKind, layers: usize) {
    let name = format!("vu-old-map-{layers}");
    let host = Host::behind(layers, kind, &name, 1, Behaviour::Held, IdlePolicy::Adaptive);
    let mut front = host.front_end(1);
    front.start();
    front.submit(0, IN, 0, &[], &Cut::plain(0, 4096));
    wait_for("the request to be in flight", || {
        host.stats.blk_queues().next().filter(|record| record.in_flight.get() == 1).map(|_| ())
    });
    let more = GuestMemory::create(&[(1 << 33, 1 << 20)], None).expect("memory to plug");
    for _ in 0..10 {
        front.wire.add_mem_region(&regions(&more)[0]).expect("ADD_MEM_REG");
        front.wire.remove_mem_region(&regions(&more)[0]).expect("REM_MEM_REG");
    }
    assert!(front.drivers[0].pop().is_none());
    control(&unique(kind, &name)).release();
    assert_eq!(front.finish(0).status, OK);
    write_and_read(&mut front, 0, 5);
}

/// Rings whose memory goes break by themselves, are reported as broken, and can be set up again.
fn rings_whose_memory_goes_are_reported_and_come_back(kind: RingKind) {
    let host = Host::new(kind, "vu-shrink", 1, Behaviour::Inline);
    let mut front = host.front_end(1);
    front.start();
    write_and_read(&mut front, 0, 6);
    front.wire.set_mem_table(&front.regions()[1..]).expect("SET_MEM_TABLE");
    wait_for("the error event", || front.errors[0].read().ok());
    let base = front.stop(0);
    front.send_memory();
    front.set_up(0, base);
    write_and_read(&mut front, 0, 7);
}

fn a_guest_that_breaks_its_ring_is_reported_and_the_next_start_is_clean(kind: RingKind) {
    let host = Host::new(kind, "vu-broken", 2, Behaviour::Inline);
    let mut front = host.front_end(2);
    front.start();
    write_and_read(&mut front, 0, 8);
    front.drivers[0].ring.break_rules();
    front.kick(0);
    wait_for("the error event", || front.errors[0].read().ok());
    // The other ring of the device goes on.
    write_and_read(&mut front, 1, 9);
    front.wire.reset_device().expect("RESET_DEVICE");
    drop(front);
    let mut front = host.front_end(2);
    front.start();
    write_and_read(&mut front, 0, 10);
}

fn a_second_front_end_may_ask_and_takes_over_when_the_first_has_stopped(kind: RingKind) {
    let host = Host::new(kind, "vu-second", 1, Behaviour::Inline);
    let mut first = host.front_end(1);
    first.start();
    write_and_read(&mut first, 0, 11);
    let mut second = host.front_end(1);
    assert_eq!(second.config(0, 8), first.config(0, 8));
    second.send_memory();
    second.wire.set_vring_num(0, 128).expect("SET_VRING_NUM");
    second.set_base(0, second.drivers[0].ring.base(false));
    second.wire.set_vring_addr(0, &second.addresses(0, false)).expect("SET_VRING_ADDR");
    second.send_kick(0);
    assert!(second.wire.set_vring_enable(0, true).is_err(), "the device is in use");
    write_and_read(&mut first, 0, 12);
    first.stop(0);
    second.send_kick(0);
    write_and_read(&mut second, 0, 13);
    drop(second);
    // A front end that goes gives the device back.
    wait_for("the device", || {
        first.wire.set_vring_kick(0, &first.kicks[0]).ok()?;
        Some(())
    });
    write_and_read(&mut first, 0, 14);
}

fn a_reconnected_front_end_goes_on_where_it_was(kind: RingKind) {
    LAYERS.for_each(|layers| a_reconnected_front_end_goes_on_where_it_was_behind(kind, layers));
}

fn a_reconnected_front_end_goes_on_where_it_was_behind(kind: RingKind, layers: usize) {
    let new = || Host::behind(layers, kind, "vu-again", 2, Behaviour::Threaded, IdlePolicy::Adaptive);
    let mut host = new();
    let mut front = host.front_end(2);
    front.track_inflight();
    front.start();
    (0..20).for_each(|seed| write_and_read(&mut front, (seed % 2) as usize, seed));
    for _ in 0..5 {
        let old = host;
        for queue in 0..2 {
            front.submit(queue, IN, 0, &[], &Cut::plain(0, 4096));
        }
        // Drains, as SIGTERM does. What comes now waits for the next one.
        drop(old);
        for queue in 0..2 {
            front.submit(queue, IN, 8, &[], &Cut::plain(0, 4096));
        }
        host = new();
        front.reconnect(&host.path);
        for queue in 0..2 {
            assert_eq!([front.finish(queue).status, front.finish(queue).status], [OK; 2]);
            assert_eq!(front.drivers[queue].in_flight(), 0, "each once");
        }
    }
    (0..20).for_each(|seed| write_and_read(&mut front, (seed % 2) as usize, seed));
}

fn a_resized_medium_is_told_to_the_front_end(kind: RingKind) {
    LAYERS.for_each(|layers| a_resized_medium_is_told_to_the_front_end_behind(kind, layers));
}

fn a_resized_medium_is_told_to_the_front_end_behind(kind: RingKind, layers: usize) {
    let name = format!("vu-resize-{layers}");
    let host = Host::behind(layers, kind, &name, 1, Behaviour::Inline, IdlePolicy::Adaptive);
    let mut front = host.front_end(1);
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    front.wire.set_backend_request_fd(&theirs).expect("SET_BACKEND_REQ_FD");
    front.start();
    write_and_read(&mut front, 0, 15);
    assert_eq!(front.request(0, IN, 2048, &[], &Cut::plain(0, 512)).status, IOERR, "beyond the end");
    control(&unique(kind, &name)).resize(2 << 20);
    host.server.handle().refresh();
    let mut message = [0; 12];
    std::io::Read::read_exact(&mut &ours, &mut message).expect("a message");
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "CONFIG_CHANGE_MSG, version 1, no payload");
    assert_eq!(front.config(0, 8), (2u64 << 20 >> 9).to_le_bytes());
    write_and_read(&mut front, 0, 16);
}

/// While pages are logged, every page that the device writes is: data, status and used ring. Nothing else.
fn written_pages_are_logged_while_the_front_end_wants_them(kind: RingKind) {
    let host = Host::new(kind, "vu-log", 1, Behaviour::Held);
    let mut front = host.front_end(1);
    front.start();
    // SAFETY: the name is a C string; the descriptor is new.
    let log = unsafe { File::from_raw_fd(libc::memfd_create(c"log".as_ptr(), 0)) };
    log.set_len(1 << 16).expect("a length");
    let mut bytes = vec![0; 1 << 16];
    let region = VhostUserDirtyLogRegion { mmap_size: 1 << 16, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    front.wire.set_log_base(0, Some(region)).expect("SET_LOG_BASE");
    // What does not come from the disk ends at once.
    assert_eq!(front.request(0, GET_ID, 0, &[], &Cut::plain(0, 20)).status, OK);
    log.read_exact_at(&mut bytes, 0).expect("the log");
    assert!(bytes.iter().all(|byte| *byte == 0), "no logging before LOG_ALL");
    // A request in flight when logging begins is logged, too.
    front.submit(0, IN, 0, &[], &Cut { readable: vec![16], writable: vec![4096, 4096, 1], indirect: true });
    let logging = front.features() | VhostUserVirtioFeatures::LOG_ALL.bits();
    front.wire.set_features(logging).expect("SET_FEATURES");
    front.wire.set_vring_addr(0, &front.addresses(0, true)).expect("SET_VRING_ADDR");
    control(&unique(kind, "vu-log")).release();
    assert_eq!(front.finish(0).status, OK);
    log.read_exact_at(&mut bytes, 0).expect("the log");
    let logged: Vec<u64> =
        (0..1 << 19).filter(|page| bytes[page / 8] & 1 << (page % 8) != 0).map(|p| p as u64).collect();
    // The request's area begins with its header of 16 bytes; data and status follow, up to byte 8208.
    let area = front.drivers[0].area_address() / 4096;
    // What of the ring the device writes: the used ring, or the descriptors and the device's event suppression
    // structure.
    let config = front.drivers[0].ring.config();
    let mut pages = match kind {
        RingKind::Split => vec![config.device_area / 4096],
        RingKind::Packed => vec![config.descriptors / 4096, config.device_area / 4096],
    };
    pages.extend([area, area + 1, area + 2]);
    assert_eq!(logged, pages, "used ring, data and status, and nothing else");
    front.wire.set_features(front.features()).expect("SET_FEATURES");
    log.write_all_at(&vec![0; 1 << 16], 0).expect("cleared");
    write_and_read(&mut front, 0, 19);
    log.read_exact_at(&mut bytes, 0).expect("the log");
    assert!(bytes.iter().all(|byte| *byte == 0), "no logging after it");
}

fn all_pages_of_a_read_in_portions_are_logged(kind: RingKind) {
    let name = "vu-log-portions";
    let json = r#"{"size": 1048576, "behaviour": "deferred", "maximum_transfer": 8192}"#;
    let backend = disk::open_with(&unique(kind, name), json, false).expect("a disk");
    let host = Host::with_backend(kind, name, 1, backend, IdlePolicy::Adaptive);
    let mut front = host.front_end(1);
    front.start();
    // SAFETY: the name is a C string; the descriptor is new.
    let log = unsafe { File::from_raw_fd(libc::memfd_create(c"log".as_ptr(), 0)) };
    log.set_len(1 << 16).expect("a length");
    let region = VhostUserDirtyLogRegion { mmap_size: 1 << 16, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    front.wire.set_log_base(0, Some(region)).expect("SET_LOG_BASE");
    front.wire.set_features(front.features() | VhostUserVirtioFeatures::LOG_ALL.bits()).expect("SET_FEATURES");
    let cut = Cut { readable: vec![16], writable: vec![20000, 45536, 1], indirect: false };
    assert_eq!(front.request(0, IN, 0, &[], &cut).status, OK);
    let mut bytes = vec![0; 1 << 16];
    log.read_exact_at(&mut bytes, 0).expect("the log");
    // Data and status, behind the header of 16 bytes.
    let area = front.drivers[0].area_address() as usize / 4096;
    for page in area..=area + (16 + 65536) / 4096 {
        assert!(bytes[page / 8] & 1 << (page % 8) != 0, "page {page} of the area at page {area}");
    }
}

fn a_server_that_stops_drains_and_flushes_before_it_closes(kind: RingKind) {
    LAYERS.for_each(|layers| a_server_that_stops_drains_and_flushes_before_it_closes_behind(kind, layers));
}

fn a_server_that_stops_drains_and_flushes_before_it_closes_behind(kind: RingKind, layers: usize) {
    let name = format!("vu-sigterm-{layers}");
    let host = Host::behind(layers, kind, &name, 1, Behaviour::Threaded, IdlePolicy::Adaptive);
    let mut front = host.front_end(1);
    front.start();
    for sector in 0..20 {
        front.submit(0, OUT, sector, &pattern(sector, 512), &Cut::plain(512, 0));
    }
    wait_for("the requests to be taken", || host.stats.blk_queues().next().filter(|r| r.batches.get() > 0).map(|_| ()));
    let path = host.path.clone();
    drop(host);
    let taken = front.drivers[0].ring.used_count();
    for _ in 0..taken {
        assert_eq!(front.drivers[0].pop().expect("done").status, OK);
    }
    assert!(control(&unique(kind, &name)).flushes.load(std::sync::atomic::Ordering::SeqCst) >= 1);
    assert!(!path.exists(), "the socket is gone");
}

#[test]
fn the_base_and_size_of_a_ring_are_those_of_its_kind() {
    for kind in RingKind::BOTH {
        let host = Host::new(kind, "vu-base", 1, Behaviour::Inline);
        let mut front = host.front_end(1);
        assert_eq!(front.stop(0), kind.beginning(), "a ring that was not used");
        let odd = front.wire.set_vring_num(0, 100);
        assert_eq!(odd.is_ok(), kind == RingKind::Packed);
        front.start();
        for round in 0..200 {
            write_and_read(&mut front, 0, round);
            let base = front.stop(0);
            assert_eq!(base, front.drivers[0].ring.base(true), "round {round}");
            front.set_up(0, base);
        }
    }
}
