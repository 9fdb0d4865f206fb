//! The packed ring in every state that virtio 1.3, 2.8 knows: laps, wrap counters, order, event suppression; and what
//! its driver can do to it.
use pollux_abi::block_v1::Segment;
use pollux_core::{
    memory::{ForeignMapping, GuestMemory, Translator},
    ring::{Chain, InflightPlace, PackedRing, Ring, RingError, RingKind, RingStart, SegmentList},
};
use pollux_driver::{AVAILABLE, Buffer, INDIRECT, NEXT, PackedDescriptor, PackedDriver, USED, WRITE};
use std::{collections::HashMap, sync::Arc};

const DATA: u64 = 0x10000;
const MEMORY: u64 = 0x100000;

/// A driver and a device on one ring.
struct Pair {
    memory: GuestMemory,
    driver: PackedDriver,
    ring: PackedRing,
    data: Translator,
}

impl Pair {
    fn new(size: u16, event_idx: bool) -> Self {
        let memory = GuestMemory::create(&[(0, MEMORY)], None).expect("guest memory");
        let driver = PackedDriver::new(&memory, 0, size, event_idx);
        let ring = PackedRing::new(&driver.config(), memory.translator(), event_idx).expect("a ring");
        let data = memory.translator();
        Pair { memory, driver, ring, data }
    }

    fn add(&mut self, count: usize) -> Option<u16> {
        self.driver.add(&buffers(count))
    }

    /// Takes all there is.
    fn pop(&mut self) -> Vec<u16> {
        let mut ids = [0; 64];
        let count = self.ring.pop(&mut ids).expect("a legal ring");
        ids[..count].to_vec()
    }

    fn walk(&mut self, id: u16) -> Result<Chain, RingError> {
        let empty = Segment { base: std::ptr::null_mut(), length: 0 };
        let (mut inline, mut overflow) = ([empty; 3], [empty; 64]);
        let mut list = SegmentList::new(&mut inline, &mut overflow);
        self.ring.walk(id, &mut self.data, &mut list)
    }

    fn give_back(&mut self, ids: &[u16]) {
        ids.iter().for_each(|&id| self.ring.push_used(id, 1));
        self.ring.publish();
    }

    /// What the device says to what its driver has pushed.
    fn error(mut self) -> RingError {
        self.driver.publish();
        let mut ids = [0; 64];
        match self.ring.pop(&mut ids) {
            Err(error) => error,
            Ok(0) => panic!("nothing was available"),
            Ok(_) => self.walk(ids[0]).expect_err("a broken chain"),
        }
    }
}

fn buffers(count: usize) -> Vec<Buffer> {
    let buffer = |index| Buffer { address: DATA + 0x1000 * index as u64, length: 16, writable: index > 0 };
    (0..count).map(buffer).collect()
}

/// Chains of all lengths, in rings of all sizes, given back in an order that is not theirs, over many laps.
#[test]
fn laps_wrap_in_rings_of_any_size() {
    for size in [1, 2, 3, 5, 7, 16, 100] {
        let mut pair = Pair::new(size, true);
        let mut held: Vec<u16> = Vec::new();
        let mut random = 1u64;
        let mut next = move || {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as usize
        };
        let mut seen = 0;
        for _ in 0..5000 {
            for _ in 0..next() % 4 {
                if let Some(id) = pair.add(1 + next() % usize::from(size.min(5))) {
                    held.push(id);
                }
            }
            pair.driver.publish();
            let popped = pair.pop();
            assert!(popped.iter().all(|id| held.contains(id)));
            assert!(pair.pop().is_empty(), "everything was taken");
            popped.iter().for_each(|&id| assert!(pair.walk(id).is_ok()));
            for _ in 0..next() % 5 {
                if !held.is_empty() {
                    let id = held.swap_remove(next() % held.len());
                    pair.ring.push_used(id, 7);
                    seen += 1;
                }
            }
            pair.ring.publish();
            while let Some((_, written)) = pair.driver.pop_used() {
                assert_eq!(written, 7);
                seen -= 1;
            }
            assert_eq!(seen, 0, "all that was given back is seen at once");
        }
    }
}

