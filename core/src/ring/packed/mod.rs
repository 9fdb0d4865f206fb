//! The packed virtqueue (virtio 1.3, 2.8), device side.
//!
//! Available and used descriptors share one ring, and two flags of each tell which of the two it is. A chain is known
//! only once it has been followed to its end, where its buffer ID is: so [`pop`](Ring::pop) reads the second half of
//! each descriptor (length, ID, flags) and keeps it for [`walk`](Ring::walk), which reads the first half (address).
//! Nothing is read twice.
mod inflight;
mod parts;
mod recovery;

use super::{
    chain::{Chain, SegmentList},
    config::{QueueConfig, RingStart},
    device_side::Ring,
    error::RingError,
    in_order::UsedRuns,
    table::{Buffer, DESCRIPTOR_INDIRECT, DESCRIPTOR_NEXT, DESCRIPTOR_WRITE, MAX_CHAIN, Table},
};
use crate::{
    event::Watch,
    fallible,
    memory::{DirtyLog, Translator, prefetch},
};
pub(super) use inflight::inflight_bytes;
use inflight::{PackedInflight, RecoveredChain};
use parts::Parts;
use std::{
    ptr::read_volatile,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence},
};

/// The [base](Ring::base) of an unused ring: both wrap counters are 1 (virtio 1.3, 2.8.1).
pub(super) const BEGINNING: u32 = 0x8000_8000;

/// In a descriptor's flags: available in this lap of the driver's wrap counter, used in this lap of ours (virtio 1.3,
/// 2.8.1).
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const BOTH: u16 = AVAILABLE | USED;

/// In an event suppression structure (virtio 1.3, 2.8.14), whose upper half the flags are.
const EVENTS_DISABLE: u32 = 1;
const EVENTS_DESCRIPTOR: u32 = 2;

/// A place in the ring, and the values of the two flags for which the descriptor there is the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    index: u16,
    /// Of an available descriptor, one of the two; of a used one, both or none. `AVAILABLE` is the wrap counter in any
    /// case.
    flags: u16,
}

impl Cursor {
    /// From 15 bits of index and the wrap counter above, as an event offset and a vhost-user base have them.
    fn new(bits: u16, when_set: u16) -> Self {
        Cursor { index: bits & 0x7fff, flags: if bits & 0x8000 != 0 { when_set } else { when_set ^ BOTH } }
    }

    fn bits(self) -> u16 {
        self.index | if self.flags & AVAILABLE != 0 { 0x8000 } else { 0 }
    }

    #[inline(always)]
    fn advance(&mut self, count: u16, size: u16) {
        // Both are at most 32768, and the index is less.
        self.index += count;
        if self.index >= size {
            self.index -= size;
            self.flags ^= BOTH;
        }
    }
}

/// In [`Place::index`]: the chain is not in the ring any more, but among those recovered.
const RECOVERED: u16 = u16::MAX;

/// What is remembered of a chain between pop and push_used.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Where its first descriptor is in the ring.
    index: u16,
    /// Where the second halves of its descriptors are kept, until the next pop.
    kept: u16,
    /// Number of its descriptors in the ring; 0: there is no such chain.
    count: u16,
    /// The address of its indirect table, if it has one.
    table: u64,
}

