//! The split virtqueue (virtio 1.3, 2.7), device side.
mod inflight;

use super::{
    chain::{Chain, SegmentList},
    config::{MAX_QUEUE_SIZE, QueueConfig, RingStart},
    device_side::Ring,
    error::RingError,
    in_order::UsedRuns,
    placement::place,
    table::{Buffer, DESCRIPTOR_INDIRECT, DESCRIPTOR_NEXT, MAX_CHAIN, Table},
};
use crate::{
    event::Watch,
    fallible,
    memory::{DirtyLog, Translator, prefetch},
};
use inflight::InflightQueue;
pub(super) use inflight::inflight_bytes;
use std::{
    ptr::{read_volatile, write_volatile},
    sync::atomic::{AtomicU16, Ordering, fence},
};

const AVAILABLE_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// A descriptor as read from guest memory, once.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline(always)]
    fn new([address, rest]: [u64; 2]) -> Self {
        Descriptor { address, length: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// A split virtqueue. Owned by one worker.
#[derive(Debug)]
pub struct SplitRing {
    /// Translates the ring itself and descriptor tables; data has a translator of its own, so that the two do not
    /// push each other out of the last-hit cache.
    tables: Translator,
    descriptors: *const [u64; 2],
    available: *const u16,
    used: *mut u16,
    size: u16,
    event_idx: bool,
    next_available: u16,
    next_used: u16,
    /// Used index that the driver can see.
    published_used: u16,
    /// Used index up to which the driver has been asked whether it wants a notification.
    signalled_used: u16,
    /// The avail_event last written while polling.
    parked_event: u16,
    /// By head: the first descriptor of its chain as `pop` has read it, for `walk`.
    first: Box<[[u64; 2]]>,
    /// The record of requests in flight, for the next process.
    inflight: Option<InflightQueue>,
    /// The log of changed pages of the used ring, and the guest address of the ring.
    log: Option<(DirtyLog, u64)>,
    /// Chains that an earlier process had taken and not given back: to be taken again, the last one first.
    recovered: Vec<u16>,
}

/// The three parts of a ring in host memory.
struct Parts {
    descriptors: *const [u64; 2],
    available: *const u16,
    used: *mut u16,
}

impl Parts {
    /// # Errors
    /// The size is not allowed, or a part does not lie in guest memory or is not aligned (virtio 1.3, 2.7).
    fn find(config: &QueueConfig, tables: &mut Translator) -> Result<Self, RingError> {
        let size = config.size;
        if size == 0 || !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(size));
        }
        let entries = u64::from(size);
        let descriptors = place::<[u64; 2]>(tables, config.descriptors, 16 * entries, 16, "descriptor table")?;
        // Both rings with their event index at the end (virtio 1.3, 2.7.6 and 2.7.8).
        let available = place::<u16>(tables, config.driver_area, 6 + 2 * entries, 2, "available ring")?;
        let used = place(tables, config.device_area, 6 + 8 * entries, 4, "used ring")?;
        Ok(Parts { descriptors, available, used })
    }
}

// SAFETY: the pointers lead to a shared mapping that the translator keeps alive, and the ring has one owner at a time.
unsafe impl Send for SplitRing {}

impl Ring for SplitRing {
    fn lay_out(
        config: &QueueConfig,
        mut tables: Translator,
        event_idx: bool,
        start: RingStart,
    ) -> Result<Self, RingError> {
        let Parts { descriptors, available, used } = Parts::find(config, &mut tables)?;
        let inflight = start.inflight.map(|place| InflightQueue::new(place, config.size));
        Ok(SplitRing {
            tables,
            descriptors,
            available,
            used,
            size: config.size,
            event_idx,
            next_available: start.base.unwrap_or(0) as u16,
            next_used: 0,
            published_used: 0,
            signalled_used: 0,
            parked_event: 0,
            first: fallible::filled([0; 2], config.size.into())?,
            inflight: inflight.transpose()?,
            log: start.log.zip(start.log_used),
            recovered: Vec::new(),
        })
    }

    fn resume(&mut self) -> Result<(), RingError> {
        // SAFETY: the index is the second 16-bit word of the used ring.
        let used = unsafe { AtomicU16::from_ptr(self.used.add(1)) }.load(Ordering::Acquire);
        (self.next_used, self.published_used, self.signalled_used) = (used, used, used);
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        if let Some(found) = inflight.recover(used).map_err(RingError::Inflight)? {
            self.next_available = found.available;
            self.recovered = found.heads;
            self.recovered.reverse();
        }
        Ok(())
    }

    fn check(config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        Parts::find(config, tables).map(|_| ())
    }

    fn adopt(&mut self, config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        let Parts { descriptors, available, used } = Parts::find(config, tables)?;
        (self.descriptors, self.available, self.used) = (descriptors, available, used);
        std::mem::swap(&mut self.tables, tables);
        Ok(())
    }