#[test]
fn a_batch_shows_up_with_its_first_descriptor() {
    let mut pair = Pair::new(8, true);
    (0..3).for_each(|_| assert!(pair.add(2).is_some()));
    pair.driver.publish();
    let ids = pair.pop();
    ids.iter().for_each(|&id| pair.ring.push_used(id, 1));
    assert_eq!(pair.driver.used_count(), 0);
    assert_eq!(pair.driver.descriptor(0).flags & (AVAILABLE | USED), AVAILABLE, "the first is not used yet");
    assert_eq!(pair.driver.descriptor(2).flags, AVAILABLE | USED | WRITE, "the second is, behind it");
    assert!(pair.ring.publish());
    assert_eq!(pair.driver.used_count(), 3);
    assert!(!pair.ring.publish());
}

#[test]
fn what_was_not_written_has_no_write_flag() {
    let mut pair = Pair::new(4, true);
    pair.add(1);
    pair.driver.publish();
    let ids = pair.pop();
    pair.ring.push_used(ids[0], 0);
    pair.ring.publish();
    assert_eq!(pair.driver.descriptor(0).flags, AVAILABLE | USED);
}

#[test]
fn a_ring_stopped_in_any_place_goes_on_there() {
    let mut pair = Pair::new(5, true);
    for round in 0..40 {
        pair.add(1 + round % 3).expect("room");
        pair.driver.publish();
        let ids = pair.pop();
        pair.give_back(&ids);
        pair.driver.pop_used().expect("given back");
        assert_eq!(pair.ring.base(), pair.driver.base(true), "round {round}");
        let start = RingStart { base: Some(pair.ring.base()), resumed: true, ..RingStart::default() };
        pair.ring = PackedRing::start(&pair.driver.config(), pair.memory.translator(), true, start).expect("a ring");
    }
}

#[test]
fn a_base_outside_of_the_ring_is_refused() {
    let pair = Pair::new(5, true);
    for base in [5, 0x8005, 5 << 16, 0x7fff_0000, u32::MAX] {
        let start = RingStart { base: Some(base), ..RingStart::default() };
        let error =
            PackedRing::start(&pair.driver.config(), pair.memory.translator(), true, start).expect_err("a base");
        assert_eq!(error, RingError::Base(base, 5));
    }
}

/// An event at each place of the ring: a signal comes when the used index passes it, and once.
#[test]
fn an_event_is_signalled_when_it_is_passed() {
    for (size, count) in [(7, 1), (7, 3), (8, 2), (100, 5)] {
        let mut pair = Pair::new(size, true);
        for lap in 0..3u32 {
            for offset in 0..u32::from(size) {
                // Where we are, and an event so many descriptors further on.
                let base = pair.ring.base() >> 16;
                let (index, wrap) = (base & 0x7fff, base & 0x8000);
                let place = index + offset;
                let event =
                    if place < size.into() { place | wrap } else { (place - u32::from(size)) | (wrap ^ 0x8000) };
                pair.driver.set_events(event | 2 << 16);
                let mut used = 0;
                while used <= offset {
                    pair.add(count).expect("room");
                    pair.driver.publish();
                    let ids = pair.pop();
                    pair.give_back(&ids);
                    pair.driver.pop_used().expect("given back");
                    used += count as u32;
                    let passed = used > offset;
                    assert_eq!(
                        pair.ring.needs_signal(),
                        passed,
                        "lap {lap}, offset {offset}, used {used}, size {size}"
                    );
                }
            }
        }
    }
}

#[test]
fn events_that_are_switched_on_or_off_are_that() {
    for event_idx in [false, true] {
        let mut pair = Pair::new(8, event_idx);
        // Reserved values, and a place without EVENT_IDX, mean no silence.
        for (events, expected) in [(0, true), (1 << 16, false), (3 << 16, true), (1 << 16 | 0x8003, false)] {
            pair.driver.set_events(events);
            pair.add(1);
            pair.driver.publish();
            let ids = pair.pop();
            pair.give_back(&ids);
            pair.driver.pop_used();
            assert_eq!(pair.ring.needs_signal(), expected, "{events:#x}");
        }
    }
    let mut pair = Pair::new(8, false);
    pair.driver.set_events(2 << 16 | 0x8007);
    pair.add(1);
    pair.driver.publish();
    let ids = pair.pop();
    pair.give_back(&ids);
    assert!(pair.ring.needs_signal(), "a place without EVENT_IDX");
}