/// A packed virtqueue. Owned by one worker.
#[derive(Debug)]
pub struct PackedRing {
    /// Translates the ring itself and indirect tables; data has a translator of its own, so that the two do not push
    /// each other out of the last-hit cache.
    tables: Translator,
    descriptors: *mut [u64; 2],
    driver_events: *const u32,
    device_events: *mut u32,
    size: u16,
    event_idx: bool,
    available: Cursor,
    used: Cursor,
    /// Descriptors that were taken and that the driver has not seen used: they belong to the device until the batch is
    /// published.
    taken: u16,
    /// By buffer ID.
    places: Box<[Place]>,
    /// The second halves of the descriptors that the last pop has taken.
    kept: Box<[u64]>,
    /// Descriptors given back and not yet published. They can be seen by the driver when the first one can.
    pushed: u16,
    /// The place and second half of that first one.
    first: (u16, u64),
    /// Chains given back so far, modulo 2^16.
    used_count: u16,
    /// Descriptors for which the driver has not been asked yet whether it wants to be notified.
    unsignalled: u16,
    /// The record of requests in flight, for the next process.
    inflight: Option<PackedInflight>,
    /// Chains that an earlier process had taken and not given back: to be taken again, the last one first.
    recovered: Vec<RecoveredChain>,
    /// Those of them that were taken by the last pop.
    popped_recovered: Vec<RecoveredChain>,
    /// The log of pages that we write, and the guest address of our event suppression structure.
    log: Option<(DirtyLog, u64)>,
    /// The guest address of the ring, for the log.
    address: u64,
}

// SAFETY: the pointers lead to a shared mapping that the translator keeps alive, and the ring has one owner at a time.
unsafe impl Send for PackedRing {}

impl Ring for PackedRing {
    fn lay_out(
        config: &QueueConfig,
        mut tables: Translator,
        event_idx: bool,
        start: RingStart,
    ) -> Result<Self, RingError> {
        let Parts { descriptors, driver_events, device_events } = Parts::find(config, &mut tables)?;
        let size = config.size;
        let base = start.base.unwrap_or(BEGINNING);
        let (available, used) = (Cursor::new(base as u16, AVAILABLE), Cursor::new((base >> 16) as u16, BOTH));
        if available.index >= size || used.index >= size {
            return Err(RingError::Base(base, size));
        }
        let inflight = start.inflight.map(|place| PackedInflight::new(place, size));
        Ok(PackedRing {
            tables,
            descriptors,
            driver_events,
            device_events,
            size,
            event_idx,
            available,
            used,
            taken: 0,
            places: fallible::filled(Place { index: 0, kept: 0, count: 0, table: 0 }, size.into())?,
            kept: fallible::filled(0, size.into())?,
            pushed: 0,
            first: (0, 0),
            used_count: 0,
            unsignalled: 0,
            inflight: inflight.transpose()?,
            recovered: Vec::new(),
            popped_recovered: Vec::new(),
            log: start.log.zip(start.log_used),
            address: config.descriptors,
        })
    }

    fn resume(&mut self) -> Result<(), RingError> {
        self.recover()
    }

    fn check(config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        Parts::find(config, tables).map(|_| ())
    }

    fn adopt(&mut self, config: &QueueConfig, tables: &mut Translator) -> Result<(), RingError> {
        let Parts { descriptors, driver_events, device_events } = Parts::find(config, tables)?;
        (self.descriptors, self.driver_events, self.device_events) = (descriptors, driver_events, device_events);
        self.address = config.descriptors;
        std::mem::swap(&mut self.tables, tables);
        Ok(())
    }

    fn set_log(&mut self, log: Option<(DirtyLog, u64)>) -> Option<(DirtyLog, u64)> {
        std::mem::replace(&mut self.log, log)
    }

    fn base(&self) -> u32 {
        u32::from(self.available.bits()) | u32::from(self.used.bits()) << 16
    }

    fn size(&self) -> u16 {
        self.size
    }

    #[inline(always)]
    fn pop(&mut self, ids: &mut [u16]) -> Result<usize, RingError> {
        let (mut popped, mut kept) = (0, 0);
        for slot in ids.iter_mut() {
            // Partner: the driver's write barrier between filling a chain and storing the flags of its first descriptor
            // (virtio 1.3, 2.8.21.1). What else is read of the chain is read after this.
            let rest = u64::from_le(second_half(self.descriptors, self.available.index).load(Ordering::Acquire));
            if flags_of(rest) & BOTH != self.available.flags {
                break;
            }
            let (id, count) = self.take_chain(rest, kept)?;
            *slot = id;
            kept += count;
            popped += 1;
        }
        // First, so that a turn without work has only one thing to check.
        if popped == 0 {
            return Ok(0);
        }
        if self.inflight.is_some() {
            self.note_taken(&ids[..popped])?;
        }
        Ok(popped)
    }

