//! The in-flight region of one packed queue (vhost-user document, "Inflight I/O tracking"): as that of a split queue,
//! with a copy of the descriptors of each chain, since those in the ring are overwritten by used ones.
//!
//! We keep our own list of free entries and write it through to the region, which is only read in a recovery. A batch
//! of used chains changes the region when it is published and not before: then chains that are taken meanwhile find the
//! free list as it was committed last, as the document's order of steps needs it.
//!
//! The ring counts in the same way: a chain's descriptors and its buffer ID are free once it is published. So a chain
//! that the ring takes always finds entries here, whatever the driver does.
use crate::{
    fallible,
    ring::{
        error::RingError,
        region::{InflightPlace, Region},
    },
};
use std::sync::atomic::Ordering;

/// Offsets in the header.
mod header {
    pub(super) const FREE_HEAD: usize = 12;
    pub(super) const OLD_FREE_HEAD: usize = 14;
    pub(super) const USED: usize = 16;
    pub(super) const OLD_USED: usize = 18;
    pub(super) const USED_WRAP: usize = 20;
    pub(super) const OLD_USED_WRAP: usize = 21;
}

/// Offsets in an entry: the next one of its chain or of the free list, the last one of the chain, their number; then
/// the descriptor as ID, flags, length, and the address.
mod entry {
    pub(super) const NEXT: usize = 2;
    pub(super) const LAST: usize = 4;
    pub(super) const NUM: usize = 6;
    pub(super) const REST: usize = 16;
    pub(super) const ADDRESS: usize = 24;
}

/// In place of the first entry of a chain: the buffer ID is free.
const FREE: u16 = u16::MAX;

/// Bytes that a packed queue of `size` entries takes.
pub(in crate::ring) fn inflight_bytes(size: u16) -> u64 {
    Region::<32, 32>::bytes(size)
}

/// A chain that an earlier process had taken and not given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecoveredChain {
    pub(super) id: u16,
    /// As they were in the ring: address, and length, ID and flags.
    pub(super) descriptors: Vec<[u64; 2]>,
}

/// What was found in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recovered {
    /// Index and wrap counter of the next used descriptor.
    pub(super) used: u16,
    /// In the order in which they were taken.
    pub(super) chains: Vec<RecoveredChain>,
}

/// The region of one queue.
#[derive(Debug)]
pub(super) struct PackedInflight {
    region: Region<32, 32>,
    /// Orders the chains in flight.
    counter: u64,
    /// Our own list of entries: what follows each. `size` is the end.
    next: Vec<u16>,
    free_head: u16,
    /// By buffer ID: the first and the last entry of its chain. It has one from when it is taken until it is published.
    heads: Vec<(u16, u16)>,
    /// Buffer IDs that are given back and not yet published. Never grows beyond its capacity, the size of the queue.
    batch: Vec<u16>,
}

impl PackedInflight {
    /// The region of a queue of `size` entries.
    ///
    /// # Errors
    /// It does not lie in the mapping, or is not aligned, or there is no memory for our own part.
    pub(super) fn new(place: InflightPlace, size: u16) -> Result<Self, RingError> {
        let mut next = fallible::with_capacity(size.into())?;
        next.extend(1..=size);
        Ok(PackedInflight {
            region: Region::new(place, size).ok_or(RingError::InflightRoom(size))?,
            counter: 0,
            next,
            free_head: 0,
            heads: fallible::filled((FREE, 0), size.into())?.into(),
            batch: fallible::with_capacity(size.into())?,
        })
    }