#[test]
fn kicks_are_wanted_by_place_with_event_idx_and_always_without() {
    for (event_idx, armed) in [(false, 0), (true, 2 << 16 | 0x8002)] {
        let mut pair = Pair::new(4, event_idx);
        assert_eq!(pair.driver.device_events(), 1 << 16, "a polled ring wants none");
        pair.add(2);
        assert!(!pair.driver.publish());
        let ids = pair.pop();
        pair.give_back(&ids);
        pair.driver.pop_used();
        assert!(!pair.ring.enable_kicks());
        assert_eq!(pair.driver.device_events(), armed);
        pair.add(3);
        assert!(pair.driver.publish(), "the chain that was waited for");
        assert!(pair.ring.enable_kicks(), "there is one");
        pair.ring.disable_kicks();
        assert_eq!(pair.driver.device_events(), 1 << 16);
    }
}

fn descriptor(address: u64, length: u32, id: u16, flags: u16) -> PackedDescriptor {
    PackedDescriptor { address, length, id, flags }
}

#[test]
fn broken_chains_are_found_out() {
    let broken = |descriptors: &[PackedDescriptor]| {
        let mut pair = Pair::new(4, true);
        descriptors.iter().for_each(|&descriptor| pair.driver.push(descriptor));
        pair.error()
    };
    let good = descriptor(DATA, 16, 0, 0);
    assert_eq!(broken(&[descriptor(DATA, 16, 4, 0)]), RingError::BufferId(4, 4));
    assert_eq!(broken(&[descriptor(DATA, 16, u16::MAX, 0)]), RingError::BufferId(u16::MAX, 4));
    assert_eq!(broken(&[descriptor(DATA, 16, 0, NEXT); 4]), RingError::Overrun(4), "a chain without an end");
    assert_eq!(broken(&[good, good]), RingError::InUse(0), "twice in one batch");
    assert_eq!(broken(&[descriptor(DATA, 16, 0, WRITE | NEXT), good]), RingError::Order(0));
    assert_eq!(broken(&[descriptor(MEMORY - 8, 16, 0, 0)]), RingError::Address(MEMORY - 8, 16));
    assert_eq!(broken(&[descriptor(u64::MAX, u32::MAX, 0, 0)]), RingError::Address(u64::MAX, u32::MAX));
    for table in [(DATA, 0), (DATA, 15), (DATA, 40), (DATA, u32::MAX), (DATA, 0xffff_fff0)] {
        assert_eq!(broken(&[descriptor(table.0, table.1, 0, INDIRECT)]), RingError::Indirect(0), "{table:?}");
    }
    assert_eq!(broken(&[descriptor(1 << 40, 16, 0, INDIRECT)]), RingError::Address(1 << 40, 16));
    assert_eq!(broken(&[descriptor(DATA, 16 * 2000, 0, INDIRECT)]), RingError::TooLong(0), "a table to keep us busy");
    let table = descriptor(DATA, 16, 0, INDIRECT);
    assert_eq!(broken(&[PackedDescriptor { flags: INDIRECT | NEXT, ..table }, good]), RingError::Indirect(0));
    assert_eq!(broken(&[descriptor(DATA, 16, 0, NEXT), table]), RingError::Indirect(0), "in the middle of a chain");
}

#[test]
fn a_table_in_a_table_is_found_out() {
    let mut pair = Pair::new(4, true);
    pair.driver.write(DATA, descriptor(DATA, 16, 0, INDIRECT));
    pair.driver.push(descriptor(DATA, 16, 0, INDIRECT));
    assert_eq!(pair.error(), RingError::Indirect(0));
}

#[test]
fn a_buffer_made_available_while_it_is_in_use_is_found_out() {
    let mut pair = Pair::new(4, true);
    let id = pair.add(1).expect("room");
    pair.driver.publish();
    assert_eq!(pair.pop(), [id]);
    pair.driver.add_with_id(id);
    assert_eq!(pair.error(), RingError::InUse(id));
}

#[test]
fn more_than_the_ring_has_is_found_out() {
    let mut pair = Pair::new(4, true);
    (0..4).for_each(|_| assert!(pair.add(1).is_some()));
    pair.driver.publish();
    assert_eq!(pair.pop().len(), 4);
    // Over what is on its way, in the next lap.
    pair.driver.push(descriptor(DATA, 16, 0, 0));
    assert_eq!(pair.error(), RingError::Overrun(4));
}

