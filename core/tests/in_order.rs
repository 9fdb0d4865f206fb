//! A ring whose driver has accepted IN_ORDER (virtio 1.3, 2.7.9 and 2.8.8): whatever order chains end in, the driver
//! sees them in the order in which it made them available, a run of them by one used element; nothing that it does
//! makes the device panic; and what waits for its turn when the process dies is neither lost nor given back twice.
use pollux_abi::block_v1::Segment;
use pollux_core::{
    memory::{GuestMemory, Translator},
    ring::{Chain, InOrder, PackedRing, Ring, RingError, RingKind, SegmentList, SplitRing, UsedRuns},
};
use pollux_driver::{Buffer, RingDriver};
use pollux_testing::inflight::InflightFile;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const DATA: u64 = 0x10000;
const TABLES: u64 = 0x80000;
const MEMORY: u64 = 0x100000;

/// Makes two tests of each function named, which is generic over the ring within: one for each kind.
macro_rules! of_both_rings {
    ($($name:ident),+ $(,)?) => {
        mod split {
            $(#[test] fn $name() { super::$name::<super::SplitRing>(super::RingKind::Split) })+
        }
        mod packed {
            $(#[test] fn $name() { super::$name::<super::PackedRing>(super::RingKind::Packed) })+
        }
    };
}

of_both_rings!(
    chains_that_end_the_other_way_round_are_seen_in_order_by_one_element,
    a_chain_that_was_not_written_completely_ends_a_run,
    a_full_ring_goes_round_many_times,
    a_chain_that_waits_is_the_devices,
    what_waits_is_left_to_the_next_process_in_order,
    chains_outlive_the_process_that_took_them,
);

/// A driver and a device on one ring.
struct Pair<R> {
    memory: GuestMemory,
    driver: RingDriver,
    ring: R,
    data: Translator,
    tables: u64,
}

impl<R: Ring> Pair<R> {
    fn new(kind: RingKind, size: u16, event_idx: bool) -> Self {
        let memory = GuestMemory::create(&[(0, MEMORY)], None).expect("guest memory");
        let mut driver = RingDriver::new(kind, &memory, 0, size, event_idx);
        driver.set_in_order();
        let ring = R::new(&driver.config(), memory.translator(), event_idx).expect("a ring");
        let data = memory.translator();
        Pair { memory, driver, ring, data, tables: 0 }
    }

    /// A chain with so many bytes to read and to write, in `count` descriptors or by a table.
    fn add(&mut self, readable: u32, writable: u32, indirect: bool) -> Option<u16> {
        let buffers = [
            Buffer { address: DATA, length: readable, writable: false },
            Buffer { address: DATA + 0x1000, length: writable, writable: true },
        ];
        // Each chain's table stays until the chain is done: there are fewer.
        let table = TABLES + self.tables % 256 * 64;
        self.tables += 1;
        if indirect { self.driver.add_indirect(&buffers, table) } else { self.driver.add(&buffers) }
    }

    fn pop(&mut self) -> Result<Vec<u16>, RingError> {
        let mut heads = [0; 64];
        let count = self.ring.pop(&mut heads)?;
        heads[..count].iter().for_each(|&head| _ = self.walk(head).expect("a legal chain"));
        Ok(heads[..count].to_vec())
    }

    fn pop_recovered(&mut self) -> Vec<u16> {
        let mut heads = [0; 64];
        let count = self.ring.pop_recovered(&mut heads);
        heads[..count].iter().for_each(|&head| assert!(self.walk(head).expect("a legal chain").writable > 0));
        heads[..count].to_vec()
    }

    fn walk(&mut self, head: u16) -> Result<Chain, RingError> {
        let empty = Segment { base: std::ptr::null_mut(), length: 0 };
        let (mut inline, mut overflow) = ([empty; 3], [empty; 16]);
        self.ring.walk(head, &mut self.data, &mut SegmentList::new(&mut inline, &mut overflow))
    }

    /// What the driver finds.
    fn reap(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.driver.pop_used()).collect()
    }

    fn elements(&self) -> u64 {
        self.driver.order().expect("a driver that expects the order").elements()
    }
}

fn chains_that_end_the_other_way_round_are_seen_in_order_by_one_element<R: UsedRuns>(kind: RingKind) {
    for (event_idx, indirect) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut pair = Pair::<InOrder<R>>::new(kind, 16, event_idx);
        let added: Vec<u16> = (0..8).map(|_| pair.add(16, 513, indirect).expect("room")).collect();
        pair.driver.publish();
        assert_eq!(pair.pop(), Ok(added.clone()));
        for &head in added[1..].iter().rev() {
            pair.ring.push_used(head, 513);
            assert!(!pair.ring.publish(), "it waits for the first one");
            assert_eq!(pair.driver.used_count(), 0);
        }
        assert!(!pair.ring.publish() && !pair.ring.has_available());
        pair.ring.push_used(added[0], 513);
        assert!(pair.ring.publish());
        assert_eq!(pair.driver.used_count(), 8);
        assert_eq!(pair.ring.base(), pair.driver.base(true));
        assert_eq!(pair.reap(), added.iter().map(|&head| (head, 513)).collect::<Vec<_>>());
        assert_eq!(pair.elements(), 1, "event_idx {event_idx}, indirect {indirect}");
        assert!(!pair.ring.publish(), "nothing is shown twice");
    }
}