    /// Finds out what the previous process had in flight. `flags` reads those of a descriptor in the ring; `used` is
    /// where a new queue begins, index and wrap counter. `None`: the region has not been used before; it is
    /// initialised.
    ///
    /// # Errors
    /// The region is of another layout or queue, or makes no sense.
    pub(super) fn recover(
        &mut self,
        used: u16,
        is_available: impl Fn(u16, bool) -> bool,
    ) -> Result<Option<Recovered>, RingError> {
        if !self.region.is_ours().map_err(RingError::Inflight)? {
            self.begin(used);
            return Ok(None);
        }
        let size = self.region.size();
        let old = (
            self.header(header::OLD_USED),
            self.region.header_byte(header::OLD_USED_WRAP).load(Ordering::Relaxed) != 0,
        );
        let new = (self.header(header::USED), self.region.header_byte(header::USED_WRAP).load(Ordering::Relaxed) != 0);
        if old.0 >= size || new.0 >= size {
            return Err(RingError::InflightDamaged);
        }
        // The process may have died around the publication of a batch. If the driver can see it, the first descriptor
        // is not what it was before.
        let is_committed = old == new || !is_available(old.0, old.1);
        let (free_head, used) = if is_committed {
            (self.header(header::FREE_HEAD), new)
        } else {
            (self.header(header::OLD_FREE_HEAD), old)
        };
        self.clear_free(free_head);
        let chains = self.chains()?;
        self.commit(used);
        Ok(Some(Recovered { used: used.0 | u16::from(used.1) << 15, chains }))
    }

    fn begin(&mut self, used: u16) {
        let size = self.region.size();
        self.next = (1..=size).collect();
        self.free_head = 0;
        let next = &self.next;
        self.region.make_ours(|region| {
            for (entry, &next) in (0..size).zip(next) {
                region.flag(entry).store(0, Ordering::Relaxed);
                region.half(entry, entry::NEXT).store(next, Ordering::Relaxed);
            }
            commit(region, 0, (used & 0x7fff, used & 0x8000 != 0));
        });
    }

    /// Marks the entries of the free list as not in flight, whatever their flags were.
    fn clear_free(&self, head: u16) {
        let mut entry = head;
        for _ in 0..self.region.size() {
            if entry >= self.region.size() {
                return;
            }
            self.region.flag(entry).store(0, Ordering::Relaxed);
            entry = self.region.half(entry, entry::NEXT).load(Ordering::Relaxed);
        }
    }

    /// Reads the chains in flight, and rebuilds our lists around them.
    fn chains(&mut self) -> Result<Vec<RecoveredChain>, RingError> {
        let (heads, counter) = self.region.in_flight();
        self.counter = counter;
        let mut is_taken = vec![false; self.region.size().into()];
        let mut is_known = is_taken.clone();
        let mut chains = Vec::new();
        for head in heads {
            let (mut entry, mut last) = (head, head);
            let mut descriptors = Vec::new();
            for _ in 0..self.region.half(head, entry::NUM).load(Ordering::Relaxed) {
                // Each entry once: a front end that corrupts the list harms only itself.
                let slot = is_taken.get_mut(usize::from(entry)).filter(|slot| !**slot);
                *slot.ok_or(RingError::InflightDamaged)? = true;
                let rest = self.region.word(entry, entry::REST).load(Ordering::Relaxed);
                let (id_flags, length) = (rest as u32, rest >> 32);
                descriptors.push([
                    self.region.word(entry, entry::ADDRESS).load(Ordering::Relaxed),
                    length | u64::from(id_flags) << 32,
                ]);
                last = entry;
                entry = self.region.half(entry, entry::NEXT).load(Ordering::Relaxed);
                self.next[usize::from(last)] = entry;
            }
            let id = (descriptors.last().ok_or(RingError::InflightDamaged)?[1] >> 32) as u16;
            let slot = is_known.get_mut(usize::from(id)).filter(|slot| !**slot);
            *slot.ok_or(RingError::InflightDamaged)? = true;
            self.heads[usize::from(id)] = (head, last);
            chains.push(RecoveredChain { id, descriptors });
        }
        self.link_free(&is_taken);
        Ok(chains)
    }

