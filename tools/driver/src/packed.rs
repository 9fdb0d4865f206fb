//! The driver's side of a packed virtqueue (virtio 1.3, 2.8).
use super::{
    in_order::Order,
    layout::{AVAILABLE, Buffer, INDIRECT, NEXT, PackedDescriptor, USED, WRITE},
    place::Place,
};
use pollux_core::{
    memory::{GuestMemory, Translator},
    ring::QueueConfig,
};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

/// The driver of one packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    memory: Translator,
    config: QueueConfig,
    descriptors: *mut PackedDescriptor,
    driver_events: *mut u32,
    device_events: *const u32,
    /// Where the next chain goes.
    next: Place,
    /// Where the device puts the next used descriptor.
    used: Place,
    free: u16,
    free_ids: Vec<u16>,
    /// Number of descriptors, by buffer ID; 0: not on its way.
    counts: Vec<u16>,
    /// The chains that the device has, if it keeps their order.
    order: Option<Order>,
    /// The first descriptor that the device cannot see yet, and its flags.
    held: Option<(u16, u16)>,
    /// Descriptors added since the last publication.
    added: u16,
    event_idx: bool,
}

// SAFETY: the pointers lead to a shared mapping that `memory` keeps alive.
unsafe impl Send for PackedDriver {}

impl PackedDriver {
    /// Bytes that a ring of `size` takes, from a page border on.
    pub fn bytes(size: u16) -> u64 {
        (16 * u64::from(size) + 4).next_multiple_of(4096) + 4096
    }

