//! A split ring in memory (virtio 1.3, 2.7), as its driver writes and reads it: every access, with its order.
use super::{layout::Descriptor, memory::DriverMemory};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use std::sync::atomic::{AtomicU16, Ordering, fence};

/// `flags` of the available ring: no interrupts. `flags` of the used ring: no kicks.
pub(crate) const NO_NOTIFICATION: u16 = 1;

/// The ring.
#[derive(Debug)]
pub(crate) struct SplitMemory {
    descriptors: *mut Descriptor,
    available: *mut u16,
    used: *mut u16,
    size: u16,
    /// Whether both sides say by an event index when they are to be notified.
    pub(crate) event_idx: bool,
    /// Where it is, for the device.
    pub(crate) config: QueueConfig,
    pub(crate) memory: DriverMemory,
}

// SAFETY: the pointers lead to a shared mapping that `memory` keeps alive; one thread at a time has the ring.
unsafe impl Send for SplitMemory {}

impl SplitMemory {
    /// Bytes that a ring of `size` takes, from a page border on.
    pub(crate) fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size + 6 + 2 * size).next_multiple_of(4096) + (6 + 8 * size).next_multiple_of(4096)
    }

    /// Lays out a ring of `size`, a power of two, at guest-physical `base`, a page border.
    pub(crate) fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        assert!(size.is_power_of_two(), "a split ring of {size}");
        let entries = u64::from(size);
        let driver_area = base + 16 * entries;
        let device_area = base + (16 * entries + 6 + 2 * entries).next_multiple_of(4096);
        let memory = DriverMemory::new(memory);
        let start = memory.zeroed(base, Self::bytes(size));
        let at = |address: u64| start.wrapping_add((address - base) as usize);
        SplitMemory {
            descriptors: start.cast(),
            available: at(driver_area).cast(),
            used: at(device_area).cast(),
            size,
            event_idx,
            config: QueueConfig { size, descriptors: base, driver_area, device_area },
            memory,
        }
    }

    /// The place of a running index in a table of the ring's size.
    #[inline(always)]
    fn place(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Writes a descriptor of the table, around its end.
    #[inline(always)]
    pub(crate) fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        // SAFETY: the table has `size` descriptors.
        unsafe { self.descriptors.add(self.place(index)).write_volatile(descriptor) };
    }

    pub(crate) fn read_descriptor(&self, index: u16) -> Descriptor {
        // SAFETY: the table has `size` descriptors.
        unsafe { self.descriptors.add(self.place(index)).read_volatile() }
    }

    /// Puts a head into the available ring at a running index.
    #[inline(always)]
    pub(crate) fn write_available(&mut self, index: u16, head: u16) {
        // SAFETY: the available ring has `size` entries after two words.
        unsafe { self.available.add(2 + self.place(index)).write_volatile(head) };
    }

    /// The head in the available ring at a running index.
    #[cfg(test)]
    pub(crate) fn read_available(&self, index: u16) -> u16 {
        // SAFETY: the available ring has `size` entries after two words.
        unsafe { self.available.add(2 + self.place(index)).read_volatile() }
    }

    /// Shows the device all entries before a running index.
    #[inline(always)]
    pub(crate) fn show(&mut self, index: u16) {
        // Partner: the device's acquire load of the index, before it reads entries and descriptors.
        // SAFETY: the index is the second word of the available ring.
        unsafe { AtomicU16::from_ptr(self.available.add(1)) }.store(index, Ordering::Release);
    }

    /// As [`show`](Self::show). Returns whether the device wants a kick for the entries from `old` on.
    #[inline(always)]
    pub(crate) fn publish(&mut self, old: u16, new: u16) -> bool {
        self.show(new);
        // Partner: the device's fence between asking for kicks and looking at the index once more (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            new.wrapping_sub(self.available_event()).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags() & NO_NOTIFICATION == 0
        }
    }

    /// The used index as the device left it.
    #[inline(always)]
    pub(crate) fn used_index(&self) -> u16 {
        // Partner: the device's release store after it has written used elements.
        // SAFETY: the index is the second word of the used ring.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }.load(Ordering::Acquire)
    }

    /// The head in the used ring at a running index.
    #[inline(always)]
    pub(crate) fn used_head(&self, index: u16) -> u32 {
        // SAFETY: the used ring has `size` elements of 8 bytes after two words.
        unsafe { self.used.add(2 + 4 * self.place(index)).cast::<u32>().read_volatile() }
    }

    /// The number of bytes written that stands beside [`used_head`](Self::used_head).
    #[inline(always)]
    pub(crate) fn used_length(&self, index: u16) -> u32 {
        // SAFETY: as above; it is the second half of the element.
        unsafe { self.used.add(4 + 4 * self.place(index)).cast::<u32>().read_volatile() }
    }

    /// The device's flags.
    #[inline(always)]
    pub(crate) fn used_flags(&self) -> u16 {
        // SAFETY: the first word of the used ring.
        unsafe { self.used.read_volatile() }
    }

    /// The device's avail_event.
    #[inline(always)]
    pub(crate) fn available_event(&self) -> u16 {
        // SAFETY: the last word of the used ring.
        unsafe { self.used.add(2 + 4 * usize::from(self.size)).read_volatile() }
    }

    /// Writes the driver's flags.
    #[inline(always)]
    pub(crate) fn write_available_flags(&mut self, flags: u16) {
        // SAFETY: the first word of the available ring.
        unsafe { self.available.write_volatile(flags) };
    }

    /// Writes the driver's used_event.
    #[inline(always)]
    pub(crate) fn write_used_event(&mut self, event: u16) {
        // SAFETY: the last word of the available ring.
        unsafe { self.available.add(2 + usize::from(self.size)).write_volatile(event) };
    }
}
