//! A guest that breaks its ring harms itself alone: the device asks for a reset, and the one beside it goes on.
use pollux_core::{
    memory::GuestMemory,
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::{Descriptor, INDIRECT, NEXT, RingKind, WRITE};
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour},
    rig::{Guest, Rig},
};

const DISK_BYTES: u64 = 1 << 20;
const SIZE: u16 = 256;

fn rig() -> Rig {
    Rig::new(RingKind::Split, disk::open("hostile", DISK_BYTES, Behaviour::Inline).expect("disk"), SIZE, true)
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { address, length, flags, next }
}

/// A well-formed read at descriptors 0, 1, 2, to be spoilt.
fn good_chain(rig: &mut Rig) {
    let ring = rig.driver.ring.split();
    ring.write_descriptor(0, descriptor(0x10000, 16, NEXT, 1));
    ring.write_descriptor(1, descriptor(0x11000, 512, NEXT | WRITE, 2));
    ring.write_descriptor(2, descriptor(0x12000, 1, WRITE, 0));
}

/// Spoils a good chain and says that the device must ask for a reset, and return nothing.
fn must_fail(what: &str, spoil: impl FnOnce(&mut Rig)) {
    let mut rig = rig();
    good_chain(&mut rig);
    rig.driver.ring.write(0x10000, [0u8; 16]);
    spoil(&mut rig);
    rig.driver.ring.publish();
    rig.wait_for_failure();
    assert_eq!(rig.driver.ring.used_count(), 0, "{what}: nothing was returned");
    // It stays quiet from then on.
    for _ in 0..100 {
        assert_eq!(rig.queue.poll(), 0, "{what}");
    }
}

