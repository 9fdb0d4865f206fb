//! The driver's side of a packed virtqueue (virtio 1.3, 2.8), for tests.
use super::{
    in_order::InOrder,
    layout::{Buffer, INDIRECT, NEXT, PackedDescriptor, WRITE},
    memory,
    packed_memory::{EVENTS_DESCRIPTOR, EVENTS_DISABLE, PackedMemory},
    place::Place,
};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};

/// The driver of one packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    ring: PackedMemory,
    /// Where the device puts the next used descriptor.
    used: Place,
    free: u16,
    free_ids: Vec<u16>,
    /// Number of descriptors, by buffer ID; 0: not on its way.
    counts: Vec<u16>,
    /// The chains that the device has, if it keeps their order.
    order: Option<InOrder>,
}

impl PackedDriver {
    /// Bytes that a ring of `size` takes, from a page border on.
    pub fn bytes(size: u16) -> u64 {
        PackedMemory::bytes(size)
    }

    /// Lays out a ring of `size` at guest-physical `base`, a page border.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        PackedDriver {
            ring: PackedMemory::new(memory, base, size, event_idx),
            used: Place::START,
            free: size,
            // Taken from the end, so that IDs are not the places in the ring.
            free_ids: (0..size).collect(),
            counts: vec![0; size.into()],
            order: None,
        }
    }

    /// Where the ring is, for the device.
    pub fn config(&self) -> QueueConfig {
        self.ring.config
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
        self.order = Some(InOrder::new(self.config().size));
    }

    /// The order that the device keeps.
    pub fn order(&self) -> Option<&InOrder> {
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
        self.ring.push(descriptor);
    }

    /// Shows the device all chains that were added. Returns whether it wants a kick.
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// The next chain that the device has given back: its buffer ID and the number of bytes written. Its descriptors
    /// are free again.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let (id, written) = match &self.order {
            None => self.used_chain(self.used)?,
            Some(order) if order.is_within_run() => self.order.as_mut()?.pop(),
            Some(_) => {
                let (last, written) = self.used_chain(self.used)?;
                let order = self.order.as_mut()?;
                let on_their_way = order.chains().count() as u16;
                order.begin_run(last, written, on_their_way);
                order.pop()
            }
        };
        let count = std::mem::take(&mut self.counts[usize::from(id)]);
        assert!(count > 0, "buffer {id} is given back, which is not on its way");
        self.used = self.used.advanced(count, self.config().size);
        self.free += count;
        // The oldest is taken next, so that IDs keep changing places.
        self.free_ids.insert(0, id);
        Some((id, written))
    }

    /// Buffer ID and bytes written of the used descriptor at a place, if there is one.
    fn used_chain(&self, place: Place) -> Option<(u16, u32)> {
        let used = self.ring.used_at(place)?;
        Some(((used >> 32) as u16, if (used >> 48) as u16 & WRITE != 0 { used as u32 } else { 0 }))
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
        while let Some((id, _)) = self.used_chain(place)
            && number < self.config().size
        {
            number += 1;
            place = place.advanced(self.counts[usize::from(id)].max(1), self.config().size);
        }
        (number, place)
    }

    /// As [`given_back`](Self::given_back), of runs.
    fn given_back_in(&self, order: &InOrder) -> (u16, Place) {
        let (mut number, mut place) = (order.run_length(), self.used);
        let descriptors = |number: u16| order.chains().take(number.into()).map(|id| self.counts[usize::from(id)]).sum();
        let start = place;
        loop {
            place = start.advanced(descriptors(number), self.config().size);
            let Some((last, _)) = self.used_chain(place).filter(|_| usize::from(number) < order.chains().count())
            else {
                break;
            };
            let length = order.length_to(last);
            assert!(length > number, "chain {last} is given back twice");
            number = length;
        }
        (number, place)
    }

    /// See [`RingDriver::base`](super::RingDriver::base).
    pub fn base(&self, taken_all: bool) -> u32 {
        let (_, used) = self.given_back();
        let available = if taken_all { self.ring.next() } else { used };
        u32::from(available.bits()) | u32::from(used.bits()) << 16
    }

    /// Asks for interrupts or not: by the flags without EVENT_IDX, by the place of the next used descriptor with it.
    pub fn want_interrupts(&mut self, wanted: bool) {
        let next = EVENTS_DESCRIPTOR | u32::from(self.used.bits());
        let events = match (wanted, self.ring.event_idx) {
            (false, _) => EVENTS_DISABLE,
            (true, false) => 0,
            (true, true) => next,
        };
        self.set_events(events);
    }

    /// Writes the driver's event suppression structure, whatever it is.
    pub fn set_events(&mut self, events: u32) {
        self.ring.write_events(events);
        memory::before_looking_again();
    }

    /// The device's event suppression structure.
    pub fn device_events(&self) -> u32 {
        self.ring.device_events()
    }

    /// Writes one descriptor of the ring.
    pub fn write_descriptor(&mut self, index: u16, descriptor: PackedDescriptor) {
        self.ring.write_descriptor(index, descriptor);
    }

    /// Reads one descriptor of the ring.
    pub fn descriptor(&self, index: u16) -> PackedDescriptor {
        self.ring.read_descriptor(index)
    }

    /// Writes any value to guest memory.
    pub fn write<T: Copy>(&mut self, address: u64, value: T) {
        self.ring.memory.write(address, value);
    }
}