    #[cold]
    fn pop_recovered(&mut self, ids: &mut [u16]) -> usize {
        // They are in the in-flight region already, and stay there.
        let rest = self.recovered.len().saturating_sub(ids.len());
        self.popped_recovered = self.recovered.split_off(rest);
        self.popped_recovered.reverse();
        ids.iter_mut().zip(&self.popped_recovered).for_each(|(slot, chain)| *slot = chain.id);
        self.popped_recovered.len()
    }

    fn has_recovered_chains(&self) -> bool {
        !self.recovered.is_empty()
    }

    #[inline]
    fn has_available(&self) -> bool {
        let rest = u64::from_le(second_half(self.descriptors, self.available.index).load(Ordering::Acquire));
        flags_of(rest) & BOTH == self.available.flags
    }

    fn watch(&self) -> Option<Watch> {
        // The flags of the next chain's first descriptor, by which the driver makes it available. Their other bits do
        // not matter now: the flags must change when a chain becomes available. SAFETY: the index is below the ring's
        // size, which `find` checked to lie in guest memory; the translator keeps it mapped as long as the ring is not
        // dropped or moved to another map. The flags are the last two bytes of a descriptor.
        let flags = unsafe { self.descriptors.add(self.available.index.into()).cast::<u16>().add(7) };
        // SAFETY: as above.
        let idle = u16::from_le(unsafe { AtomicU16::from_ptr(flags) }.load(Ordering::Relaxed));
        if idle & BOTH == self.available.flags {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { Watch::new(flags, idle.to_le()) })
    }

    #[inline(always)]
    fn walk(&mut self, id: u16, data: &mut Translator, segments: &mut SegmentList<'_>) -> Result<Chain, RingError> {
        let Place { mut index, kept, count, table } = self.places[usize::from(id)];
        if index == RECOVERED {
            return self.walk_recovered(id, data, segments);
        }
        let rests = &self.kept[usize::from(kept)..usize::from(kept) + usize::from(count)];
        let mut chain = Chain::default();
        if let &[rest] = rests
            && flags_of(rest) & DESCRIPTOR_INDIRECT != 0
        {
            return self.walk_table(id, (table, rest), data, segments);
        }
        for &rest in rests {
            let flags = flags_of(rest);
            if flags & DESCRIPTOR_INDIRECT != 0 {
                // A table in the middle of a chain (virtio 1.3, 2.8.19).
                return Err(RingError::Indirect(id));
            }
            let address = first_half(self.descriptors, index);
            chain.add(id, Buffer { address, length: rest as u32, flags }, data, segments)?;
            index += 1;
            if index == self.size {
                index = 0;
            }
        }
        Ok(chain)
    }

    #[inline]
    fn push_used(&mut self, id: u16, written: u32) {
        let count = std::mem::take(&mut self.places[usize::from(id)].count);
        debug_assert!(count > 0, "a chain is given back once");
        // The length counts only where WRITE is set (virtio 1.3, 2.8.3).
        let flags = self.used.flags | if written > 0 { DESCRIPTOR_WRITE } else { 0 };
        let rest = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
        if self.pushed == 0 {
            self.first = (self.used.index, rest);
        } else {
            self.write_second_half(self.used.index, rest, Ordering::Relaxed);
        }
        self.pushed += count;
        self.used_count = self.used_count.wrapping_add(1);
        self.used.advance(count, self.size);
        if let Some(inflight) = &mut self.inflight {
            inflight.give_back(id);
        }
    }

    #[inline]
    fn publish(&mut self) -> bool {
        if self.pushed == 0 {
            return false;
        }
        // A driver reads used descriptors in order, so this one shows it the whole batch. Partner: the driver's read
        // barrier after it has found the flags of a used descriptor (virtio 1.3, 2.8.22).
        if self.inflight.is_some() || self.log.is_some() {
            self.publish_noted();
        } else {
            self.write_second_half(self.first.0, self.first.1, Ordering::Release);
        }
        // Both are at most the ring's size: a batch is asked for before the next one has gone around.
        self.unsignalled = self.unsignalled.saturating_add(self.pushed).min(self.size);
        // From here on the driver may use these descriptors again, and not before (virtio 1.3, 2.8.1).
        self.taken -= std::mem::take(&mut self.pushed);
        true
    }