    /// Lays out a ring of `size` at guest-physical `base`, a page border.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        let driver_area = base + 16 * u64::from(size);
        let device_area = base + Self::bytes(size) - 4096;
        let mut translator = memory.translator();
        let start = translator.translate(base, Self::bytes(size)).expect("the ring lies in guest memory");
        // SAFETY: the range was just translated, and nobody uses it yet.
        unsafe { start.write_bytes(0, Self::bytes(size) as usize) };
        let at = |address: u64| start.wrapping_add((address - base) as usize);
        PackedDriver {
            config: QueueConfig { size, descriptors: base, driver_area, device_area },
            descriptors: start.cast(),
            driver_events: at(driver_area).cast(),
            device_events: at(device_area).cast_const().cast(),
            next: Place::START,
            used: Place::START,
            free: size,
            // Taken from the end, so that IDs are not the places in the ring.
            free_ids: (0..size).collect(),
            counts: vec![0; size.into()],
            order: None,
            held: None,
            added: 0,
            event_idx,
            memory: translator,
        }
    }

    /// Where the ring is, for the device.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// Describes `buffers` as one chain, without showing it to the device yet. Returns its buffer ID. `None`: not
    /// enough free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if usize::from(self.free) < buffers.len() || buffers.is_empty() {
            return None;
        }
        let id = self.free_ids.pop()?;
        let last = buffers.len() - 1;
        for (index, buffer) in buffers.iter().enumerate() {
            // The ID counts in the last descriptor alone (virtio 1.3, 2.8.5): the others have nonsense.
            let id = if index == last { id } else { 0xdead };
            let flags = if buffer.writable { WRITE } else { 0 } | if index == last { 0 } else { NEXT };
            self.push(PackedDescriptor { address: buffer.address, length: buffer.length, id, flags });
        }
        self.take(id, buffers, buffers.len() as u16);
        Some(id)
    }

    /// As [`add`](Self::add), by an indirect table at guest-physical `table`.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        if self.free == 0 {
            return None;
        }
        let id = self.free_ids.pop()?;
        for (index, buffer) in buffers.iter().enumerate() {
            // No NEXT: all entries are used (virtio 1.3, 2.8.7).
            let flags = if buffer.writable { WRITE } else { 0 };
            let entry = PackedDescriptor { address: buffer.address, length: buffer.length, id: 0xdead, flags };
            self.write(table + 16 * index as u64, entry);
        }
        let length = 16 * buffers.len() as u32;
        self.push(PackedDescriptor { address: table, length, id, flags: INDIRECT });
        self.take(id, buffers, 1);
        Some(id)
    }

    /// From now on, which is before the first chain, the device gives chains back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        self.order = Some(Order::default());
    }

    /// The order that the device keeps.
    pub fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    fn take(&mut self, id: u16, buffers: &[Buffer], count: u16) {
        if let Some(order) = &mut self.order {
            order.add(id, buffers);
        }
        self.counts[usize::from(id)] = count;
        self.free -= count;
    }

    /// Makes a chain of one empty buffer available with this ID, whatever it is.
    pub fn add_with_id(&mut self, id: u16) {
        self.push(PackedDescriptor { id, ..PackedDescriptor::default() });
    }

    /// Puts a descriptor into the next place and marks it available, whatever else it says. The first one after a
    /// publication is not visible before the next, and so are those behind it.
    pub fn push(&mut self, descriptor: PackedDescriptor) {
        let flags = descriptor.flags | self.next.available();
        let index = self.next.index;
        if self.held.is_none() {
            self.held = Some((index, flags));
            // Not available: as it would be in the lap before.
            self.write_descriptor(index, PackedDescriptor { flags: !flags & (AVAILABLE | USED), ..descriptor });
        } else {
            self.write_descriptor(index, PackedDescriptor { flags, ..descriptor });
        }
        self.next = self.next.advanced(1, self.config.size);
        self.added += 1;
    }

    /// Shows the device all chains that were added. Returns whether it wants a kick.
    pub fn publish(&mut self) -> bool {
        let Some((index, flags)) = self.held.take() else { return false };
        let added = std::mem::take(&mut self.added);
        // Partner: the device's load in `PackedRing::pop`.
        self.flags(index).store(flags, Ordering::Release);
        // Partner: the fence of the device's `enable_kicks` (virtio 1.3, 2.8.21.3).
        fence(Ordering::SeqCst);
        let events = self.device_events();
        match events >> 16 {
            1 => false,
            2 if self.event_idx => {
                // The distance to the event in descriptors, backwards.
                let (offset, wrap) = (events as u16 & 0x7fff, events & 0x8000 != 0);
                let lap = if wrap == self.next.wrap { 0 } else { i32::from(self.config.size) };
                let behind = i32::from(self.next.index) + lap - i32::from(offset);
                (1..=i32::from(added)).contains(&behind)
            }
            _ => true,
        }
    }

    /// The next chain that the device has given back: its buffer ID and the number of bytes written. Its descriptors
    /// are free again.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let (id, written) = match &self.order {
            None => self.used_chain(self.used)?,
            Some(order) if order.is_within_run() => self.order.as_mut()?.pop()?,
            Some(_) => {
                let (last, written) = self.used_chain(self.used)?;
                let order = self.order.as_mut()?;
                order.begin_run(last, written);
                order.pop()?
            }
        };
        let count = std::mem::take(&mut self.counts[usize::from(id)]);
        assert!(count > 0, "buffer {id} is given back, which is not on its way");
        self.used = self.used.advanced(count, self.config.size);
        self.free += count;
        // The oldest is taken next, so that IDs keep changing places.
        self.free_ids.insert(0, id);
        Some((id, written))
    }

    /// Buffer ID and bytes written of the used descriptor at a place, if there is one.
    fn used_chain(&self, place: Place) -> Option<(u16, u32)> {
        let used = self.used_at(place)?;
        Some((used.id, if used.flags & WRITE != 0 { used.length } else { 0 }))
    }

    /// Number of chains given back and not yet popped.
    pub fn used_count(&self) -> u16 {
        self.given_back().0
    }

    /// Number of chains given back and not yet popped, and where the device puts the next.
    fn given_back(&self) -> (u16, Place) {
        if let Some(order) = &self.order {
            return self.given_back_in(order);
        }
        let (mut number, mut place) = (0, self.used);
        while let Some(used) = self.used_at(place)
            && number < self.config.size
        {
            number += 1;
            place = place.advanced(self.counts[usize::from(used.id)].max(1), self.config.size);
        }
        (number, place)
    }

    /// As [`given_back`](Self::given_back), of runs.
    fn given_back_in(&self, order: &Order) -> (u16, Place) {
        let (mut number, mut place) = (order.run_length(), self.used);
        let descriptors = |number: usize| order.chains().take(number).map(|id| self.counts[usize::from(id)]).sum();
        let start = place;
        loop {
            place = start.advanced(descriptors(number), self.config.size);
            let Some((last, _)) = self.used_chain(place).filter(|_| number < order.chains().count()) else { break };
            let length = order.length_to(last);
            assert!(length > number, "chain {last} is given back twice");
            number = length;
        }
        (number as u16, place)
    }

    /// The used descriptor at a place, if there is one.
    fn used_at(&self, place: Place) -> Option<PackedDescriptor> {
        // Partner: the device's store in `PackedRing::publish`.
        let flags = self.flags(place.index).load(Ordering::Acquire);
        (flags & (AVAILABLE | USED) == place.used()).then(|| self.descriptor(place.index))
    }

    /// See [`RingDriver::base`](super::RingDriver::base).
    pub fn base(&self, taken_all: bool) -> u32 {
        let (_, used) = self.given_back();
        let available = if taken_all { self.next } else { used };
        u32::from(available.bits()) | u32::from(used.bits()) << 16
    }

    /// Asks for interrupts or not: by the flags without EVENT_IDX, by the place of the next used descriptor with it.
    pub fn want_interrupts(&mut self, wanted: bool) {
        let next = u32::from(self.used.bits()) | 2 << 16;
        let events = match (wanted, self.event_idx) {
            (false, _) => 1 << 16,
            (true, false) => 0,
            (true, true) => next,
        };
        self.set_events(events);
    }

    /// Writes the driver's event suppression structure, whatever it is.
    pub fn set_events(&mut self, events: u32) {
        // SAFETY: `new` translated the structure, which is aligned.
        unsafe { AtomicU32::from_ptr(self.driver_events) }.store(events, Ordering::Relaxed);
        // Partner: the fence in `PackedRing::needs_signal`.
        fence(Ordering::SeqCst);
    }

    /// The device's event suppression structure.
    pub fn device_events(&self) -> u32 {
        // SAFETY: `new` translated the structure, which is aligned.
        unsafe { self.device_events.read_volatile() }
    }

    /// Writes one descriptor of the ring.
    pub fn write_descriptor(&mut self, index: u16, descriptor: PackedDescriptor) {
        assert!(index < self.config.size);
        // SAFETY: the index was checked.
        unsafe { self.descriptors.add(index.into()).write_volatile(descriptor) };
    }

    /// Reads one descriptor of the ring.
    pub fn descriptor(&self, index: u16) -> PackedDescriptor {
        assert!(index < self.config.size);
        // SAFETY: the index was checked.
        unsafe { self.descriptors.add(index.into()).read_volatile() }
    }

    fn flags(&self, index: u16) -> &AtomicU16 {
        assert!(index < self.config.size);
        // SAFETY: the index was checked; the flags are the last two bytes of a descriptor.
        unsafe { AtomicU16::from_ptr(&raw mut (*self.descriptors.add(index.into())).flags) }
    }

    /// Writes any value to guest memory.
    pub fn write<T: Copy>(&mut self, address: u64, value: T) {
        let target = self.memory.translate(address, size_of::<T>() as u64).expect("an address in guest memory");
        // SAFETY: the range was just translated.
        unsafe { target.cast::<T>().write_unaligned(value) };
    }
}