    fn set_log(&mut self, log: Option<(DirtyLog, u64)>) -> Option<(DirtyLog, u64)> {
        std::mem::replace(&mut self.log, log)
    }

    fn base(&self) -> u32 {
        self.next_available.into()
    }

    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn pop(&mut self, heads: &mut [u16]) -> Result<usize, RingError> {
        // Partner: the driver's write barrier between filling the ring and storing the index (virtio 1.3, 2.7.13.3).
        let ready = self.available_index(Ordering::Acquire).wrapping_sub(self.next_available);
        if ready == 0 {
            return Ok(0);
        }
        if ready > self.size {
            return Err(RingError::AvailableIndex(ready, self.size));
        }
        let count = heads.len().min(ready.into());
        for (index, head) in heads[..count].iter_mut().enumerate() {
            let slot = self.next_available.wrapping_add(index as u16) & (self.size - 1);
            // SAFETY: the ring of `size` entries follows flags and index; `new` checked that it lies in guest memory.
            *head = unsafe { read_volatile(self.available.add(2 + usize::from(slot))) };
            if *head >= self.size {
                return Err(RingError::DescriptorIndex(*head, self.size));
            }
            prefetch(self.descriptors.wrapping_add((*head).into()));
        }
        self.read_first(&heads[..count]);
        if self.inflight.is_some() {
            self.note_taken(&heads[..count])?;
        }
        self.next_available = self.next_available.wrapping_add(count as u16);
        // The driver may be a whole ring ahead of us: move the parked event on long before its index gets there.
        if self.event_idx && self.parked_event.wrapping_sub(self.next_available) < 0x6000 {
            self.disable_kicks();
        }
        Ok(count)
    }

    #[cold]
    fn pop_recovered(&mut self, heads: &mut [u16]) -> usize {
        let count = heads.len().min(self.recovered.len());
        heads[..count].fill_with(|| self.recovered.pop().unwrap_or_default());
        self.read_first(&heads[..count]);
        let noted = self.note_taken(&heads[..count]);
        debug_assert!(noted.is_ok(), "recovered chains are taken once, and before all others");
        count
    }

    fn has_recovered_chains(&self) -> bool {
        !self.recovered.is_empty()
    }

    fn watch(&self) -> Option<Watch> {
        // SAFETY: the index is the second 16-bit word of the available ring, which `find` checked; the translator keeps
        // it mapped as long as the ring is not dropped or moved to another map.
        Some(unsafe { Watch::new(self.available.add(1), self.next_available) })
    }

    #[inline]
    fn has_available(&self) -> bool {
        self.available_index(Ordering::Acquire) != self.next_available
    }

    #[inline(always)]
    fn walk(&mut self, head: u16, data: &mut Translator, segments: &mut SegmentList<'_>) -> Result<Chain, RingError> {
        let mut chain = Chain::default();
        let mut table = Table::Host(self.descriptors, self.size);
        let mut descriptor = Descriptor::new(self.first[usize::from(head)]);
        if descriptor.flags & DESCRIPTOR_INDIRECT != 0 {
            let Descriptor { address, length, flags, .. } = descriptor;
            table = Table::indirect(head, address, length, flags, &mut self.tables)?;
            descriptor = self.descriptor(table, 0)?;
        }
        // A chain visits each entry of its table at most once, or it has a loop (virtio 1.3, 2.7.5.1). Nor may it be
        // longer than the queue (2.7.5.3.1); drivers of small queues do not heed that, so it is only a bound on our
        // work.
        let mut left = table.entries().min(self.size.max(MAX_CHAIN));
        loop {
            if descriptor.flags & DESCRIPTOR_INDIRECT != 0 {
                // A table within a table, or in the middle of a chain (virtio 1.3, 2.7.5.3.1).
                return Err(RingError::Indirect(head));
            }
            let Descriptor { address, length, flags, .. } = descriptor;
            chain.add(head, Buffer { address, length, flags }, data, segments)?;
            if descriptor.flags & DESCRIPTOR_NEXT == 0 {
                return Ok(chain);
            }
            left -= 1;
            if left == 0 {
                return Err(RingError::Loop(head));
            }
            descriptor = self.descriptor(table, descriptor.next)?;
        }
    }

    #[inline]
    fn push_used(&mut self, head: u16, written: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        let element = u64::from(head) | u64::from(written) << 32;
        // SAFETY: the ring of `size` elements of 8 bytes follows flags and index (4 bytes); `new` checked that it
        // lies in guest memory. It is 4-byte aligned only (virtio 1.3, 2.7.8), hence the unaligned write.
        unsafe { self.used.add(2).cast::<u64>().add(slot).write_unaligned(element) };
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.give_back(head);
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.published_used == self.next_used {
            return false;
        }
        // Partner: the driver's read barrier after it loaded the index (virtio 1.3, 2.7.14).
        // SAFETY: the index is the second 16-bit word of the used ring.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }.store(self.next_used, Ordering::Release);
        if self.inflight.is_some() || self.log.is_some() {
            self.note_published();
        }
        self.published_used = self.next_used;
        true
    }