    fn used_count(&self) -> u16 {
        self.used_count
    }

    #[inline]
    fn needs_signal(&mut self) -> bool {
        // Partner: the driver's full barrier between writing its event suppression structure and looking at the next
        // used descriptor once more. Without ours the read below could pass the store in `publish` and a wake-up be
        // lost (virtio 1.3, 2.8.22).
        fence(Ordering::SeqCst);
        // SAFETY: the structure was translated, and is aligned to 4 bytes.
        let events = unsafe { read_volatile(self.driver_events) };
        let new = std::mem::take(&mut self.unsignalled);
        match events >> 16 & 3 {
            EVENTS_DISABLE => false,
            EVENTS_DESCRIPTOR if self.event_idx => {
                let event = Cursor::new(events as u16, BOTH);
                // Did we pass the event? If it belongs to the previous lap, it lies a ring's size further back.
                let lap = if event.flags == self.used.flags { 0 } else { self.size };
                let behind = self.used.index.wrapping_add(lap).wrapping_sub(event.index);
                behind.wrapping_sub(1) < new
            }
            _ => true,
        }
    }

    fn disable_kicks(&mut self) {
        self.write_events(EVENTS_DISABLE << 16);
    }

    fn enable_kicks(&mut self) -> bool {
        // With EVENT_IDX, for the next chain only: no kicks after the first.
        let next = u32::from(self.available.bits()) | EVENTS_DESCRIPTOR << 16;
        self.write_events(if self.event_idx { next } else { 0 });
        // Partner: the driver's full barrier between storing the flags of its chains and reading our structure (virtio
        // 1.3, 2.8.21.3).
        fence(Ordering::SeqCst);
        self.has_available()
    }
}

impl UsedRuns for PackedRing {
    #[inline]
    fn push_used_run(&mut self, chains: &[u16], written: u32) {
        let Some((&last, skipped)) = chains.split_last() else { return };
        // In the place of the first descriptor of the first one; those up to the last of the run are passed over
        // (virtio 1.3, 2.8.8).
        self.push_used(last, written);
        for &id in skipped {
            let count = std::mem::take(&mut self.places[usize::from(id)].count);
            debug_assert!(count > 0, "a chain is given back once");
            self.pushed += count;
            self.used.advance(count, self.size);
            if let Some(inflight) = &mut self.inflight {
                inflight.give_back(id);
            }
        }
        self.used_count = self.used_count.wrapping_add(skipped.len() as u16);
    }
}

impl PackedRing {
    /// Takes the chain whose first descriptor is next, of which `rest` is the second half, and keeps those of its
    /// descriptors from `kept` on. Returns its buffer ID, and the number of its descriptors.
    #[inline(always)]
    fn take_chain(&mut self, mut rest: u64, kept: u16) -> Result<(u16, u16), RingError> {
        let (size, start) = (self.size, self.available.index);
        let (mut index, mut count, mut is_whole) = (start, 0, false);
        // No more descriptors are kept than are taken, and no more are taken than the ring has.
        for slot in &mut self.kept[usize::from(kept)..usize::from(kept + size - self.taken)] {
            *slot = rest;
            count += 1;
            is_whole = flags_of(rest) & DESCRIPTOR_NEXT == 0;
            if is_whole {
                break;
            }
            index = if index + 1 == size { 0 } else { index + 1 };
            // AVAILABLE and USED are not checked in these: the first descriptor speaks for all (virtio 1.3, 2.8.6).
            rest = u64::from_le(second_half(self.descriptors, index).load(Ordering::Relaxed));
        }
        if !is_whole {
            // More than the ring has, as in a chain without an end.
            return Err(RingError::Overrun(size));
        }
        // In the last descriptor, and nowhere else (virtio 1.3, 2.8.5). It names one of our slots, of which there are
        // as many as buffers can be on their way.
        let id = (rest >> 32) as u16;
        let Some(place) = self.places.get_mut(usize::from(id)) else {
            return Err(RingError::BufferId(id, size));
        };
        if place.count != 0 {
            return Err(RingError::InUse(id));
        }
        let mut table = 0;
        if flags_of(rest) & DESCRIPTOR_INDIRECT != 0 {
            // Fetched here, so that the transfers of a whole batch overlap, where those of one walk after the other
            // would not.
            table = first_half(self.descriptors, index);
            if let Some(host) = self.tables.translate(table, 1) {
                prefetch(host);
            }
        }
        *place = Place { index: start, kept, count, table };
        self.taken += count;
        self.available.advance(count, size);
        Ok((id, count))
    }

