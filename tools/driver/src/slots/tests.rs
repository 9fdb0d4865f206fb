//! What both kinds of ring must do, with the device's side of them from the dataplane.
use super::{
    either::EitherRing,
    ring::{Chain, Ring},
};
use pollux_abi::block_v1::Segment;
use pollux_core::{
    memory::{GuestMemory, Translator},
    ring::{PackedRing, Ring as Device, RingKind, SegmentList, SplitRing},
};

pub(super) const CHAIN: Chain =
    Chain { header: 0x8000, data: 0x9000, length: 512, device_writes: true, status: 0x8010 };

/// A ring of 16 with 5 slots, and its device.
struct Pair<D> {
    ring: EitherRing,
    device: D,
    data: Translator,
}

impl<D: Device> Pair<D> {
    fn new(kind: RingKind, indirect: bool, event_idx: bool) -> Self {
        let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("memory");
        let ring = EitherRing::new(kind, &memory, 0, (16, 5), indirect, event_idx);
        let device = D::new(&ring.config(), memory.translator(), event_idx).expect("a ring");
        Pair { ring, device, data: memory.translator() }
    }

    /// Bytes that the device reads and writes of a chain.
    fn bytes(&mut self, chain: u16) -> (u64, u64) {
        let empty = Segment { base: std::ptr::null_mut(), length: 0 };
        let (mut inline, mut overflow) = ([empty; 8], [empty; 8]);
        let mut list = SegmentList::new(&mut inline, &mut overflow);
        let chain = self.device.walk(chain, &mut self.data, &mut list).expect("a good chain");
        (chain.readable_bytes, chain.writable_bytes)
    }
}

/// The chains that the device finds.
pub(super) fn take(device: &mut impl Device) -> Vec<u16> {
    let mut chains = [0; 16];
    let count = device.pop(&mut chains).expect("an honest driver");
    chains[..count].to_vec()
}

fn chains_arrive_as_they_were_described_and_come_back_in_any_order<D: Device>(kind: RingKind) {
    for indirect in [false, true] {
        let mut pair = Pair::<D>::new(kind, indirect, true);
        // Several laps, since 16 is no multiple of 5.
        for lap in 0..20 {
            pair.ring.add(3, &CHAIN);
            pair.ring.add(1, &Chain { length: 0, ..CHAIN });
            assert!(take(&mut pair.device).is_empty(), "nothing is shown before publish");
            pair.ring.publish();
            let chains = take(&mut pair.device);
            let bytes: Vec<_> = chains.iter().map(|&chain| pair.bytes(chain)).collect();
            assert_eq!(bytes, [(16, 513), (16, 1)], "indirect: {indirect}, lap {lap}");
            pair.device.push_used(chains[1], 1);
            pair.device.push_used(chains[0], 513);
            pair.device.publish();
            let mut pop = || pair.ring.pop();
            assert_eq!((pop(), pop(), pop()), (Ok(Some(1)), Ok(Some(3)), Ok(None)));
        }
    }
}

fn the_driver_kicks_exactly_when_the_device_asks_for_it<D: Device>(kind: RingKind) {
    for event_idx in [false, true] {
        let Pair { mut ring, mut device, .. } = Pair::<D>::new(kind, false, event_idx);
        let mut kicks = Vec::new();
        for turn in 0..40_000u32 {
            if turn % 1000 == 7 {
                device.enable_kicks();
            }
            ring.add(0, &CHAIN);
            if ring.publish() {
                kicks.push(turn);
            }
            device.disable_kicks();
            take(&mut device).into_iter().for_each(|chain| device.push_used(chain, 1));
            device.publish();
            assert_eq!(ring.pop(), Ok(Some(0)));
            ring.silence();
            assert!(!device.needs_signal(), "turn {turn}: the driver polls");
        }
        let asked: Vec<u32> = (0..40).map(|thousand| thousand * 1000 + 7).collect();
        assert_eq!(kicks, asked, "EVENT_IDX: {event_idx}");
    }
}

fn of_requests_shown_one_by_one_the_kick_is_asked_for_once<D: Device>(kind: RingKind) {
    for event_idx in [false, true] {
        let Pair { mut ring, mut device, .. } = Pair::<D>::new(kind, true, event_idx);
        assert!(!device.enable_kicks(), "there is nothing yet");
        for slot in 0..3 {
            ring.add(slot, &CHAIN);
            ring.show();
            assert_eq!(take(&mut device).len(), 1, "it is there without a kick");
        }
        assert!(ring.publish(), "EVENT_IDX: {event_idx}: the device has asked before the first of them");
        device.disable_kicks();
        ring.add(3, &CHAIN);
        ring.show();
        assert!(!ring.publish());
    }
}

fn an_armed_ring_gets_one_interrupt<D: Device>(kind: RingKind) {
    for event_idx in [false, true] {
        let Pair { mut ring, mut device, .. } = Pair::<D>::new(kind, true, event_idx);
        ring.add(0, &CHAIN);
        ring.publish();
        assert!(ring.arm(), "nothing has come back");
        let chains = take(&mut device);
        device.push_used(chains[0], 1);
        device.publish();
        assert!(device.needs_signal(), "EVENT_IDX: {event_idx}");
        assert!(!ring.arm(), "something has come back");
    }
}

/// Each as a test of both kinds.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod split {
            use super::*;
            $(#[test] fn $name() { super::$name::<SplitRing>(RingKind::Split); })*
        }
        mod packed {
            use super::*;
            $(#[test] fn $name() { super::$name::<PackedRing>(RingKind::Packed); })*
        }
    };
}

on_both!(
    chains_arrive_as_they_were_described_and_come_back_in_any_order,
    the_driver_kicks_exactly_when_the_device_asks_for_it,
    of_requests_shown_one_by_one_the_kick_is_asked_for_once,
    an_armed_ring_gets_one_interrupt,
);
