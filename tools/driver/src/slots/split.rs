//! A split virtqueue (virtio 1.3, 2.7) as the Linux driver runs it.
use super::{
    ring::{CHAIN_LENGTH, Chain, Ring, RingError},
    tables::{self, Tables},
};
use crate::{
    layout::{Descriptor, INDIRECT, NEXT, WRITE},
    memory,
    order::Order,
    split_memory::{NO_NOTIFICATION, SplitMemory},
};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};

/// The driver's side of one split ring. Each slot has descriptors of its own, which are written again for every request
/// as Linux does.
#[derive(Debug)]
pub struct SplitRing {
    ring: SplitMemory,
    /// Indirect tables; `None`: chains are direct.
    tables: Option<Tables<Descriptor>>,
    available_index: u16,
    published_index: u16,
    last_used: u16,
    /// `last_used` at the last [`silence`](Ring::silence).
    silenced_at: u16,
    in_flight: Box<[bool]>,
    count: u16,
    /// If the device keeps the order of requests.
    in_order: Option<InOrder>,
}

/// What is known of requests whose device keeps their order. Their descriptors are used in the order of the table then,
/// around its end (virtio 1.3, 2.7.5), and not by slots.
#[derive(Debug)]
struct InOrder {
    order: Order,
    next_descriptor: u16,
    /// By slot: the head of its chain.
    heads: Box<[u16]>,
    /// By descriptor: the slot of the last chain that began there.
    slots: Box<[u16]>,
}

impl InOrder {
    /// A request of `slot` is made next, whose chain takes `count` descriptors of a table of `size`.
    fn add(&mut self, slot: u16, count: u16, size: u16) {
        let head = self.next_descriptor;
        self.heads[usize::from(slot)] = head;
        self.slots[usize::from(head)] = slot;
        self.next_descriptor = head.wrapping_add(count) & (size - 1);
        self.order.add(slot);
    }
}

impl SplitRing {
    /// Bytes of guest memory, from a page border on, for a ring of `size` and `slots` requests.
    pub fn bytes(size: u16, slots: u16) -> u64 {
        SplitMemory::bytes(size) + tables::bytes(slots)
    }

    /// Most slots that a ring of `size` has room for.
    pub fn slots_max(size: u16, indirect: bool) -> u16 {
        if indirect { size } else { size / CHAIN_LENGTH }
    }

    /// Lays out a ring at guest-physical `base`, a page border.
    ///
    /// # Panics
    /// The size is no power of two, the slots do not fit into it, or it is not in guest memory.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, slots: u16, indirect: bool, event_idx: bool) -> Self {
        assert!(
            size.is_power_of_two() && slots <= Self::slots_max(size, indirect),
            "{slots} slots fit a ring of {size}"
        );
        let memory = SplitMemory::new(memory, base, size, event_idx);
        let tables = indirect.then(|| Tables::new(&memory.memory, base + SplitMemory::bytes(size), slots));
        let mut ring = SplitRing {
            ring: memory,
            tables,
            available_index: 0,
            published_index: 0,
            last_used: 0,
            silenced_at: 0,
            in_flight: vec![false; slots.into()].into(),
            count: 0,
            in_order: None,
        };
        ring.silence_now();
        ring
    }

    /// From now on, which is before the first request, the device gives requests back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        let slots = self.in_flight.len() as u16;
        self.in_order = Some(InOrder {
            order: Order::new(slots),
            next_descriptor: 0,
            heads: vec![0; slots.into()].into(),
            slots: vec![0; self.ring.config.size.into()].into(),
        });
    }

    fn silence_now(&mut self) {
        self.silenced_at = self.last_used;
        if self.ring.event_idx {
            // An index that was passed long ago.
            self.ring.write_used_event(self.last_used.wrapping_sub(0x4000));
        } else {
            self.ring.write_available_flags(NO_NOTIFICATION);
        }
    }

    fn head(&self, slot: u16) -> u16 {
        if let Some(in_order) = &self.in_order {
            return in_order.heads[usize::from(slot)];
        }
        if self.tables.is_none() { slot * CHAIN_LENGTH } else { slot }
    }

    /// The slot in flight whose head is `head`.
    #[inline(always)]
    fn slot(&self, head: u32) -> Result<u16, RingError> {
        if let Some(InOrder { heads, slots, .. }) = &self.in_order {
            let slot = slots.get(head as usize).filter(|slot| {
                let slot = usize::from(**slot);
                self.in_flight[slot] && u32::from(heads[slot]) == head
            });
            return slot.copied().ok_or(RingError::NotInFlight(head));
        }
        let stride = if self.tables.is_none() { u32::from(CHAIN_LENGTH) } else { 1 };
        let slot = head / stride;
        if head.is_multiple_of(stride) && self.in_flight.get(slot as usize) == Some(&true) {
            return Ok(slot as u16);
        }
        Err(RingError::NotInFlight(head))
    }
}

/// Writes a chain into a table of `size` descriptors, a power of two, from `first` on and around the end. Returns how
/// many it takes.
#[inline(always)]
fn write_chain(size: u16, first: u16, chain: &Chain, mut write: impl FnMut(u16, Descriptor)) -> u16 {
    let mut put = |index: u16, address: u64, length: u32, flags: u16| {
        let next = if flags & NEXT != 0 { first.wrapping_add(index + 1) & (size - 1) } else { 0 };
        write(first.wrapping_add(index), Descriptor { address, length, flags, next });
    };
    put(0, chain.header, 16, NEXT);
    let mut last = 1;
    if chain.length > 0 {
        put(1, chain.data, chain.length, if chain.device_writes { NEXT | WRITE } else { NEXT });
        last = 2;
    }
    put(last, chain.status, 1, WRITE);
    last + 1
}

