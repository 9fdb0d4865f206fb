//! The driver's side of a split virtqueue (virtio 1.3, 2.7), for tests.
use super::{
    in_order::InOrder,
    layout::{Buffer, Descriptor, INDIRECT, NEXT, WRITE},
    memory,
    split_memory::SplitMemory,
};
use pollux_core::{memory::GuestMemory, ring::QueueConfig};
use std::collections::VecDeque;

/// The driver of one split ring.
#[derive(Debug)]
pub struct SplitDriver {
    ring: SplitMemory,
    available_index: u16,
    /// The index that the device can see.
    published_index: u16,
    last_used: u16,
    /// Taken from the front; in use in ring order if the device keeps the order (virtio 1.3, 2.7.5), otherwise the
    /// newest first.
    free: VecDeque<u16>,
    /// The chains that the device has, if it keeps their order.
    order: Option<InOrder>,
}

impl SplitDriver {
    /// Bytes that a ring of `size` takes, from a page border on.
    pub fn bytes(size: u16) -> u64 {
        SplitMemory::bytes(size)
    }

    /// Lays out a ring of `size` at guest-physical `base`, a page border.
    pub fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        SplitDriver {
            ring: SplitMemory::new(memory, base, size, event_idx),
            available_index: 0,
            published_index: 0,
            last_used: 0,
            free: (0..size).collect(),
            order: None,
        }
    }

    /// Where the ring is, for the device.
    pub fn config(&self) -> QueueConfig {
        self.ring.config
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
        self.order = Some(InOrder::new(self.config().size));
    }

    /// The order that the device keeps.
    pub fn order(&self) -> Option<&InOrder> {
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
        self.ring.write_available(self.available_index, head);
        self.available_index = self.available_index.wrapping_add(1);
    }

    /// Shows the device all chains that were added. Returns whether it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published_index, self.available_index);
        self.ring.publish(old, self.available_index)
    }

    /// Stores the available index, whatever it is.
    #[inline]
    pub fn set_available_index(&mut self, index: u16) {
        self.ring.show(index);
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
            Some(order) if order.is_within_run() => self.order.as_mut()?.pop(),
            Some(_) => {
                let (last, written) = self.peek_used()?;
                let given_back = self.used_count();
                let order = self.order.as_mut()?;
                order.begin_run(last, written, given_back);
                order.pop()
            }
        };
        self.last_used = self.last_used.wrapping_add(1);
        self.release(head);
        Some((head, length))
    }

    /// Number of chains given back and not yet popped.
    #[inline]
    pub fn used_count(&self) -> u16 {
        self.ring.used_index().wrapping_sub(self.last_used)
    }

    /// The used index that the device has published.
    pub fn used_index(&self) -> u16 {
        self.ring.used_index()
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
        Some((self.ring.used_head(self.last_used) as u16, self.ring.used_length(self.last_used)))
    }

    fn release(&mut self, head: u16) {
        let mut index = head;
        for _ in 0..self.config().size {
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
        assert!(index < self.config().size);
        self.ring.write_descriptor(index, descriptor);
    }

    /// Reads one descriptor of the table.
    pub fn read_descriptor(&self, index: u16) -> Descriptor {
        assert!(index < self.config().size);
        self.ring.read_descriptor(index)
    }

    /// Writes any value to guest memory.
    pub fn write<T: Copy>(&mut self, address: u64, value: T) {
        self.ring.memory.write(address, value);
    }

    /// Asks for interrupts or not: the flag without EVENT_IDX, the event index with it. `true`: with the next used
    /// chain.
    pub fn want_interrupts(&mut self, wanted: bool) {
        let event = if wanted { self.last_used } else { self.last_used.wrapping_sub(0x8000) };
        self.ring.write_available_flags((!wanted).into());
        self.ring.write_used_event(event);
        memory::before_looking_again();
    }

    /// The device's NO_NOTIFY flag.
    pub fn used_flags(&self) -> u16 {
        self.ring.used_flags()
    }

    /// The device's avail_event.
    pub fn available_event(&self) -> u16 {
        self.ring.available_event()
    }
}

fn describe(buffer: &Buffer, next: Option<u16>) -> Descriptor {
    let flags = if buffer.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
    Descriptor { address: buffer.address, length: buffer.length, flags, next: next.unwrap_or(0) }
}
