//! The requests of a device that keeps their order (IN_ORDER; virtio 1.3, 2.7.9 and 2.8.8): it gives a run of them back
//! by one used element, that of the last one.
use super::ring::RingError;

/// The requests that the device has, the oldest first.
#[derive(Debug)]
pub(super) struct Order {
    /// By number, around the end: their slots.
    slots: Box<[u16]>,
    /// By slot: the number of its request.
    numbers: Box<[u16]>,
    /// Number of the next request that is added, and of the next that is popped.
    added: u16,
    popped: u16,
    /// Number of the first request behind the run that is being popped.
    run_end: u16,
}

impl Order {
    /// Of a ring that has so many slots.
    pub(super) fn new(slots: u16) -> Self {
        let room = usize::from(slots).next_power_of_two();
        let numbers = vec![0; slots.into()].into();
        Order { slots: vec![0; room].into(), numbers, added: 0, popped: 0, run_end: 0 }
    }

    #[inline(always)]
    fn place(&self, number: u16) -> usize {
        usize::from(number) & (self.slots.len() - 1)
    }

    /// A request that is made next.
    #[inline]
    pub(super) fn add(&mut self, slot: u16) {
        self.numbers[usize::from(slot)] = self.added;
        self.slots[self.place(self.added)] = slot;
        self.added = self.added.wrapping_add(1);
    }

    /// Whether the next request needs no used element of its own.
    #[inline]
    pub(super) fn is_within_run(&self) -> bool {
        self.popped != self.run_end
    }

    /// Takes up the used element of a request that is in flight: this one and all before it have been used, which may
    /// be `most`.
    ///
    /// # Errors
    /// They are more.
    #[inline]
    pub(super) fn begin_run(&mut self, last: u16, most: u16) -> Result<(), RingError> {
        let end = self.numbers[usize::from(last)].wrapping_add(1);
        let length = end.wrapping_sub(self.popped);
        if length > most {
            return Err(RingError::Run(length, most));
        }
        self.run_end = end;
        Ok(())
    }

    /// The slot of the oldest request, which is within the run.
    #[inline]
    pub(super) fn pop(&mut self) -> u16 {
        debug_assert!(self.is_within_run());
        let slot = self.slots[self.place(self.popped)];
        self.popped = self.popped.wrapping_add(1);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{Chain, EitherRing, Ring as _};
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
}
