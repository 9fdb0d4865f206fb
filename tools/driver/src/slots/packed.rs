//! A packed virtqueue (virtio 1.3, 2.8) as the Linux driver runs it.
use super::{
    order::Order,
    ring::{CHAIN_LENGTH, Chain, Ring, RingError},
};
use crate::{
    layout::{AVAILABLE, INDIRECT, NEXT, PackedDescriptor, USED, WRITE},
    packed::PackedDriver,
    place::Place,
};
use pollux_core::{
    memory::{GuestMemory, Translator},
    ring::QueueConfig,
};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Bytes that an indirect table takes: three descriptors, and not two tables in one cache line.
const TABLE_BYTES: u64 = 64;
/// In an event suppression structure, above the offset: no notifications; those for the descriptor that the offset
/// names.
const EVENTS_DISABLE: u32 = 1 << 16;
const EVENTS_DESCRIPTOR: u32 = 2 << 16;

/// The driver's side of one packed ring. The buffer ID of a request is its slot.
#[derive(Debug)]
pub struct PackedRing {
    descriptors: *mut [u64; 2],
    driver_events: *mut u32,
    device_events: *const u32,
    /// Indirect tables; null: chains are direct.
    tables: *mut PackedDescriptor,
    tables_address: u64,
    size: u16,
    event_idx: bool,
    next: Place,
    used: Place,
    /// The first descriptor that the device cannot see yet, and its second half.
    held: Option<(u16, u64)>,
    /// Descriptors added since the last publication.
    added: u16,
    /// Descriptors of the request in each slot; 0: it is not in flight.
    lengths: Box<[u8]>,
    count: u16,
    /// The requests in flight, if the device keeps their order.
    order: Option<Order>,
    config: QueueConfig,
    _memory: Translator,
}