fn a_chain_that_was_not_written_completely_ends_a_run<R: UsedRuns>(kind: RingKind) {
    let mut pair = Pair::<InOrder<R>>::new(kind, 16, true);
    let added: Vec<u16> = (0..8).map(|index| pair.add(16, 100 + index, index % 2 == 0).expect("room")).collect();
    pair.driver.publish();
    assert_eq!(pair.pop(), Ok(added.clone()));
    let written = [100, 101, 7, 103, 0, 0, 106, 107];
    for (&head, written) in added.iter().zip(written).rev() {
        pair.ring.push_used(head, written);
    }
    assert!(pair.ring.publish());
    assert_eq!(pair.reap(), added.iter().copied().zip(written).collect::<Vec<_>>(), "each with its own length");
    assert_eq!(pair.elements(), 4, "100 101 7, 103 0, 0, 106 107");
}

fn a_full_ring_goes_round_many_times<R: UsedRuns>(kind: RingKind) {
    for size in [4, 16] {
        let mut pair = Pair::<InOrder<R>>::new(kind, size, true);
        // Over the end of the 16-bit index.
        for round in 0..70_000 / u32::from(size) {
            let added: Vec<u16> = std::iter::from_fn(|| pair.add(16, 1, true)).collect();
            assert_eq!(added.len(), usize::from(size));
            pair.driver.publish();
            let taken = pair.pop().expect("a legal ring");
            assert_eq!(taken, added);
            let first = round as usize % taken.len();
            for turned in 0..taken.len() {
                pair.ring.push_used(taken[(first + turned) % taken.len()], 1);
                pair.ring.publish();
            }
            assert_eq!(pair.reap().iter().map(|&(head, _)| head).collect::<Vec<_>>(), added, "round {round}");
        }
    }
}

/// It has ended, and only the ring knows that: a driver that makes it available once more breaks the rules.
fn a_chain_that_waits_is_the_devices<R: UsedRuns>(kind: RingKind) {
    let mut pair = Pair::<InOrder<R>>::new(kind, 16, true);
    let added: Vec<u16> = (0..2).map(|_| pair.add(16, 1, false).expect("room")).collect();
    pair.driver.publish();
    assert_eq!(pair.pop(), Ok(added.clone()));
    pair.ring.push_used(added[1], 1);
    match &mut pair.driver {
        RingDriver::Split(driver) => driver.push_head(added[1]),
        RingDriver::Packed(driver) => driver.add_with_id(added[1]),
    }
    pair.driver.publish();
    assert_eq!(pair.pop(), Err(RingError::InUse(added[1])));
    // What was in flight still ends.
    pair.ring.push_used(added[0], 1);
    assert!(pair.ring.publish());
    assert_eq!(pair.reap(), [(added[0], 1), (added[1], 1)]);
}

