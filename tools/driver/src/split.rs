//! The driver's side of a split virtqueue (virtio 1.3, 2.7).
use super::{
    in_order::Order,
    layout::{Buffer, Descriptor, INDIRECT, NEXT, WRITE},
};
use pollux_core::{
    memory::{GuestMemory, Translator},
    ring::QueueConfig,
};
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU16, Ordering, fence},
};

/// The driver of one split ring.
#[derive(Debug)]
pub struct SplitDriver {
    memory: Translator,
    config: QueueConfig,
    descriptors: *mut Descriptor,
    available: *mut u16,
    used: *mut u16,
    available_index: u16,
    /// The index that the device can see.
    published_index: u16,
    last_used: u16,
    /// Taken from the front; in use in ring order if the device keeps the order (virtio 1.3, 2.7.5), otherwise the
    /// newest first.
    free: VecDeque<u16>,
    /// The chains that the device has, if it keeps their order.
    order: Option<Order>,
    event_idx: bool,
}

// SAFETY: the pointers lead to a shared mapping that `memory` keeps alive.
unsafe impl Send for SplitDriver {}

impl SplitDriver {
    /// Bytes that a ring of `size` takes, from a page border on.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size + 6 + 2 * size).next_multiple_of(4096) + (6 + 8 * size).next_multiple_of(4096)
    }

    /// Lays out a ring of `size` at guest-physical `base`, a page border.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let driver_area = base + 16 * entries;
        let device_area = base + (16 * entries + 6 + 2 * entries).next_multiple_of(4096);
        let mut translator = memory.translator();
        let start = translator.translate(base, Self::bytes(size)).expect("the ring lies in guest memory");
        // SAFETY: the range was just translated, and nobody uses it yet.
        unsafe { start.write_bytes(0, Self::bytes(size) as usize) };
        let at = |address: u64| start.wrapping_add((address - base) as usize);
        SplitDriver {
            config: QueueConfig { size, descriptors: base, driver_area, device_area },
            descriptors: start.cast(),
            available: at(driver_area).cast(),
            used: at(device_area).cast(),
            available_index: 0,
            published_index: 0,
            last_used: 0,
            free: (0..size).collect(),
            order: None,
            event_idx,
            memory: translator,
        }
    }

    /// Where the ring is, for the device.
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    /// Describes `buffers` as one chain and puts its head into the available ring, without showing it to the device
    /// yet. `None`: not enough free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if self.free.len() < buffers.len() || buffers.is_empty() {
            return None;
        }
        let chain: Vec<u16> = (0..buffers.len()).filter_map(|_| self.free.pop_front()).collect();
        for (index, buffer) in buffers.iter().enumerate() {
            let next = chain.get(index + 1);
            self.write_descriptor(chain[index], describe(buffer, next.copied()));
        }
        self.note(chain[0], buffers);
        self.push_head(chain[0]);
        Some(chain[0])
    }

    /// As [`add`](Self::add), by an indirect table at guest-physical `table`.
    pub fn add_indirect(&mut self, buffers: &[Buffer], table: u64) -> Option<u16> {
        let head = self.free.pop_front()?;
        for (index, buffer) in buffers.iter().enumerate() {
            let next = (index + 1 < buffers.len()).then_some(index as u16 + 1);
            self.write(table + 16 * index as u64, describe(buffer, next));
        }
        let length = 16 * buffers.len() as u32;
        self.write_descriptor(head, Descriptor { address: table, length, flags: INDIRECT, next: 0 });
        self.note(head, buffers);
        self.push_head(head);
        Some(head)
    }

    /// From now on, which is before the first chain, the device gives chains back in their order (IN_ORDER).
    pub fn set_in_order(&mut self) {
        self.order = Some(Order::default());
    }

    /// The order that the device keeps.
    pub fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    fn note(&mut self, head: u16, buffers: &[Buffer]) {
        if let Some(order) = &mut self.order {
            order.add(head, buffers);
        }
    }

    /// Puts `head` into the available ring, whatever it is.
    #[inline]
    pub fn push_head(&mut self, head: u16) {
        let slot = self.available_index & (self.config.size - 1);
        // SAFETY: the available ring has `size` entries after two words; `new` translated them.
        unsafe { self.available.add(2 + usize::from(slot)).write_volatile(head) };
        self.available_index = self.available_index.wrapping_add(1);
    }

    /// Shows the device all chains that were added. Returns whether it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published_index, self.available_index);
        self.set_available_index(self.available_index);
        // Partner: the fence of the device's `enable_kicks` (virtio 1.3, 2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.available_event();
            self.published_index.wrapping_sub(event).wrapping_sub(1) < self.published_index.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        }
    }

    /// Stores the available index, whatever it is.
    #[inline]
    pub fn set_available_index(&mut self, index: u16) {
        // Partner: the device's load in `SplitRing::pop`.
        // SAFETY: the index is the second word of the available ring.
        unsafe { AtomicU16::from_ptr(self.available.add(1)) }.store(index, Ordering::Release);
    }

    /// The available index as the driver counts it.
    pub fn available_index(&self) -> u16 {
        self.available_index
    }

    /// The next chain that the device has given back: its head and the number of bytes written. Its descriptors are
    /// free again.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let (head, length) = match &self.order {
            None => self.peek_used()?,
            Some(order) if order.is_within_run() => self.order.as_mut()?.pop()?,
            Some(_) => {
                let (last, written) = self.peek_used()?;
                let count = self.used_count();
                let order = self.order.as_mut()?;
                order.begin_run(last, written);
                assert!(
                    order.run_length() <= count.into(),
                    "chain {last} is not among the {count} that were given back"
                );
                order.pop()?
            }
        };
        self.last_used = self.last_used.wrapping_add(1);
        self.release(head);
        Some((head, length))
    }

    /// Number of chains given back and not yet popped.
    #[inline]
    pub fn used_count(&self) -> u16 {
        // Partner: the device's store in `SplitRing::publish`.
        // SAFETY: the index is the second word of the used ring.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }.load(Ordering::Acquire).wrapping_sub(self.last_used)
    }

    /// The used index that the device has published.
    pub fn used_index(&self) -> u16 {
        self.last_used.wrapping_add(self.used_count())
    }

    /// See [`RingDriver::base`](super::RingDriver::base).
    pub fn base(&self, taken_all: bool) -> u32 {
        if taken_all { self.available_index.into() } else { self.used_index().into() }
    }

    /// Takes `count` used chains without looking at them and without freeing their descriptors, for benchmarks that
    /// reuse chains.
    #[inline]
    pub fn skip_used(&mut self, count: u16) {
        self.last_used = self.last_used.wrapping_add(count);
    }

    fn peek_used(&self) -> Option<(u16, u32)> {
        if self.used_count() == 0 {
            return None;
        }
        let slot = usize::from(self.last_used & (self.config.size - 1));
        // SAFETY: the used ring has `size` elements of 8 bytes after two words.
        let element = unsafe { self.used.add(2 + 4 * slot).cast::<[u32; 2]>().read_volatile() };
        Some((element[0] as u16, element[1]))
    }

    fn release(&mut self, head: u16) {
        let mut index = head;
        for _ in 0..self.config.size {
            let descriptor = self.read_descriptor(index);
            if self.order.is_some() {
                self.free.push_back(index)
            } else {
                self.free.push_front(index)
            }
            if descriptor.flags & NEXT == 0 || descriptor.flags & INDIRECT != 0 {
                return;
            }
            index = descriptor.next;
        }
    }

    /// Writes one descriptor of the table.
    #[inline]
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        assert!(index < self.config.size);
        // SAFETY: the index was checked.
        unsafe { self.descriptors.add(index.into()).write_volatile(descriptor) };
    }

    /// Reads one descriptor of the table.
    pub fn read_descriptor(&self, index: u16) -> Descriptor {
        assert!(index < self.config.size);
        // SAFETY: the index was checked.
        unsafe { self.descriptors.add(index.into()).read_volatile() }
    }

    /// Writes any value to guest memory.
    pub fn write<T: Copy>(&mut self, address: u64, value: T) {
        let target = self.memory.translate(address, size_of::<T>() as u64).expect("an address in guest memory");
        // SAFETY: the range was just translated.
        unsafe { target.cast::<T>().write_unaligned(value) };
    }

    /// Asks for interrupts or not: the flag without EVENT_IDX, the event index with it. `true`: with the next used
    /// chain.
    pub fn want_interrupts(&mut self, wanted: bool) {
        let event = if wanted { self.last_used } else { self.last_used.wrapping_sub(0x8000) };
        // SAFETY: flags and event are the first and the last word of the available ring.
        unsafe {
            self.available.write_volatile((!wanted).into());
            self.available.add(2 + usize::from(self.config.size)).write_volatile(event);
        }
        // Partner: the fence in `SplitRing::needs_signal`.
        fence(Ordering::SeqCst);
    }

    /// The device's NO_NOTIFY flag.
    pub fn used_flags(&self) -> u16 {
        // SAFETY: the first word of the used ring.
        unsafe { self.used.read_volatile() }
    }

    /// The device's avail_event.
    pub fn available_event(&self) -> u16 {
        // SAFETY: the last word of the used ring.
        unsafe { self.used.add(2 + 4 * usize::from(self.config.size)).read_volatile() }
    }
}

fn describe(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let flags = if buffer.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
    Descriptor { address: buffer.address, length: buffer.length, flags, next: next.unwrap_or(0) }
}