// SAFETY: the pointers lead to a shared mapping that `_memory` keeps alive; one thread at a time has the ring.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// Bytes of guest memory, from a page border on, for a ring of `size` and `slots` requests.
    pub fn bytes(size: u16, slots: u16) -> u64 {
        PackedDriver::bytes(size) + (TABLE_BYTES * u64::from(slots)).next_multiple_of(4096)
    }

    /// Lays out a ring at guest-physical `base`, a page border.
    ///
    /// # Panics
    /// The slots do not fit into the ring, or it is not in guest memory.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, slots: u16, indirect: bool, event_idx: bool) -> Self {
        let slots_max = if indirect { size } else { size / CHAIN_LENGTH };
        assert!(slots <= slots_max, "{slots} slots fit a ring of {size}");
        // The layout is that of the tests' driver.
        let config = PackedDriver::new(memory, base, size, event_idx).config();
        let mut translator = memory.translator();
        let start = translator.translate(base, Self::bytes(size, slots)).expect("the ring lies in guest memory");
        let at = |address: u64| start.wrapping_add((address - base) as usize);
        let tables_address = base + PackedDriver::bytes(size);
        let ring = PackedRing {
            descriptors: at(config.descriptors).cast(),
            driver_events: at(config.driver_area).cast(),
            device_events: at(config.device_area).cast_const().cast(),
            tables: if indirect { at(tables_address).cast() } else { std::ptr::null_mut() },
            tables_address,
            size,
            event_idx,
            next: Place::START,
            used: Place::START,
            held: None,
            added: 0,
            lengths: vec![0; slots.into()].into(),
            count: 0,
            order: None,
            config,
            _memory: translator,
        };
        ring.write_events(EVENTS_DISABLE);
        ring
    }

    /// From now on, which is before the first request, the device gives requests back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        self.order = Some(Order::new(self.lengths.len() as u16));
    }

    /// Puts a descriptor into the next place. The first one after a publication is held back, so that the device sees
    /// none of them.
    #[inline(always)]
    fn push(&mut self, address: u64, length: u32, id: u16, flags: u16) {
        let Place { index, .. } = self.next;
        let flags = flags | self.next.available();
        let rest = u64::from(length) | u64::from(id) << 32 | u64::from(flags) << 48;
        // SAFETY: a place in the ring is below its size.
        unsafe { self.descriptors.add(index.into()).cast::<u64>().write_volatile(address) };
        if self.held.is_none() {
            self.held = Some((index, rest));
        } else {
            self.second_half(index).store(rest, Ordering::Relaxed);
        }
        self.next = self.next.advanced(1, self.size);
        self.added += 1;
    }

    /// Length, buffer ID and flags of a descriptor.
    #[inline(always)]
    fn second_half(&self, index: u16) -> &AtomicU64 {
        // SAFETY: a place in the ring is below its size, and the ring is aligned to 16 bytes.
        unsafe { AtomicU64::from_ptr(self.descriptors.add(index.into()).cast::<u64>().add(1)) }
    }

    /// The second half of the next used descriptor, if there is one.
    #[inline(always)]
    fn next_used(&self) -> Option<u64> {
        // Partner: the device's release store of the first used descriptor of a batch.
        let rest = self.second_half(self.used.index).load(Ordering::Acquire);
        ((rest >> 48) as u16 & (AVAILABLE | USED) == self.used.used()).then_some(rest)
    }

    fn write_events(&self, events: u32) {
        // SAFETY: `new` translated the structure, which is aligned.
        unsafe { AtomicU32::from_ptr(self.driver_events) }.store(events, Ordering::Relaxed);
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
        if self.tables.is_null() {
            for (address, bytes, flags) in buffers(chain) {
                self.push(address, bytes, slot, flags);
                length += 1;
            }
            self.lengths[usize::from(slot)] = length;
            return;
        }
        let offset = TABLE_BYTES * u64::from(slot);
        for (address, bytes, flags) in buffers(chain) {
            // All entries of a table are used, whatever NEXT says, which must not be there (virtio 1.3, 2.8.7).
            let entry = PackedDescriptor { address, length: bytes, id: 0, flags: flags & WRITE };
            // SAFETY: `new` reserved a table for each slot, with room for the longest chain.
            unsafe { self.tables.byte_add(offset as usize).add(length.into()).write_volatile(entry) };
            length += 1;
        }
        self.push(self.tables_address + offset, 16 * u32::from(length), slot, INDIRECT);
        self.lengths[usize::from(slot)] = 1;
    }

    #[inline]
    fn show(&mut self) {
        if let Some((index, rest)) = self.held.take() {
            // Partner: the device's acquire load of the flags, before it reads the rest of the chain.
            self.second_half(index).store(rest, Ordering::Release);
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.show();
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return false;
        }
        // Partner: the device's fence between asking for kicks and looking at the ring once more (2.8.21.3).
        fence(Ordering::SeqCst);
        // SAFETY: `new` translated the structure, which is aligned.
        let events = unsafe { self.device_events.read_volatile() };
        match events & 3 << 16 {
            EVENTS_DISABLE => false,
            EVENTS_DESCRIPTOR if self.event_idx => {
                // Did we pass the event? Where it is of the lap before, it lies a ring's size further back.
                let lap = if (events & 0x8000 != 0) == self.next.wrap { 0 } else { self.size };
                let behind = self.next.index.wrapping_add(lap).wrapping_sub(events as u16 & 0x7fff);
                behind.wrapping_sub(1) < added
            }
            _ => true,
        }
    }

    #[inline]
    fn pop(&mut self) -> Result<Option<u16>, RingError> {
        let slot = match &mut self.order {
            Some(order) if order.is_within_run() => order.pop(),
            _ => {
                let Some(rest) = self.next_used() else { return Ok(None) };
                let slot = (rest >> 32) as u16;
                if self.lengths.get(usize::from(slot)).is_none_or(|&length| length == 0) {
                    return Err(RingError::NotInFlight(slot.into()));
                }
                match &mut self.order {
                    Some(order) => {
                        order.begin_run(slot, self.count)?;
                        order.pop()
                    }
                    None => slot,
                }
            }
        };
        let length = std::mem::take(&mut self.lengths[usize::from(slot)]);
        self.used = self.used.advanced(length.into(), self.size);
        self.count -= 1;
        Ok(Some(slot))
    }

    #[inline]
    fn silence(&mut self) {
        // A flag: nothing comes round.
    }

    fn arm(&mut self) -> bool {
        self.write_events(if self.event_idx { EVENTS_DESCRIPTOR | u32::from(self.used.bits()) } else { 0 });
        // Partner: the device's fence between its used descriptors and its look at our event (2.8.22).
        fence(Ordering::SeqCst);
        let is_within_run = self.order.as_ref().is_some_and(Order::is_within_run);
        let nothing = !is_within_run && self.next_used().is_none();
        if !nothing {
            self.write_events(EVENTS_DISABLE);
        }
        nothing
    }

    fn config(&self) -> QueueConfig {
        self.config
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
            let flags = u64::from(AVAILABLE | USED) << 48;
            ring.second_half(0).store(flags | id << 32, Ordering::Release);
            assert_eq!(ring.pop(), Err(RingError::NotInFlight(id as u32)));
        }
    }
}