impl<R: Ring> Pair<R> {
    /// The next process takes over.
    fn take_over(&mut self, record: &InflightFile) {
        let ring = R::start(&self.driver.config(), self.memory.translator(), true, record.start(None));
        self.ring = ring.expect("a ring");
    }
}

fn what_waits_is_left_to_the_next_process_in_order<R: UsedRuns>(kind: RingKind) {
    let mut pair = Pair::<InOrder<R>>::new(kind, 16, true);
    let record = InflightFile::new(kind, 16);
    pair.take_over(&record);
    let added: Vec<u16> = (0..8).map(|_| pair.add(16, 1, false).expect("room")).collect();
    pair.driver.publish();
    let taken = pair.pop().expect("a legal ring");
    assert_eq!(taken, added);
    for index in [0, 1, 3, 5, 7] {
        pair.ring.push_used(taken[index], 1);
    }
    pair.ring.publish();
    assert_eq!(pair.reap(), [(added[0], 1), (added[1], 1)]);
    // It dies with three that have ended and wait for the third. Then once more, having done everything and shown
    // nothing.
    for _ in 0..2 {
        pair.take_over(&record);
        assert!(pair.ring.has_recovered_chains());
        assert_eq!(pair.pop_recovered(), added[2..], "in the order in which they were made available");
        added[2..].iter().rev().for_each(|&head| pair.ring.push_used(head, 1));
    }
    assert!(pair.driver.used_count() == 0 && pair.ring.publish());
    assert_eq!(pair.reap(), added[2..].iter().map(|&head| (head, 1)).collect::<Vec<_>>());
    pair.take_over(&record);
    assert!(!pair.ring.has_recovered_chains() && !pair.ring.has_available());
}

/// A device that dies again and again, at any point of a turn: each chain is given back once, in its order, whoever
/// took it.
fn chains_outlive_the_process_that_took_them<R: UsedRuns>(kind: RingKind) {
    const SIZE: u16 = 16;
    let mut pair = Pair::<InOrder<R>>::new(kind, SIZE, true);
    let record = InflightFile::new(kind, SIZE);
    pair.take_over(&record);
    let mut random = fastrand::Rng::with_seed(7);
    // What the driver has on its way, and what the device of now has taken and not ended.
    let (mut expected, mut held) = (std::collections::VecDeque::new(), Vec::new());
    // Chains that the device has ended and the driver has not seen.
    let mut ended = 0;
    let (mut crashes, mut waited) = (0, 0);
    for round in 0..10_000u32 {
        let settles = round >= 9000;
        for _ in 0..random.usize(0..3) {
            let (length, indirect) = (1 + round % 500, random.bool());
            if let Some(head) = (!settles).then(|| pair.add(16, length, indirect)).flatten() {
                expected.push_back((head, length));
            }
        }
        pair.driver.publish();
        let taken =
            if pair.ring.has_recovered_chains() { pair.pop_recovered() } else { pair.pop().expect("a legal ring") };
        for head in taken {
            held.push(*expected.iter().find(|(known, _)| *known == head).expect("a chain of the driver's"));
        }
        for _ in 0..random.usize(0..4) {
            if !held.is_empty() {
                let (head, length) = held.swap_remove(random.usize(..held.len()));
                pair.ring.push_used(head, length);
                ended += 1;
            }
        }
        let dies = !settles && random.u8(0..12) == 0;
        if !dies || random.bool() {
            pair.ring.publish();
        }
        if dies {
            waited += u32::from(pair.driver.used_count() < ended);
            pair.take_over(&record);
            held.clear();
            ended = pair.driver.used_count();
            crashes += 1;
        }
        for found in pair.reap() {
            ended -= 1;
            assert_eq!(Some(found), expected.pop_front(), "round {round}");
        }
    }
    assert!(crashes > 100 && waited > 100, "{crashes} crashes, {waited} with something that waited");
    assert!(expected.is_empty() && held.is_empty());
}

