//! A packed virtqueue (virtio 1.3, 2.8) as the Linux driver runs it.
use super::{
    ring::{CHAIN_LENGTH, Chain, Ring, RingError},
    tables::{self, Tables},
};
use crate::{
    layout::{INDIRECT, NEXT, PackedDescriptor, WRITE},
    memory,
    order::Order,
    packed_memory::{EVENTS_DESCRIPTOR, EVENTS_DISABLE, PackedMemory},
    place::Place,
};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};

/// The driver's side of one packed ring. The buffer ID of a request is its slot.
#[derive(Debug)]
pub struct PackedRing {
    ring: PackedMemory,
    /// Indirect tables; `None`: chains are direct.
    tables: Option<Tables<PackedDescriptor>>,
    used: Place,
    /// Descriptors of the request in each slot; 0: it is not in flight.
    lengths: Box<[u8]>,
    count: u16,
    /// The requests in flight, if the device keeps their order.
    order: Option<Order>,
}

impl PackedRing {
    /// Bytes of guest memory, from a page border on, for a ring of `size` and `slots` requests.
    pub fn bytes(size: u16, slots: u16) -> u64 {
        PackedMemory::bytes(size) + tables::bytes(slots)
    }

    /// Lays out a ring at guest-physical `base`, a page border.
    ///
    /// # Panics
    /// The slots do not fit into the ring, or it is not in guest memory.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, slots: u16, indirect: bool, event_idx: bool) -> Self {
        let slots_max = if indirect { size } else { size / CHAIN_LENGTH };
        assert!(slots <= slots_max, "{slots} slots fit a ring of {size}");
        let memory = PackedMemory::new(memory, base, size, event_idx);
        let tables = indirect.then(|| Tables::new(&memory.memory, base + PackedMemory::bytes(size), slots));
        let mut ring = PackedRing {
            ring: memory,
            tables,
            used: Place::START,
            lengths: vec![0; slots.into()].into(),
            count: 0,
            order: None,
        };
        ring.ring.write_events(EVENTS_DISABLE);
        ring
    }

    /// From now on, which is before the first request, the device gives requests back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        self.order = Some(Order::new(self.lengths.len() as u16));
    }
}

/// The buffers of a chain: address, length, flags.
#[inline(always)]
fn buffers(chain: &Chain) -> impl Iterator<Item = (u64, u32, u16)> {
    let data =
        (chain.length > 0).then_some((chain.data, chain.length, if chain.device_writes { NEXT | WRITE } else { NEXT }));
    [Some((chain.header, 16, NEXT)), data, Some((chain.status, 1, WRITE))].into_iter().flatten()
}

impl Ring for PackedRing {
    #[inline]
    fn add(&mut self, slot: u16, chain: &Chain) {
        debug_assert_eq!(self.lengths[usize::from(slot)], 0, "slot {slot} is free");
        self.count += 1;
        if let Some(order) = &mut self.order {
            order.add(slot);
        }
        let mut length = 0;
        let Some(tables) = &mut self.tables else {
            for (address, bytes, flags) in buffers(chain) {
                self.ring.push(PackedDescriptor { address, length: bytes, id: slot, flags });
                length += 1;
            }
            self.lengths[usize::from(slot)] = length;
            return;
        };
        for (address, bytes, flags) in buffers(chain) {
            // All entries of a table are used, whatever NEXT says, which must not be there (virtio 1.3, 2.8.7).
            let entry = PackedDescriptor { address, length: bytes, id: 0, flags: flags & WRITE };
            tables.write(slot, length.into(), entry);
            length += 1;
        }
        let (address, length) = (tables.address(slot), 16 * u32::from(length));
        self.ring.push(PackedDescriptor { address, length, id: slot, flags: INDIRECT });
        self.lengths[usize::from(slot)] = 1;
    }

    #[inline]
    fn show(&mut self) {
        self.ring.show();
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    #[inline]
    fn pop(&mut self) -> Result<Option<u16>, RingError> {
        let slot = match &mut self.order {
            Some(order) if order.is_within_run() => order.pop(),
            _ => {
                let Some(rest) = self.ring.used_at(self.used) else { return Ok(None) };
                let slot = (rest >> 32) as u16;
                if self.lengths.get(usize::from(slot)).is_none_or(|&length| length == 0) {
                    return Err(RingError::NotInFlight(slot.into()));
                }
                match &mut self.order {
                    Some(order) => {
                        let most = self.count;
                        order.begin_run(slot, most).map_err(|length| RingError::Run(length, most))?;
                        order.pop()
                    }
                    None => slot,
                }
            }
        };
        let length = std::mem::take(&mut self.lengths[usize::from(slot)]);
        self.used = self.used.advanced(length.into(), self.ring.config.size);
        self.count -= 1;
        Ok(Some(slot))
    }

    #[inline]
    fn silence(&mut self) {
        // A flag: nothing comes round.
    }

    fn arm(&mut self) -> bool {
        let next = EVENTS_DESCRIPTOR | u32::from(self.used.bits());
        self.ring.write_events(if self.ring.event_idx { next } else { 0 });
        memory::before_looking_again();
        let is_within_run = self.order.as_ref().is_some_and(Order::is_within_run);
        let nothing = !is_within_run && self.ring.used_at(self.used).is_none();
        if !nothing {
            self.ring.write_events(EVENTS_DISABLE);
        }
        nothing
    }

    fn config(&self) -> QueueConfig {
        self.ring.config
    }

    fn base(&self) -> Option<u16> {
        None
    }

    fn replay(&mut self) -> bool {
        // The device has written over descriptors of requests that it had not finished.
        self.count == 0
    }

    fn in_flight(&self) -> u16 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::CHAIN, *};
    use crate::layout::{AVAILABLE, USED};
    use pollux_core::ring::Ring as _;

    /// A ring of 16 with 5 slots, and the device's side of it from the dataplane.
    fn pair(indirect: bool, event_idx: bool) -> (PackedRing, pollux_core::ring::PackedRing) {
        let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("memory");
        let ring = PackedRing::new(&memory, 0, 16, 5, indirect, event_idx);
        let device =
            pollux_core::ring::PackedRing::new(&ring.config(), memory.translator(), event_idx).expect("a ring");
        (ring, device)
    }

    #[test]
    fn a_device_that_breaks_the_ring_is_found_out() {
        for id in [1, 9000] {
            let (mut ring, _device) = pair(false, true);
            ring.add(0, &CHAIN);
            ring.publish();
            // A used descriptor of the first lap, with an ID that is not on its way.
            ring.ring
                .write_descriptor(0, PackedDescriptor { id, flags: AVAILABLE | USED, ..PackedDescriptor::default() });
            assert_eq!(ring.pop(), Err(RingError::NotInFlight(id.into())));
        }
    }
}
