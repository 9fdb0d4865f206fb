//! A packed ring in memory (virtio 1.3, 2.8), as its driver writes and reads it: every access, with its order.
use super::{
    layout::{AVAILABLE, PackedDescriptor, USED},
    memory::DriverMemory,
    place::Place,
};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// In an event suppression structure, above the offset: no notifications.
pub(crate) const EVENTS_DISABLE: u32 = 1 << 16;
/// Likewise: those for the descriptor that the offset names.
pub(crate) const EVENTS_DESCRIPTOR: u32 = 2 << 16;

/// The ring, and how far the driver has written it.
#[derive(Debug)]
pub(crate) struct PackedMemory {
    descriptors: *mut PackedDescriptor,
    driver_events: *mut u32,
    device_events: *const u32,
    size: u16,
    /// Whether both sides say by an event index when they are to be notified.
    pub(crate) event_idx: bool,
    /// Where the next descriptor goes.
    next: Place,
    /// The first descriptor that the device cannot see yet, and its second half.
    held: Option<(u16, u64)>,
    /// Descriptors added since the last publication.
    added: u16,
    /// Where it is, for the device.
    pub(crate) config: QueueConfig,
    pub(crate) memory: DriverMemory,
}

// SAFETY: the pointers lead to a shared mapping that `memory` keeps alive; one thread at a time has the ring.
unsafe impl Send for PackedMemory {}

impl PackedMemory {
    /// Bytes that a ring of `size` takes, from a page border on.
    pub(crate) fn bytes(size: u16) -> u64 {
        (16 * u64::from(size) + 4).next_multiple_of(4096) + 4096
    }

    /// Lays out a ring of `size` at guest-physical `base`, a page border.
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        let driver_area = base + 16 * u64::from(size);
        let device_area = base + Self::bytes(size) - 4096;
        let memory = DriverMemory::new(memory);
        let start = memory.zeroed(base, Self::bytes(size));
        let at = |address: u64| start.wrapping_add((address - base) as usize);
        PackedMemory {
            descriptors: start.cast(),
            driver_events: at(driver_area).cast(),
            device_events: at(device_area).cast_const().cast(),
            size,
            event_idx,
            next: Place::START,
            held: None,
            added: 0,
            config: QueueConfig { size, descriptors: base, driver_area, device_area },
            memory,
        }
    }

    /// Where the next descriptor goes.
    pub(crate) fn next(&self) -> Place {
        self.next
    }

    /// Puts a descriptor into the next place and marks it available, whatever else its flags say. The first one after a
    /// publication is held back, so that the device sees none of them.
    #[inline(always)]
    pub(crate) fn push(&mut self, descriptor: PackedDescriptor) {
        let PackedDescriptor { address, length, id, flags } = descriptor;
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

    /// Length, buffer ID and flags of a descriptor of the ring.
    #[inline(always)]
    fn second_half(&self, index: u16) -> &AtomicU64 {
        debug_assert!(index < self.size);
        // SAFETY: callers have a place in the ring, which is below its size; the ring is aligned to 16 bytes.
        unsafe { AtomicU64::from_ptr(self.descriptors.add(index.into()).cast::<u64>().add(1)) }
    }

    /// Shows the device all descriptors that were added.
    #[inline(always)]
    pub(crate) fn show(&mut self) {
        if let Some((index, rest)) = self.held.take() {
            // Partner: the device's acquire load of the flags, before it reads the rest of the chain.
            self.second_half(index).store(rest, Ordering::Release);
        }
    }

    /// As [`show`](Self::show). Returns whether the device wants a kick for those added since the last call.
    #[inline(always)]
    pub(crate) fn publish(&mut self) -> bool {
        self.show();
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return false;
        }
        // Partner: the device's fence between asking for kicks and looking at the ring once more (2.8.21.3).
        fence(Ordering::SeqCst);
        let events = self.device_events();
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

    /// The second half of the used descriptor at a place, if there is one: length, buffer ID and flags.
    #[inline(always)]
    pub(crate) fn used_at(&self, place: Place) -> Option<u64> {
        assert!(place.index < self.size);
        // Partner: the device's release store of the first used descriptor of a batch.
        let rest = self.second_half(place.index).load(Ordering::Acquire);
        ((rest >> 48) as u16 & (AVAILABLE | USED) == place.used()).then_some(rest)
    }

    /// Writes the driver's event suppression structure, whatever it is.
    #[inline(always)]
    pub(crate) fn write_events(&mut self, events: u32) {
        // SAFETY: the structure is in the ring's memory, and aligned.
        unsafe { AtomicU32::from_ptr(self.driver_events) }.store(events, Ordering::Relaxed);
    }

    /// The device's event suppression structure.
    #[inline(always)]
    pub(crate) fn device_events(&self) -> u32 {
        // SAFETY: the structure is in the ring's memory, and aligned.
        unsafe { self.device_events.read_volatile() }
    }

    pub(crate) fn write_descriptor(&mut self, index: u16, descriptor: PackedDescriptor) {
        assert!(index < self.size);
        // SAFETY: the index was checked.
        unsafe { self.descriptors.add(index.into()).write_volatile(descriptor) };
    }

    pub(crate) fn read_descriptor(&self, index: u16) -> PackedDescriptor {
        assert!(index < self.size);
        // SAFETY: the index was checked.
        unsafe { self.descriptors.add(index.into()).read_volatile() }
    }
}