/// What the driver or the device does next.
#[derive(Clone, Debug)]
enum Step {
    /// The driver adds a chain with so much to write, and shows it or not.
    Add { writable: u32, indirect: bool, shown: bool },
    /// The device takes up to so many.
    Pop(usize),
    /// One of those ends, with everything written or less.
    End { which: usize, short: Option<u32> },
    /// The device shows what it can, and asks whether to signal.
    Publish,
    /// The driver reaps, and asks for the next interrupt or for none.
    Reap(bool),
    /// The device asks for kicks, and for none.
    Arm,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1u32..2000, any::<bool>(), any::<bool>())
            .prop_map(|(writable, indirect, shown)| Step::Add { writable, indirect, shown }),
        3 => (1usize..20).prop_map(Step::Pop),
        6 => (any::<usize>(), prop::option::weighted(0.2, any::<u32>()))
            .prop_map(|(which, short)| Step::End { which, short }),
        3 => Just(Step::Publish),
        1 => any::<bool>().prop_map(Step::Reap),
        1 => Just(Step::Arm),
    ]
}

/// A chain that the device has: its name, what may be written, and what was when it has ended.
type Held = (u16, u32, Option<u32>);

/// The ring under test does what the ring within does to which chains are given back one by one, in their order, as
/// soon as they and all before them have ended.
fn alike<R: UsedRuns>(kind: RingKind, size: u16, event_idx: bool, steps: Vec<Step>) {
    let mut tested = Pair::<InOrder<R>>::new(kind, size, event_idx);
    let mut plain = Pair::<R>::new(kind, size, event_idx);
    let mut held: Vec<Held> = Vec::new();
    let mut lengths = std::collections::HashMap::new();
    for step in steps {
        match step {
            Step::Add { writable, indirect, shown } => {
                let added = tested.add(16, writable, indirect);
                assert_eq!(added, plain.add(16, writable, indirect));
                lengths.extend(added.map(|head| (head, writable)));
                if shown {
                    assert_eq!(tested.driver.publish(), plain.driver.publish(), "kicks");
                }
            }
            Step::Pop(count) => {
                let mut heads = [[0; 20]; 2];
                let popped = tested.ring.pop(&mut heads[0][..count]).expect("a legal ring");
                assert_eq!(Ok(popped), plain.ring.pop(&mut heads[1][..count]));
                assert_eq!(heads[0], heads[1]);
                for &head in &heads[0][..popped] {
                    assert_eq!(tested.walk(head), plain.walk(head));
                    held.push((head, lengths[&head], None));
                }
            }
            Step::End { which, short } => {
                let mut running: Vec<&mut Held> = held.iter_mut().filter(|held| held.2.is_none()).collect();
                if running.is_empty() {
                    continue;
                }
                let at = which % running.len();
                let (head, writable, written) = &mut *running[at];
                let length = short.map_or(*writable, |short| short % *writable);
                *written = Some(length);
                tested.ring.push_used(*head, length);
            }
            Step::Publish => {
                let ended = held.iter().take_while(|held| held.2.is_some()).count();
                held.drain(..ended).for_each(|(head, _, written)| plain.ring.push_used(head, written.unwrap_or(0)));
                let published = tested.ring.publish();
                assert_eq!(published, plain.ring.publish());
                assert_eq!(tested.ring.base(), plain.ring.base());
                assert_eq!(tested.driver.used_count(), plain.driver.used_count());
                assert_eq!(tested.ring.used_count(), plain.ring.used_count(), "chains, whatever elements there are");
                assert_eq!(tested.driver.base(true), plain.driver.base(true));
                if published {
                    assert_eq!(tested.ring.needs_signal(), plain.ring.needs_signal(), "signals");
                }
            }
            Step::Reap(interrupts) => {
                assert_eq!(tested.reap(), plain.reap());
                assert!(tested.elements() <= plain.elements(), "no more elements than chains");
                tested.driver.want_interrupts(interrupts);
                plain.driver.want_interrupts(interrupts);
            }
            Step::Arm => {
                assert_eq!(tested.ring.enable_kicks(), plain.ring.enable_kicks());
                tested.ring.disable_kicks();
                plain.ring.disable_kicks();
            }
        }
    }
}