#[test]
fn rings_outside_memory_or_misaligned_do_not_start() {
    let pair = Pair::new(4, true);
    let good = pair.driver.config();
    let start = |config| PackedRing::new(&config, pair.memory.translator(), true).map(|_| ());
    type Spoil = fn(&mut pollux_core::ring::QueueConfig);
    let cases: [(Spoil, RingError); 8] = [
        (|config| config.size = 0, RingError::PackedSize(0)),
        (|config| config.size = 32769, RingError::PackedSize(32769)),
        (|config| config.descriptors = MEMORY - 63, RingError::Placement("descriptor ring")),
        (|config| config.descriptors += 8, RingError::Placement("descriptor ring")),
        (|config| config.driver_area = MEMORY - 2, RingError::Placement("driver event suppression structure")),
        (|config| config.driver_area += 2, RingError::Placement("driver event suppression structure")),
        (|config| config.device_area = u64::MAX, RingError::Placement("device event suppression structure")),
        (|config| config.device_area += 1, RingError::Placement("device event suppression structure")),
    ];
    for (spoil, error) in cases {
        let mut config = good;
        spoil(&mut config);
        assert_eq!(start(config), Err(error));
    }
    assert_eq!(start(good), Ok(()));
}

/// A device that dies again and again, at any point of a turn: each chain is given back once, whole, whoever took it.
#[test]
fn chains_outlive_the_process_that_took_them() {
    const SIZE: u16 = 12;
    let bytes = RingKind::Packed.inflight_bytes(SIZE);
    let file = tempfile::tempfile().expect("a file");
    file.set_len(bytes).expect("a length");
    let start = || {
        let mapping = Arc::new(ForeignMapping::map(&file, 0, bytes, true).expect("a mapping"));
        let inflight = Some(InflightPlace { mapping, index: 0, queue_size: SIZE });
        RingStart { resumed: true, inflight, ..RingStart::default() }
    };
    let mut pair = Pair::new(SIZE, true);
    let config = pair.driver.config();
    let open = |pair: &Pair| PackedRing::start(&config, pair.memory.translator(), true, start()).expect("a ring");
    pair.ring = open(&pair);
    let mut random = 7u64;
    let mut next = move || {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (random >> 33) as usize
    };
    // By ID: what the driver has on its way, in bytes; and what the device of now has taken.
    let (mut expected, mut held) = (HashMap::new(), Vec::new());
    let mut crashes = 0;
    for round in 0..5000u32 {
        let length = 1 + round % 1000;
        let count = 1 + next() % 4;
        let cut: Vec<Buffer> = (0..count)
            .map(|index| Buffer {
                address: DATA + 8 * u64::from(length),
                length: length + index as u32,
                writable: false,
            })
            .collect();
        let table = 0x80000 + u64::from(round % 64) * 64;
        let added = if next() % 2 == 0 { pair.driver.add(&cut) } else { pair.driver.add_indirect(&cut, table) };
        if let Some(id) = added {
            expected.insert(id, cut.iter().map(|buffer| u64::from(buffer.length)).sum::<u64>());
        }
        pair.driver.publish();
        let mut ids = [0; 3];
        let count = if pair.ring.has_recovered_chains() {
            pair.ring.pop_recovered(&mut ids)
        } else {
            pair.ring.pop(&mut ids).expect("a legal ring")
        };
        for &id in &ids[..count] {
            assert_eq!(pair.walk(id).expect("a legal chain").readable_bytes, expected[&id], "round {round}");
            held.push(id);
        }
        let dies_at = next() % 12;
        for _ in 0..next() % 4 {
            if !held.is_empty() {
                let id = held.swap_remove(next() % held.len());
                pair.ring.push_used(id, 0);
            }
        }
        if dies_at != 0 {
            pair.ring.publish();
        }
        if dies_at < 2 {
            pair.ring = open(&pair);
            held.clear();
            crashes += 1;
        }
        while let Some((id, _)) = pair.driver.pop_used() {
            assert!(expected.remove(&id).is_some(), "round {round}: each once");
        }
    }
    assert!(crashes > 100);
    while !expected.is_empty() {
        let mut ids = [0; 16];
        let mut count = pair.ring.pop_recovered(&mut ids);
        if count == 0 {
            count = pair.ring.pop(&mut ids).expect("a legal ring");
        }
        for &id in ids[..count].iter().chain(&held) {
            pair.ring.push_used(id, 0);
        }
        held.clear();
        pair.ring.publish();
        while let Some((id, _)) = pair.driver.pop_used() {
            assert!(expected.remove(&id).is_some(), "each once");
        }
    }
}