#[test]
fn broken_chains_make_the_device_ask_for_a_reset() {
    must_fail("a chain that bites its tail", |rig| {
        rig.driver.ring.split().write_descriptor(2, descriptor(0x12000, 1, WRITE | NEXT, 1));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("a descriptor that is its own next", |rig| {
        rig.driver.ring.split().write_descriptor(0, descriptor(0x10000, 16, NEXT, 0));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("a next beyond the table", |rig| {
        rig.driver.ring.split().write_descriptor(0, descriptor(0x10000, 16, NEXT, SIZE));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("a head beyond the table", |rig| rig.driver.ring.split().push_head(SIZE));
    must_fail("the greatest head there is", |rig| rig.driver.ring.split().push_head(u16::MAX));
    must_fail("readable after writable", |rig| {
        rig.driver.ring.split().write_descriptor(2, descriptor(0x12000, 1, 0, 0));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("no status", |rig| {
        rig.driver.ring.split().write_descriptor(0, descriptor(0x10000, 16, 0, 0));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("half a header", |rig| {
        rig.driver.ring.split().write_descriptor(0, descriptor(0x10000, 15, NEXT, 1));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("no header at all", |rig| rig.driver.ring.split().push_head(1));
    must_fail("an empty chain", |rig| {
        rig.driver.ring.split().write_descriptor(0, descriptor(0x10000, 0, 0, 0));
        rig.driver.ring.split().push_head(0);
    });
}

#[test]
fn addresses_outside_guest_memory_make_the_device_ask_for_a_reset() {
    let end = BlkDriver::bytes(SIZE, 64);
    for (address, length) in [
        (end, 512),
        (end - 511, 512),
        (u64::MAX, 512),
        (u64::MAX - 511, 512),
        (1 << 63, 512),
        (0x11000, u32::MAX),
        (0, u32::MAX),
    ] {
        must_fail(&format!("data at {address:#x}, length {length:#x}"), |rig| {
            rig.driver.ring.split().write_descriptor(1, descriptor(address, length, NEXT | WRITE, 2));
            rig.driver.ring.split().push_head(0);
        });
        must_fail(&format!("status at {address:#x}, length {length:#x}"), |rig| {
            rig.driver.ring.split().write_descriptor(2, descriptor(address, length, WRITE, 0));
            rig.driver.ring.split().push_head(0);
        });
        must_fail(&format!("header at {address:#x}, length {length:#x}"), |rig| {
            rig.driver.ring.split().write_descriptor(0, descriptor(address, length, NEXT, 1));
            rig.driver.ring.split().push_head(0);
        });
    }
}

#[test]
fn broken_indirect_tables_make_the_device_ask_for_a_reset() {
    let table = 0x20000;
    let with_table = |length: u32, flags: u16, entries: &[Descriptor]| {
        let entries = entries.to_vec();
        move |rig: &mut Rig| {
            for (index, entry) in entries.iter().enumerate() {
                rig.driver.ring.write(table + 16 * index as u64, *entry);
            }
            rig.driver.ring.split().write_descriptor(0, descriptor(table, length, flags, 1));
            rig.driver.ring.split().push_head(0);
        }
    };
    let good =
        [descriptor(0x10000, 16, NEXT, 1), descriptor(0x11000, 512, NEXT | WRITE, 2), descriptor(0x12000, 1, WRITE, 0)];
    must_fail("a length of half a descriptor", with_table(40, INDIRECT, &good));
    must_fail("an empty table", with_table(0, INDIRECT, &good));
    must_fail("a table of 4 GiB", with_table(0xffff_fff0, INDIRECT, &good));
    must_fail("a table with a next flag", with_table(48, INDIRECT | NEXT, &good));
    must_fail("a table that is too short for its chain", with_table(32, INDIRECT, &good));
    let mut nested = good;
    nested[1] = descriptor(0x21000, 48, INDIRECT | NEXT, 2);
    must_fail("a table in a table", with_table(48, INDIRECT, &nested));
    let mut own = good;
    own[0] = descriptor(table, 48, INDIRECT, 0);
    must_fail("a table in itself", with_table(48, INDIRECT, &own));
    let mut looped = good;
    looped[2] = descriptor(0x12000, 1, WRITE | NEXT, 1);
    must_fail("a loop in a table", with_table(48, INDIRECT, &looped));
    let mut long: Vec<Descriptor> = (1..2000).map(|next| descriptor(0x10000, 0, NEXT, next)).collect();
    long.push(descriptor(0x12000, 1, WRITE, 0));
    must_fail("a chain of empty buffers to keep the worker busy", with_table(16 * 2000, INDIRECT, &long));
    must_fail("a table outside memory", |rig| {
        rig.driver.ring.split().write_descriptor(0, descriptor(1 << 50, 48, INDIRECT, 0));
        rig.driver.ring.split().push_head(0);
    });
    must_fail("a table in the middle of a chain", |rig| {
        rig.driver.ring.split().write_descriptor(1, descriptor(table, 48, INDIRECT, 0));
        rig.driver.ring.split().push_head(0);
    });
}

#[test]
fn an_index_that_jumps_makes_the_device_ask_for_a_reset() {
    for jump in [SIZE + 1, 1000, 0x8000, u16::MAX] {
        let mut rig = rig();
        good_chain(&mut rig);
        rig.driver.ring.split().set_available_index(jump);
        rig.wait_for_failure();
        assert_eq!(rig.driver.ring.used_count(), 0, "a jump by {jump}");
    }
}

#[test]
fn a_chain_made_available_twice_makes_the_device_ask_for_a_reset() {
    must_fail("twice in one batch", |rig| {
        rig.driver.ring.split().push_head(0);
        rig.driver.ring.split().push_head(0);
    });
    let mut rig =
        Rig::new(RingKind::Split, disk::open("twice-held", DISK_BYTES, Behaviour::Held).expect("disk"), SIZE, true);
    let (head, _) = rig.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    rig.queue.poll();
    rig.driver.ring.split().push_head(head);
    rig.driver.ring.publish();
    rig.wait_for_failure();
    disk::control("twice-held").release();
    assert_eq!(rig.finish().status, OK, "what was in flight still completes, once");
}

#[test]
fn rings_outside_memory_or_of_bad_size_do_not_start() {
    let worker = Worker::spawn("start", None, IdlePolicy::Adaptive).expect("worker");
    let handle = [worker.handle()];
    let mut guest = Guest::new("start", disk::open("start", DISK_BYTES, Behaviour::Inline).expect("disk"), 1, &handle);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "an honest driver starts the device");
    guest.device.set_status(0);
    for what in ["descriptors", "available", "used"] {
        guest.device.set_status(0);
        guest.device.set_status(1 | 2);
        guest.device.set_driver_features(1, 1);
        guest.device.set_status(1 | 2 | 8);
        let outside = |part: &str| if part == what { Some(0xffff_0000) } else { None };
        let queue = guest.device.queue_mut(0).expect("queue");
        queue.set_size(256);
        queue.set_descriptors(outside("descriptors").or(Some(0)), Some(0));
        queue.set_driver_area(outside("available").or(Some(0x2000)), Some(0));
        queue.set_device_area(outside("used").or(Some(0x3000)), Some(0));
        guest.device.set_queue_ready(0, true);
        guest.device.set_status(1 | 2 | 8 | 4);
        assert_ne!(guest.device.status() & STATUS_NEEDS_RESET, 0, "{what} outside memory");
    }
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "a reset makes it whole again");
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}

pollux_testing::on_both_rings!(the_neighbour_on_the_same_worker_goes_on);

fn the_neighbour_on_the_same_worker_goes_on(kind: RingKind) {
    let worker = Worker::spawn("shared", None, IdlePolicy::Adaptive).expect("worker");
    let handle = [worker.handle()];
    let open = |name: &str| disk::open(name, DISK_BYTES, Behaviour::Deferred).expect("disk");
    let mut good = Guest::with_rings(kind, "good", open("good"), 1, &handle);
    let mut bad = Guest::with_rings(kind, "bad", open("bad"), 1, &handle);
    assert_eq!(good.start() & STATUS_NEEDS_RESET, 0);
    for round in 0..20 {
        assert_eq!(bad.start() & STATUS_NEEDS_RESET, 0, "round {round}");
        bad.drivers[0].ring.break_rules();
        bad.device.kick(0).expect("queue").write(1).expect("kick");
        let data = pattern(round, 4096);
        assert_eq!(good.request(0, OUT, round, &data, &Cut::plain(4096, 0)).status, OK);
        assert!(good.request(0, IN, round, &[], &Cut::plain(0, 4096)).data == data);
        wait_for("DEVICE_NEEDS_RESET", || (bad.device.status() & STATUS_NEEDS_RESET != 0).then_some(()));
    }
}

#[test]
fn a_buffer_over_two_memory_regions_works() {
    let driver_bytes = BlkDriver::bytes(SIZE, 64);
    let half = driver_bytes.next_multiple_of(4096);
    let memory = GuestMemory::create(&[(0, half), (half, 1 << 20)], None).expect("guest memory");
    let driver = BlkDriver::new(RingKind::Split, &memory, 0, SIZE, 64, true);
    let mut rig = Rig::with_driver(
        RingKind::Split,
        disk::open("regions", DISK_BYTES, Behaviour::Inline).expect("disk"),
        driver,
        true,
    );
    let data = pattern(9, 4096);
    assert_eq!(rig.request(OUT, 0, &data, &Cut::plain(4096, 0)).status, OK);
    // A read of 4096 bytes across the border, with its table across it as well.
    let table = half - 24;
    let entries = [
        descriptor(0x10000, 16, NEXT, 1),
        descriptor(half - 1000, 4096, NEXT | WRITE, 2),
        descriptor(half + 0x8000, 1, WRITE, 0),
    ];
    let ring = rig.driver.ring.split();
    ring.write(0x10000, [0u8; 16]);
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| {
            [
                &entry.address.to_le_bytes()[..],
                &entry.length.to_le_bytes(),
                &entry.flags.to_le_bytes(),
                &entry.next.to_le_bytes(),
            ]
            .concat()
        })
        .collect();
    // The data region overlaps the table's first part, so the table goes elsewhere at the border: 16 bytes before it.
    let table = table + 8;
    for (index, byte) in bytes.iter().enumerate() {
        ring.write(table + index as u64, *byte);
    }
    ring.write_descriptor(0, descriptor(table, 48, INDIRECT, 0));
    ring.push_head(0);
    ring.publish();
    let (_, written) = wait_for("a request", || {
        rig.queue.poll();
        rig.driver.ring.pop_used()
    });
    assert_eq!(written, 4097);
    let mut read = vec![0; 4096];
    let map = memory.map();
    vm_memory::Bytes::read_slice(&**map, &mut read, vm_memory::GuestAddress(half - 1000)).expect("guest memory");
    assert!(read == data);
}
