//! What both kinds of ring must do if the device keeps the order of requests, with the device's side of them from the
//! dataplane.
use super::{
    either::EitherRing,
    ring::{Chain, Ring as _, RingError},
};
use pollux_abi::block_v1::Segment;
use pollux_core::{
    memory::GuestMemory,
    ring::{InOrder, PackedRing, Ring, RingKind, SegmentList, SplitRing, UsedRuns},
};

fn chain(slot: u16, length: u32) -> Chain {
    let at = 0x20000 + 0x1000 * u64::from(slot);
    Chain { header: at, data: at + 64, length, device_writes: true, status: at + 16 }
}

/// Takes all there is, follows it, and returns the heads with the lengths of what can be written.
fn take(device: &mut impl Ring, memory: &GuestMemory) -> Vec<(u16, u32)> {
    let mut heads = [0; 16];
    let count = device.pop(&mut heads).expect("an honest driver");
    let empty = Segment { base: std::ptr::null_mut(), length: 0 };
    let (mut inline, mut overflow) = ([empty; 8], [empty; 8]);
    let mut data = memory.translator();
    let mut walk = |head| {
        let mut list = SegmentList::new(&mut inline, &mut overflow);
        device.walk(head, &mut data, &mut list).expect("a good chain").writable_bytes as u32
    };
    heads[..count].iter().map(|&head| (head, walk(head))).collect()
}

/// Rounds of requests of two and of three descriptors, each of which the device ends the other way round.
fn rounds<R: UsedRuns>(kind: RingKind, indirect: bool, event_idx: bool) {
    let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("memory");
    let mut ring = EitherRing::new(kind, &memory, 0, (16, 5), indirect, event_idx);
    ring.set_in_order();
    let mut device = InOrder::<R>::new(&ring.config(), memory.translator(), event_idx).expect("a ring");
    for round in 0..70_000u32 {
        let turn = (round % 5) as u16;
        let slots: Vec<u16> = (0..1 + turn).map(|index| (index * 2 + turn) % 5).collect();
        slots.iter().for_each(|&slot| ring.add(slot, &chain(slot, if slot == 2 { 0 } else { 512 })));
        ring.publish();
        let taken = take(&mut device, &memory);
        let expected = |slot| if slot == 2 { 1 } else { 513 };
        let lengths: Vec<u32> = slots.iter().map(|&slot| expected(slot)).collect();
        assert_eq!(taken.iter().map(|&(_, length)| length).collect::<Vec<_>>(), lengths, "round {round}");
        for &(head, length) in taken.iter().rev() {
            // Now and then less than everything, so that a run ends within.
            device.push_used(head, if (round + u32::from(head)).is_multiple_of(7) { 0 } else { length });
            device.publish();
        }
        for &slot in &slots {
            assert_eq!(ring.pop(), Ok(Some(slot)), "round {round}");
        }
        assert_eq!((ring.pop(), ring.in_flight()), (Ok(None), 0));
    }
}

#[test]
fn runs_come_back_in_the_order_in_which_they_were_made() {
    for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        rounds::<SplitRing>(RingKind::Split, indirect, event_idx);
        rounds::<PackedRing>(RingKind::Packed, indirect, event_idx);
    }
}

#[test]
fn a_driver_does_not_sleep_within_a_run() {
    fn check<R: UsedRuns>(kind: RingKind) {
        let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("memory");
        let mut ring = EitherRing::new(kind, &memory, 0, (16, 5), false, true);
        ring.set_in_order();
        let mut device = InOrder::<R>::new(&ring.config(), memory.translator(), true).expect("a ring");
        (0..3).for_each(|slot| ring.add(slot, &chain(slot, 512)));
        ring.publish();
        take(&mut device, &memory).iter().for_each(|&(head, length)| device.push_used(head, length));
        device.publish();
        for slot in 0..3 {
            assert!(!ring.arm(), "something has come back");
            assert_eq!(ring.pop(), Ok(Some(slot)));
        }
        assert!(ring.arm());
    }
    check::<SplitRing>(RingKind::Split);
    check::<PackedRing>(RingKind::Packed);
}

#[test]
fn a_device_that_breaks_the_order_is_found_out() {
    let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("memory");
    let mut ring = EitherRing::new(RingKind::Split, &memory, 0, (16, 5), true, true);
    ring.set_in_order();
    let mut device = SplitRing::new(&ring.config(), memory.translator(), true).expect("a ring");
    (0..3).for_each(|slot| ring.add(slot, &chain(slot, 512)));
    ring.publish();
    let heads = take(&mut device, &memory);
    device.push_used(heads[1].0, 513);
    device.publish();
    assert_eq!(ring.pop(), Err(RingError::Run(2, 1)), "the second of three, and the index of one");
}