impl Ring for SplitRing {
    #[inline]
    fn add(&mut self, slot: u16, chain: &Chain) {
        let flag = &mut self.in_flight[usize::from(slot)];
        debug_assert!(!*flag, "slot {slot} is free");
        *flag = true;
        self.count += 1;
        let head = self.in_order.as_ref().map_or_else(|| self.head(slot), |in_order| in_order.next_descriptor);
        let size = self.ring.config.size;
        let ring = &mut self.ring;
        let count = match &mut self.tables {
            None => write_chain(size, head, chain, |index, descriptor| ring.write_descriptor(index, descriptor)),
            Some(tables) => {
                let write = |index, descriptor| tables.write(slot, index, descriptor);
                let count = write_chain(tables::LENGTH, 0, chain, write);
                let (address, length) = (tables.address(slot), 16 * u32::from(count));
                ring.write_descriptor(head, Descriptor { address, length, flags: INDIRECT, next: 0 });
                1
            }
        };
        if let Some(in_order) = &mut self.in_order {
            in_order.add(slot, count, size);
        }
        self.ring.write_available(self.available_index, head);
        self.available_index = self.available_index.wrapping_add(1);
    }

    #[inline]
    fn show(&mut self) {
        self.ring.show(self.available_index);
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published_index, self.available_index);
        self.ring.publish(old, self.available_index)
    }

    #[inline]
    fn pop(&mut self) -> Result<Option<u16>, RingError> {
        let ahead = self.ring.used_index().wrapping_sub(self.last_used);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.count {
            return Err(RingError::UsedIndex(ahead, self.count));
        }
        let is_within_run = self.in_order.as_ref().is_some_and(|in_order| in_order.order.is_within_run());
        let mut slot = if is_within_run { 0 } else { self.slot(self.ring.used_head(self.last_used))? };
        if let Some(InOrder { order, .. }) = &mut self.in_order {
            if !is_within_run {
                order.begin_run(slot, ahead).map_err(|length| RingError::Run(length, ahead))?;
            }
            slot = order.pop();
        }
        self.last_used = self.last_used.wrapping_add(1);
        self.in_flight[usize::from(slot)] = false;
        self.count -= 1;
        Ok(Some(slot))
    }

    #[inline]
    fn silence(&mut self) {
        // The event index must move before the used index has gone once round to it.
        if self.last_used.wrapping_sub(self.silenced_at) >= 0x2000 {
            self.silence_now();
        }
    }

    fn arm(&mut self) -> bool {
        if self.ring.event_idx {
            self.ring.write_used_event(self.last_used);
        } else {
            self.ring.write_available_flags(0);
        }
        memory::before_looking_again();
        let nothing = self.ring.used_index() == self.last_used;
        if !nothing {
            self.silence_now();
        }
        nothing
    }

    fn config(&self) -> QueueConfig {
        self.ring.config
    }

    fn base(&self) -> Option<u16> {
        Some(self.ring.used_index())
    }

    fn replay(&mut self) -> bool {
        if self.in_order.is_some() {
            // Those in flight are the newest, and named where they were.
            return true;
        }
        // What the device gave back and nobody has popped is finished.
        let used = self.ring.used_index();
        let mut pending = self.in_flight.clone();
        let mut index = self.last_used;
        while index != used {
            if let Ok(slot) = self.slot(self.ring.used_head(index)) {
                pending[usize::from(slot)] = false;
            }
            index = index.wrapping_add(1);
        }
        for slot in (0..pending.len() as u16).filter(|&slot| pending[usize::from(slot)]) {
            self.ring.write_available(index, self.head(slot));
            index = index.wrapping_add(1);
        }
        debug_assert_eq!(index, self.available_index, "as many requests as the indices say");
        true
    }

    fn in_flight(&self) -> u16 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{CHAIN, take},
        *,
    };
    use pollux_core::ring::Ring as _;

    /// A ring of 16 with 5 slots, and the device's side of it from the dataplane.
    fn pair(indirect: bool, event_idx: bool) -> (SplitRing, pollux_core::ring::SplitRing) {
        let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("memory");
        let ring = SplitRing::new(&memory, 0, 16, 5, indirect, event_idx);
        let device = pollux_core::ring::SplitRing::new(&ring.config(), memory.translator(), event_idx).expect("a ring");
        (ring, device)
    }

    #[test]
    fn a_device_that_breaks_the_ring_is_found_out() {
        let (mut ring, mut device) = pair(false, true);
        ring.add(0, &CHAIN);
        ring.publish();
        device.push_used(3, 1);
        device.publish();
        assert_eq!(ring.pop(), Err(RingError::NotInFlight(3)));
        let (mut ring, mut device) = pair(false, true);
        ring.add(0, &CHAIN);
        device.push_used(0, 1);
        device.push_used(0, 1);
        device.publish();
        assert_eq!(ring.pop(), Err(RingError::UsedIndex(2, 1)));
    }

    #[test]
    fn replay_names_exactly_the_requests_in_flight() {
        let (mut ring, mut device) = pair(false, true);
        for slot in 0..4 {
            ring.add(slot, &CHAIN);
        }
        ring.publish();
        let heads = take(&mut device);
        // Two finish, out of order; one of them is popped before the device is lost.
        device.push_used(heads[3], 1);
        device.publish();
        assert_eq!(ring.pop(), Ok(Some(3)));
        device.push_used(heads[1], 1);
        device.publish();
        assert_eq!(ring.base(), Some(2));
        assert!(ring.replay());
        let entries = [2, 3].map(|index| ring.ring.read_available(index));
        assert_eq!(entries, [0, 2 * CHAIN_LENGTH]);
        assert_eq!(ring.pop(), Ok(Some(1)), "what had come back before can still be popped");
        assert_eq!(ring.in_flight(), 2);
    }
}