    /// Links all entries that are not taken.
    fn link_free(&mut self, is_taken: &[bool]) {
        self.free_head = self.region.size();
        for entry in (0..self.region.size()).rev().filter(|&entry| !is_taken[usize::from(entry)]) {
            self.link(entry, self.free_head);
            self.free_head = entry;
        }
    }

    /// Commits the free list and the used position as they are.
    fn commit(&self, used: (u16, bool)) {
        commit(&self.region, self.free_head, used);
    }

    /// Notes that a chain was taken, before anything is done with it. There is room: no more is taken than the ring
    /// has.
    ///
    /// # Errors
    /// The buffer ID is in flight (virtio 1.3, 2.8.5: it names one buffer until the driver has seen that one used). The
    /// ring knows of chains that it has not given back; this is about those that it has given back and not published.
    pub(super) fn take(&mut self, id: u16, descriptors: impl Iterator<Item = [u64; 2]>) -> Result<(), RingError> {
        if self.heads[usize::from(id)].0 != FREE {
            return Err(RingError::InUse(id));
        }
        let head = self.free_head;
        let (mut entry, mut last, mut count) = (head, head, 0);
        for [address, rest] in descriptors {
            self.region.word(entry, entry::ADDRESS).store(address, Ordering::Relaxed);
            self.region.word(entry, entry::REST).store(rest.rotate_left(32), Ordering::Relaxed);
            (last, entry) = (entry, self.next[usize::from(entry)]);
            count += 1;
        }
        self.heads[usize::from(id)] = (head, last);
        self.region.half(head, entry::LAST).store(last, Ordering::Relaxed);
        self.region.half(head, entry::NUM).store(count, Ordering::Relaxed);
        self.region.counter(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.region.flag(head).store(1, Ordering::Release);
        self.free_head = entry;
        set_header(&self.region, header::FREE_HEAD, entry);
        // From here on it is in flight: while it was in the free list, it was not.
        set_header(&self.region, header::OLD_FREE_HEAD, entry);
        Ok(())
    }

    /// Notes that a chain belongs to the batch that is published next.
    #[inline]
    pub(super) fn give_back(&mut self, id: u16) {
        debug_assert!(self.batch.len() < self.batch.capacity());
        self.batch.push(id);
    }

    /// Just before the batch is published, after which the used position is `used`.
    pub(super) fn publishing(&mut self, used: u16) {
        for index in 0..self.batch.len() {
            let (head, last) = self.heads[usize::from(self.batch[index])];
            self.link(last, self.free_head);
            self.free_head = head;
        }
        set_header(&self.region, header::FREE_HEAD, self.free_head);
        set_header(&self.region, header::USED, used & 0x7fff);
        self.region.header_byte(header::USED_WRAP).store((used >> 15) as u8, Ordering::Release);
    }

    /// Just after it.
    pub(super) fn published(&mut self, used: u16) {
        while let Some(id) = self.batch.pop() {
            let (head, _) = std::mem::replace(&mut self.heads[usize::from(id)], (FREE, 0));
            // Release: after the store to the ring, by which the next process would find the batch.
            self.region.flag(head).store(0, Ordering::Release);
        }
        self.commit((used & 0x7fff, used & 0x8000 != 0));
    }

    fn link(&mut self, entry: u16, next: u16) {
        self.next[usize::from(entry)] = next;
        self.region.half(entry, entry::NEXT).store(next, Ordering::Relaxed);
    }

    fn header(&self, offset: usize) -> u16 {
        self.region.header(offset).load(Ordering::Relaxed)
    }
}

fn set_header(region: &Region<32, 32>, offset: usize, value: u16) {
    region.header(offset).store(value, Ordering::Release);
}

/// Commits a free list and a used position.
fn commit(region: &Region<32, 32>, free_head: u16, (index, wrap): (u16, bool)) {
    set_header(region, header::FREE_HEAD, free_head);
    set_header(region, header::USED, index);
    region.header_byte(header::USED_WRAP).store(wrap.into(), Ordering::Release);
    set_header(region, header::OLD_FREE_HEAD, free_head);
    set_header(region, header::OLD_USED, index);
    region.header_byte(header::OLD_USED_WRAP).store(wrap.into(), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ForeignMapping;
    use std::{fs::File, sync::Arc};

    const SIZE: u16 = 8;
    /// Where a ring begins: index 0, wrap counter 1.
    const START: u16 = 0x8000;

    fn place(file: &File, index: usize, queue_size: u16) -> InflightPlace {
        let bytes = 2 * inflight_bytes(SIZE);
        file.set_len(bytes).expect("a length");
        let mapping = Arc::new(ForeignMapping::map(file, 0, bytes, true).expect("a mapping"));
        InflightPlace { mapping, index, queue_size }
    }

    /// The region of queue 1, as the next process maps it.
    fn region(file: &File) -> PackedInflight {
        PackedInflight::new(place(file, 1, SIZE), SIZE).expect("a region")
    }

    fn file() -> File {
        crate::memory::anonymous_file(c"inflight").expect("a file")
    }

    /// A region that was made ready.
    fn ready(file: &File) -> PackedInflight {
        let mut queue = region(file);
        assert_eq!(queue.recover(START, |_, _| true), Ok(None));
        queue
    }

    /// Descriptors of a chain that can be told from all others.
    fn chain(id: u16, count: u16) -> RecoveredChain {
        let rest = |index| u64::from(100 * id + index) | u64::from(id) << 32 | u64::from(index) << 48;
        let descriptors = (0..count).map(|index| [u64::from(id) << 20 | u64::from(index), rest(index)]).collect();
        RecoveredChain { id, descriptors }
    }

    fn take(queue: &mut PackedInflight, id: u16, count: u16) {
        queue.take(id, chain(id, count).descriptors.into_iter()).expect("a buffer ID that is free");
    }

    /// What the next process finds, if the first descriptor of the last batch is still (not) available.
    fn found(file: &File, is_available: bool) -> (u16, Vec<RecoveredChain>) {
        let mut queue = region(file);
        let found = queue.recover(START, |_, _| is_available).expect("our layout").expect("used before");
        // Whatever the first one has found, the next one finds as well.
        let again = region(file).recover(START, |_, _| true).expect("our layout").expect("used before");
        assert_eq!(again, found);
        (found.used, found.chains)
    }

    #[test]
    fn what_was_taken_and_not_given_back_is_found_with_its_descriptors_in_its_order() {
        let file = file();
        let mut queue = ready(&file);
        take(&mut queue, 5, 3);
        take(&mut queue, 0, 1);
        take(&mut queue, 7, 2);
        queue.give_back(0);
        queue.publishing(START | 1);
        queue.published(START | 1);
        take(&mut queue, 2, 3);
        assert_eq!(found(&file, false), (START | 1, vec![chain(5, 3), chain(7, 2), chain(2, 3)]));
    }

    #[test]
    fn a_batch_that_the_driver_has_seen_is_not_done_again_and_one_that_it_has_not_is() {
        for is_seen in [false, true] {
            let file = file();
            let mut queue = ready(&file);
            take(&mut queue, 1, 2);
            take(&mut queue, 2, 2);
            take(&mut queue, 3, 1);
            queue.give_back(3);
            queue.give_back(1);
            queue.publishing(START | 3);
            // Killed before or after the store to the ring.
            drop(queue);
            let expected = if is_seen {
                (START | 3, vec![chain(2, 2)])
            } else {
                (START, vec![chain(1, 2), chain(2, 2), chain(3, 1)])
            };
            assert_eq!(found(&file, !is_seen), expected);
        }
    }

    #[test]
    fn a_batch_of_the_whole_ring_differs_by_its_wrap_counter() {
        let file = file();
        let mut queue = ready(&file);
        (0..SIZE).for_each(|id| take(&mut queue, id, 1));
        (0..SIZE).for_each(|id| queue.give_back(id));
        queue.publishing(0);
        drop(queue);
        assert_eq!(found(&file, true), (START, (0..SIZE).map(|id| chain(id, 1)).collect()));
    }

    #[test]
    fn entries_are_used_again_over_many_crashes() {
        let file = file();
        let mut queue = ready(&file);
        let mut used = START;
        let mut held = Vec::new();
        for round in 0..200u16 {
            let id = round % SIZE;
            let count = 1 + round % 3;
            if held.iter().map(|chain: &RecoveredChain| chain.descriptors.len()).sum::<usize>() + usize::from(count)
                <= 8
                && held.iter().all(|chain| chain.id != id)
            {
                take(&mut queue, id, count);
                held.push(chain(id, count));
            } else {
                let chain = held.remove(usize::from(round) * 7 % held.len());
                queue.give_back(chain.id);
                let count = chain.descriptors.len() as u16;
                let index = (used & 0x7fff) + count;
                used = if index < SIZE { used & 0x8000 | index } else { (used & 0x8000 ^ 0x8000) | (index - SIZE) };
                queue.publishing(used);
                queue.published(used);
            }
            if round % 5 == 0 {
                drop(queue);
                queue = region(&file);
                let found = queue.recover(START, |_, _| false).expect("our layout").expect("used before");
                assert_eq!((found.used, &found.chains), (used, &held), "round {round}");
            }
        }
    }

    #[test]
    fn nonsense_in_the_region_stays_within_bounds() {
        let spoils: [fn(&PackedInflight); 8] = [
            |queue| set_header(&queue.region, header::OLD_USED, SIZE),
            |queue| set_header(&queue.region, header::USED, 0xffff),
            |queue| queue.region.half(0, 6).store(0, Ordering::Relaxed),
            |queue| queue.region.half(0, 6).store(0xffff, Ordering::Relaxed),
            |queue| queue.region.half(0, 2).store(0, Ordering::Relaxed),
            |queue| queue.region.half(0, 2).store(0xffff, Ordering::Relaxed),
            |queue| queue.region.word(1, 16).store(u64::MAX, Ordering::Relaxed),
            |queue| queue.region.word(4, 16).store(3, Ordering::Relaxed),
        ];
        for (index, spoil) in spoils.iter().enumerate() {
            let file = file();
            let mut queue = ready(&file);
            take(&mut queue, 3, 2);
            take(&mut queue, 4, 3);
            spoil(&queue);
            let error = region(&file).recover(START, |_, _| true).expect_err("a damaged region");
            assert_eq!(error, RingError::InflightDamaged, "{index}");
        }
        let file = file();
        let queue = ready(&file);
        // A free list that bites its tail, and ends elsewhere.
        queue.region.half(3, 2).store(0, Ordering::Relaxed);
        set_header(&queue.region, header::FREE_HEAD, 0xffff);
        assert!(found(&file, true).1.is_empty());
    }

    #[test]
    fn a_region_of_another_layout_or_place_is_refused() {
        let file = file();
        let mut queue = ready(&file);
        assert!(PackedInflight::new(place(&file, 2, SIZE), SIZE).is_err());
        assert!(PackedInflight::new(place(&file, 0, SIZE), SIZE + 1).is_err());
        assert!(PackedInflight::new(place(&file, usize::MAX, SIZE), SIZE).is_err());
        let mut smaller = PackedInflight::new(place(&file, 1, SIZE), SIZE / 2).expect("a region");
        assert_eq!(smaller.recover(START, |_, _| true), Ok(None), "nothing is in flight");
        assert_eq!(region(&file).recover(START, |_, _| true), Ok(None), "and back");
        take(&mut queue, 1, 1);
        assert_eq!(smaller.recover(START, |_, _| true), Err(RingError::Inflight(SIZE)));
        set_header(&queue.region, 8, 2);
        assert_eq!(region(&file).recover(START, |_, _| true), Err(RingError::Inflight(2)));
    }
}