    fn used_count(&self) -> u16 {
        self.next_used
    }

    #[inline]
    fn needs_signal(&mut self) -> bool {
        // Partner: the driver's full barrier between asking for notifications and looking at the used index once
        // more. Without ours the read below could pass the store in `publish` and a wake-up be lost (virtio 1.3,
        // 2.7.7.2 and 2.7.10).
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.signalled_used, self.published_used);
        if self.event_idx {
            // SAFETY: used_event follows the available ring; `new` checked that it lies in guest memory.
            let event = unsafe { read_volatile(self.available.add(2 + usize::from(self.size))) };
            // vring_need_event (virtio 1.3, 2.7.10): did the index pass the event?
            self.published_used.wrapping_sub(event).wrapping_sub(1) < self.published_used.wrapping_sub(old)
        } else {
            // SAFETY: the flags are the first word of the available ring.
            unsafe { read_volatile(self.available) & AVAILABLE_NO_INTERRUPT == 0 }
        }
    }

    fn disable_kicks(&mut self) {
        if self.event_idx {
            // The driver kicks when its index passes the event. An event half a lap ahead keeps it silent until `pop`
            // moves it on.
            self.parked_event = self.next_available.wrapping_add(0x8000);
            self.write_available_event(self.parked_event);
        } else {
            self.write_used_flags(USED_NO_NOTIFY);
        }
    }

    fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.write_available_event(self.next_available);
        } else {
            self.write_used_flags(0);
        }
        // Partner: the driver's full barrier between storing its index and reading our request (virtio 1.3,
        // 2.7.13.4.1).
        fence(Ordering::SeqCst);
        self.has_available()
    }
}

impl UsedRuns for SplitRing {
    #[inline]
    fn push_used_run(&mut self, chains: &[u16], written: u32) {
        let Some((&last, skipped)) = chains.split_last() else { return };
        // In the place of the first one; those of the others are passed over (virtio 1.3, 2.7.9).
        self.push_used(last, written);
        self.next_used = self.next_used.wrapping_add(skipped.len() as u16);
        if let Some(inflight) = &mut self.inflight {
            skipped.iter().for_each(|&head| inflight.give_back(head));
        }
    }
}

impl SplitRing {
    #[cold]
    #[inline(never)]
    fn note_taken(&mut self, heads: &[u16]) -> Result<(), RingError> {
        self.inflight.as_mut().map_or(Ok(()), |inflight| inflight.take(heads))
    }

    #[cold]
    #[inline(never)]
    fn note_published(&mut self) {
        if let Some(inflight) = &mut self.inflight {
            inflight.published(self.next_used);
        }
        let Some((log, ring)) = &self.log else { return };
        // Flags and index, then the elements.
        log.mark(*ring, 4);
        let (first, count) = (self.published_used & (self.size - 1), self.next_used.wrapping_sub(self.published_used));
        log.mark_around(ring.wrapping_add(4), 8, self.size, first, count);
    }

    fn available_index(&self, order: Ordering) -> u16 {
        // SAFETY: the index is the second 16-bit word of the available ring, which `new` checked.
        unsafe { AtomicU16::from_ptr(self.available.add(1).cast_mut()) }.load(order)
    }

    fn write_available_event(&self, value: u16) {
        // SAFETY: avail_event follows the used ring: 2 words, then `size` elements of 4 words.
        unsafe { write_volatile(self.used.add(2 + 4 * usize::from(self.size)), value) };
    }

    fn write_used_flags(&self, flags: u16) {
        // SAFETY: the flags are the first word of the used ring.
        unsafe { write_volatile(self.used, flags) };
    }

    /// Reads the first descriptor of each chain, whose heads are below the size, and fetches indirect tables: the
    /// transfers of all of them overlap, where those of one walk after the other would not.
    #[inline(always)]
    fn read_first(&mut self, heads: &[u16]) {
        for &head in heads {
            // SAFETY: the table of `size` descriptors was translated.
            let [address, rest] = unsafe { read_volatile(self.descriptors.add(head.into())) }.map(u64::from_le);
            self.first[usize::from(head)] = [address, rest];
            if (rest >> 32) as u16 & DESCRIPTOR_INDIRECT != 0
                && let Some(table) = self.tables.translate(address, 1)
            {
                prefetch(table);
            }
        }
    }

    #[inline(always)]
    fn descriptor(&mut self, table: Table, index: u16) -> Result<Descriptor, RingError> {
        Ok(Descriptor::new(table.read(index, &mut self.tables)?))
    }
}