/// Whatever is in the ring, the device takes what it can from it and stays within guest memory.
fn survives<R: UsedRuns>(kind: RingKind, bytes: &[u8]) {
    let memory = GuestMemory::create(&[(0, MEMORY)], None).expect("guest memory");
    let driver = RingDriver::new(kind, &memory, 0, 16, true);
    let mut ring = InOrder::<R>::new(&driver.config(), memory.translator(), true).expect("a ring");
    memory.map().write_slice(bytes, GuestAddress(0)).expect("guest memory");
    let mut data = memory.translator();
    let empty = Segment { base: std::ptr::null_mut(), length: 0 };
    let mut heads = [0; 7];
    let mut held = Vec::new();
    // A split ring can be a whole lap ahead of what is in it.
    for turn in 0..64 {
        let Ok(count) = ring.pop(&mut heads) else { break };
        for &head in &heads[..count] {
            let (mut inline, mut overflow) = ([empty; 3], [empty; 16]);
            let walked = ring.walk(head, &mut data, &mut SegmentList::new(&mut inline, &mut overflow));
            held.push((head, walked.map_or(0, |chain| chain.writable_bytes as u32)));
        }
        if !held.is_empty() {
            let (head, written) = held.swap_remove(turn * 5 % held.len());
            ring.push_used(head, written);
        }
        ring.publish();
        ring.needs_signal();
    }
    held.iter().for_each(|&(head, written)| ring.push_used(head, written));
    ring.publish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_is_all_that_a_driver_can_tell_it_by(
        steps in prop::collection::vec(step(), 1..250),
        // A packed ring need not be a power of two.
        (power, any) in (2u32..6, 3u16..40),
        event_idx in any::<bool>(),
    ) {
        alike::<SplitRing>(RingKind::Split, 1 << power, event_idx, steps.clone());
        alike::<PackedRing>(RingKind::Packed, any, event_idx, steps);
    }

    #[test]
    fn any_bytes_in_the_ring_are_survived(
        mut bytes in prop::collection::vec(any::<u8>(), 16 * 16 + 6 + 32),
        // Random heads and buffer IDs are seldom within the ring, and random flags available one time in four: these
        // lead further.
        (index, small) in (0u16..20, any::<u16>()),
    ) {
        for slot in 0..16usize {
            if small & 1 << slot != 0 {
                bytes[16 * slot + 2..16 * slot + 8].fill(0);
                bytes[16 * slot + 10..16 * slot + 12].fill(0);
                bytes[16 * 16 + 4 + 2 * slot + 1] = 0;
                bytes[16 * 16 + 4 + 2 * slot] &= 0x0f;
            }
        }
        let mut split = bytes.clone();
        split[16 * 16 + 2..16 * 16 + 4].copy_from_slice(&index.to_le_bytes());
        survives::<SplitRing>(RingKind::Split, &split);
        for slot in 0..16usize {
            if small & 1 << slot != 0 {
                bytes[16 * slot + 12] &= 0x0f;
                bytes[16 * slot + 13] = 0;
                bytes[16 * slot + 14] |= 0x80;
                bytes[16 * slot + 15] &= 0x7f;
            }
        }
        survives::<PackedRing>(RingKind::Packed, &bytes);
    }
}
