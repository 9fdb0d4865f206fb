//! A driver that uses a chain again before it has seen it used breaks its ring, whatever the record of requests in
//! flight is at that moment; and at every publication that record holds what the device has, no more and no less.
use pollux_core::{
    memory::{ForeignMapping, GuestMemory},
    ring::{InflightPlace, PackedRing, Ring, RingError, RingKind, RingStart, SplitRing},
};
use pollux_driver::{NEXT, PackedDescriptor, RingDriver, ring_bytes};
use proptest::prelude::*;
use std::{fs::File, os::unix::fs::FileExt, sync::Arc};
use vm_memory::{Bytes, GuestAddress};

const SIZE: u16 = 8;

/// What the driver or the device does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver makes a chain available under this name, of so many descriptors if the ring is packed, free or not.
    Add(u16, u16),
    /// The device takes up to so many.
    Pop(usize),
    /// The device gives one of those back that it has.
    Complete(usize),
    /// The device shows the driver what it has given back.
    Publish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..SIZE, 1u16..4).prop_map(|(id, count)| Step::Add(id, count)),
        3 => (1usize..5).prop_map(Step::Pop),
        4 => any::<usize>().prop_map(Step::Complete),
        1 => Just(Step::Publish),
    ]
}

/// A ring and the region in which its requests in flight are noted.
struct World<R> {
    memory: GuestMemory,
    driver: RingDriver,
    region: File,
    ring: R,
    kind: RingKind,
}

fn start<R: Ring>(memory: &GuestMemory, driver: &RingDriver, region: &File, kind: RingKind) -> R {
    let bytes = kind.inflight_bytes(SIZE);
    let mapping = Arc::new(ForeignMapping::map(region, 0, bytes, true).expect("a mapping"));
    let inflight = Some(InflightPlace { mapping, index: 0, queue_size: SIZE });
    let base = Some(kind.beginning());
    let start = RingStart { base, resumed: true, inflight, ..RingStart::default() };
    R::start(&driver.config(), memory.translator(), false, start).expect("a ring")
}

fn copy(region: &File, bytes: u64) -> File {
    let mut content = vec![0; bytes as usize];
    region.read_exact_at(&mut content, 0).expect("the region");
    let copy = tempfile::tempfile().expect("a file");
    copy.write_all_at(&content, 0).expect("room");
    copy
}

impl<R: Ring> World<R> {
    fn new(kind: RingKind) -> Self {
        let memory = GuestMemory::create(&[(0, 1 << 16)], None).expect("guest memory");
        let driver = RingDriver::new(kind, &memory, 0, SIZE, false);
        let region = tempfile::tempfile().expect("a file");
        region.set_len(kind.inflight_bytes(SIZE)).expect("room");
        let ring = start(&memory, &driver, &region, kind);
        World { memory, driver, region, ring, kind }
    }

    fn add(&mut self, id: u16, count: u16) {
        match self.kind {
            RingKind::Split => self.driver.split().push_head(id),
            RingKind::Packed => (1..=count).for_each(|index| {
                let flags = if index < count { NEXT } else { 0 };
                self.driver.packed().push(PackedDescriptor { id, flags, ..PackedDescriptor::default() });
            }),
        }
        self.driver.publish();
    }

    /// What the next process would do again, were this one killed now.
    fn still_in_flight(&self) -> Vec<u16> {
        let ring_memory = GuestMemory::create(&[(0, 1 << 16)], None).expect("guest memory");
        let mut bytes = vec![0; ring_bytes(self.kind, SIZE) as usize];
        self.memory.map().read_slice(&mut bytes, GuestAddress(0)).expect("guest memory");
        ring_memory.map().write_slice(&bytes, GuestAddress(0)).expect("guest memory");
        let region = copy(&self.region, self.kind.inflight_bytes(SIZE));
        let mut next: R = start(&ring_memory, &self.driver, &region, self.kind);
        let mut ids = [0; 2 * SIZE as usize];
        let count = next.pop_recovered(&mut ids);
        ids[..count].to_vec()
    }
}

/// Runs the steps until the driver has broken its ring. Returns how it did.
fn run<R: Ring>(kind: RingKind, steps: &[Step]) -> Option<RingError> {
    let mut world = World::<R>::new(kind);
    let mut held: Vec<u16> = Vec::new();
    for &step in steps {
        match step {
            Step::Add(id, count) => world.add(id, count),
            Step::Pop(count) => {
                let mut ids = [0; 8];
                match world.ring.pop(&mut ids[..count]) {
                    // The owner of a split ring sees which of its chains come twice.
                    Ok(count) if ids[..count].iter().any(|id| held.contains(id)) => return Some(RingError::InUse(0)),
                    Ok(count) => held.extend(&ids[..count]),
                    Err(error) => return Some(error),
                }
            }
            Step::Complete(which) if !held.is_empty() => {
                let id = held.remove(which % held.len());
                world.ring.push_used(id, 0);
            }
            Step::Complete(_) => {}
            Step::Publish => {
                world.ring.publish();
                assert_eq!(world.still_in_flight(), held, "after {steps:?}");
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chains_used_again_in_flight_break_a_packed_ring_and_nothing_else(steps in prop::collection::vec(step(), 1..60)) {
        run::<PackedRing>(RingKind::Packed, &steps);
    }

    #[test]
    fn chains_used_again_in_flight_break_a_split_ring_and_nothing_else(steps in prop::collection::vec(step(), 1..60)) {
        run::<SplitRing>(RingKind::Split, &steps);
    }
}

#[test]
fn a_name_is_in_use_until_the_driver_can_see_that_it_is_not() {
    use Step::{Add, Complete, Pop, Publish};
    type Run = fn(RingKind, &[Step]) -> Option<RingError>;
    let runs: [(RingKind, Run); 2] = [(RingKind::Split, run::<SplitRing>), (RingKind::Packed, run::<PackedRing>)];
    for (kind, run) in runs {
        let again = [Add(3, 1), Pop(1), Complete(0), Add(3, 1), Pop(1)];
        assert_eq!(run(kind, &again), Some(RingError::InUse(3)), "{kind:?}");
        let in_turn = [Add(3, 1), Pop(1), Complete(0), Publish, Add(3, 1), Pop(1), Publish];
        assert_eq!(run(kind, &in_turn), None, "{kind:?}");
    }
}

#[test]
fn descriptors_of_a_packed_ring_are_in_use_until_the_driver_can_see_that_they_are_not() {
    use Step::{Add, Complete, Pop, Publish};
    let mut steps: Vec<Step> = (0..SIZE - 1).map(|id| Add(id, 1)).collect();
    steps.extend([Pop(7), Complete(0), Add(SIZE - 1, 2), Pop(1)]);
    assert_eq!(run::<PackedRing>(RingKind::Packed, &steps), Some(RingError::Overrun(SIZE)));
    let at = steps.len() - 2;
    steps.insert(at, Publish);
    assert_eq!(run::<PackedRing>(RingKind::Packed, &steps), None);
}