    /// Follows an indirect table: all of its entries are buffers of the chain (virtio 1.3, 2.8.7).
    #[inline(always)]
    fn walk_table(
        &mut self,
        id: u16,
        (address, rest): (u64, u64),
        data: &mut Translator,
        segments: &mut SegmentList<'_>,
    ) -> Result<Chain, RingError> {
        let table = Table::indirect(id, address, rest as u32, flags_of(rest), &mut self.tables)?;
        // Drivers of small queues make longer chains than the queue is, so this is only a bound on our work.
        if table.entries() > self.size.max(MAX_CHAIN) {
            return Err(RingError::TooLong(id));
        }
        let mut chain = Chain::default();
        for index in 0..table.entries() {
            let [address, rest] = table.read(index, &mut self.tables)?;
            let flags = flags_of(rest);
            if flags & DESCRIPTOR_INDIRECT != 0 {
                // A table within a table (virtio 1.3, 2.8.19).
                return Err(RingError::Indirect(id));
            }
            chain.add(id, Buffer { address, length: rest as u32, flags }, data, segments)?;
        }
        Ok(chain)
    }

    #[cold]
    #[inline(never)]
    fn publish_noted(&mut self) {
        let used = self.used.bits();
        if let Some(inflight) = &mut self.inflight {
            inflight.publishing(used);
        }
        self.write_second_half(self.first.0, self.first.1, Ordering::Release);
        if let Some(inflight) = &mut self.inflight {
            inflight.published(used);
        }
        let Some((log, events)) = &self.log else { return };
        log.mark(*events, 4);
        // From the first to the last that was written. What was skipped in between does no harm.
        log.mark_around(self.address, 16, self.size, self.first.0, self.pushed);
    }

    #[inline(always)]
    fn write_second_half(&self, index: u16, value: u64, order: Ordering) {
        debug_assert!(index < self.size);
        second_half(self.descriptors, index).store(value.to_le(), order);
    }

    fn write_events(&self, value: u32) {
        // Relaxed: callers that need an order use a fence. SAFETY: the structure was translated, and is aligned to 4
        // bytes.
        unsafe { AtomicU32::from_ptr(self.device_events) }.store(value.to_le(), Ordering::Relaxed);
    }
}

#[inline(always)]
fn flags_of(rest: u64) -> u16 {
    (rest >> 48) as u16
}

/// Length, buffer ID and flags of a descriptor, to be read and written in one access.
#[inline(always)]
fn second_half<'r>(descriptors: *mut [u64; 2], index: u16) -> &'r AtomicU64 {
    // SAFETY: the index is below the ring's size; the ring was translated, and is aligned to 16 bytes.
    unsafe { AtomicU64::from_ptr(descriptors.cast::<u64>().add(2 * usize::from(index) + 1)) }
}

/// The address in a descriptor.
#[inline(always)]
fn first_half(descriptors: *const [u64; 2], index: u16) -> u64 {
    // SAFETY: the index is below the ring's size; the ring was translated, and is aligned to 16 bytes.
    u64::from_le(unsafe { read_volatile(descriptors.add(index.into()).cast()) })
}
