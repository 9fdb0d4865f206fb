//! The in-flight region of one split queue: which requests a device has taken and not given back, in memory that
//! outlives the process (vhost-user document, "Inflight I/O tracking").
//!
//! The front end keeps the region and hands it to the next process after a crash, which
//! [recovers](InflightQueue::recover) from it. The order of the stores is the document's: whatever the instruction at
//! which the process is killed, each request is found either given back, or in flight and carried out again. The front
//! end may write to the region at any time, so nothing that is read from it is trusted to be more than a number.
use crate::{
    fallible,
    ring::{
        error::RingError,
        region::{InflightPlace, Region},
    },
};
use std::sync::atomic::Ordering;

/// Offsets in the header: the head of the batch that is given back last, and the used index then.
const LAST_BATCH_HEAD: usize = 12;
const USED_INDEX: usize = 14;
/// Offset in an entry, which is a descriptor's state: the next one of that batch.
const NEXT: usize = 6;

/// The region of one queue.
#[derive(Debug)]
pub(super) struct InflightQueue {
    region: Region<16, 16>,
    /// Orders the requests in flight.
    counter: u64,
    /// Given back since the last publication. Never grows beyond its capacity, the size of the queue: each head is in
    /// it once.
    batch: Vec<u16>,
    /// By head: taken, and not seen used by the driver.
    is_held: Box<[bool]>,
}

/// What was found in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recovered {
    /// Index of the next available entry that was not taken yet.
    pub(super) available: u16,
    /// Heads of the chains that were taken and not given back, in the order in which they were taken.
    pub(super) heads: Vec<u16>,
}

/// Bytes that a queue of `size` entries takes.
pub(in crate::ring) fn inflight_bytes(size: u16) -> u64 {
    Region::<16, 16>::bytes(size)
}

impl InflightQueue {
    /// The region of a queue of `size` entries.
    ///
    /// # Errors
    /// It does not lie in the mapping, or is not aligned, or there is no memory for our own part.
    pub(super) fn new(place: InflightPlace, size: u16) -> Result<Self, RingError> {
        let region = Region::new(place, size).ok_or(RingError::InflightRoom(size))?;
        let (batch, is_held) = (fallible::with_capacity(size.into())?, fallible::filled(false, size.into())?);
        Ok(InflightQueue { region, counter: 0, batch, is_held })
    }

    /// Finds out what the previous process had in flight, given the used index that the driver can see. `None`: the
    /// region has not been used before; it is initialised.
    ///
    /// # Errors
    /// The region is of a layout or a queue size other than ours: the number found.
    pub(super) fn recover(&mut self, used: u16) -> Result<Option<Recovered>, u16> {
        if !self.region.is_ours()? {
            self.region.make_ours(|region| {
                region.header(LAST_BATCH_HEAD).store(0, Ordering::Relaxed);
                region.header(USED_INDEX).store(used, Ordering::Relaxed);
            });
            return Ok(None);
        }
        self.finish_last_batch(used);
        let (heads, counter) = self.region.in_flight();
        self.counter = counter;
        // Every chain taken has been given back or is in flight, so this holds whatever base the front end gives.
        Ok(Some(Recovered { available: used.wrapping_add(heads.len() as u16), heads }))
    }

    /// The process may have died after it had shown a batch to the driver, and before it had noted that: notes it now.
    fn finish_last_batch(&mut self, used: u16) {
        let region = &self.region;
        let shown = used.wrapping_sub(region.header(USED_INDEX).load(Ordering::Relaxed));
        let mut head = region.header(LAST_BATCH_HEAD).load(Ordering::Relaxed);
        for _ in 0..shown.min(region.size()) {
            if head >= region.size() {
                break;
            }
            region.flag(head).store(0, Ordering::Relaxed);
            head = region.half(head, NEXT).load(Ordering::Relaxed);
        }
        region.header(USED_INDEX).store(used, Ordering::Release);
    }

    /// Records that chains were taken, before anything is done with them. The heads are below the size of the queue.
    ///
    /// # Errors
    /// The driver has made a chain available again before it has seen it used: a second record of it would take the
    /// place of the first, and end with it.
    pub(super) fn take(&mut self, heads: &[u16]) -> Result<(), RingError> {
        for &head in heads {
            if std::mem::replace(&mut self.is_held[usize::from(head)], true) {
                return Err(RingError::InUse(head));
            }
            self.region.counter(head).store(self.counter, Ordering::Relaxed);
            self.counter = self.counter.wrapping_add(1);
            // After the counter: a request without one is not in flight.
            self.region.flag(head).store(1, Ordering::Release);
        }
        Ok(())
    }

    /// Notes that a chain is about to be given back: it belongs to the batch that is shown to the driver next.
    #[inline]
    pub(super) fn give_back(&mut self, head: u16) {
        let last = self.region.header(LAST_BATCH_HEAD);
        self.region.half(head, NEXT).store(last.load(Ordering::Relaxed), Ordering::Relaxed);
        last.store(head, Ordering::Release);
        debug_assert!(self.batch.len() < self.batch.capacity());
        self.batch.push(head);
    }

    /// Notes that the batch has been shown to the driver, whose used index is `used` now.
    pub(super) fn published(&mut self, used: u16) {
        while let Some(head) = self.batch.pop() {
            // Release: after the store to the used index, by which the next process would find the batch.
            self.region.flag(head).store(0, Ordering::Release);
            self.is_held[usize::from(head)] = false;
        }
        self.region.header(USED_INDEX).store(used, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ForeignMapping;
    use std::{fs::File, sync::Arc};

    const SIZE: u16 = 8;

    fn mapping(file: &File) -> Arc<ForeignMapping> {
        let bytes = 2 * inflight_bytes(SIZE);
        file.set_len(bytes).expect("a length");
        Arc::new(ForeignMapping::map(file, 0, bytes, true).expect("a mapping"))
    }

    fn place(mapping: Arc<ForeignMapping>, index: usize) -> InflightPlace {
        InflightPlace { mapping, index, queue_size: SIZE }
    }

    /// The region of queue 1, as the next process maps it.
    fn region(file: &File) -> InflightQueue {
        InflightQueue::new(place(mapping(file), 1), SIZE).expect("a region")
    }

    fn file() -> File {
        crate::memory::anonymous_file(c"inflight").expect("a file")
    }

    #[test]
    fn a_region_that_nobody_has_used_says_nothing() {
        assert_eq!(region(&file()).recover(7), Ok(None));
    }

    #[test]
    fn what_was_taken_and_not_given_back_is_found_in_its_order_index_0_included() {
        let file = file();
        let mut queue = region(&file);
        assert_eq!(queue.recover(0), Ok(None));
        queue.take(&[5, 0, 3]).expect("heads that are free");
        queue.take(&[1]).expect("heads that are free");
        queue.give_back(3);
        queue.published(1);
        drop(queue);
        assert_eq!(region(&file).recover(1), Ok(Some(Recovered { available: 4, heads: vec![5, 0, 1] })));
    }

    #[test]
    fn a_batch_that_the_driver_has_seen_is_not_done_again() {
        let file = file();
        let mut queue = region(&file);
        assert_eq!(queue.recover(65535), Ok(None));
        queue.take(&[0, 1, 2]).expect("heads that are free");
        queue.give_back(2);
        queue.give_back(0);
        // Killed after the store to the used index.
        drop(queue);
        assert_eq!(region(&file).recover(1), Ok(Some(Recovered { available: 2, heads: vec![1] })));
    }

    #[test]
    fn a_batch_that_the_driver_has_not_seen_is_done_again() {
        let file = file();
        let mut queue = region(&file);
        assert_eq!(queue.recover(0), Ok(None));
        queue.take(&[0, 1, 2]).expect("heads that are free");
        queue.give_back(2);
        queue.give_back(0);
        // Killed before it: half a batch is no batch.
        drop(queue);
        assert_eq!(region(&file).recover(0), Ok(Some(Recovered { available: 3, heads: vec![0, 1, 2] })));
    }

    #[test]
    fn two_crashes_in_a_row_keep_the_order() {
        let file = file();
        let mut queue = region(&file);
        assert_eq!(queue.recover(0), Ok(None));
        queue.take(&[4, 2]).expect("heads that are free");
        drop(queue);
        let mut queue = region(&file);
        let recovered = queue.recover(0).expect("our layout").expect("used before");
        assert_eq!(recovered.heads, [4, 2]);
        queue.take(&recovered.heads).expect("heads that are free");
        queue.take(&[1]).expect("heads that are free");
        drop(queue);
        assert_eq!(region(&file).recover(0).expect("our layout").expect("used before").heads, [4, 2, 1]);
    }

    #[test]
    fn nonsense_in_the_region_stays_within_bounds() {
        let file = file();
        let mut queue = region(&file);
        assert_eq!(queue.recover(0), Ok(None));
        queue.take(&[0]).expect("heads that are free");
        // A last batch head out of range, links in a circle, and a used index far away.
        queue.region.header(LAST_BATCH_HEAD).store(0xffff, Ordering::Relaxed);
        queue.region.header(USED_INDEX).store(0x1234, Ordering::Relaxed);
        assert!(region(&file).recover(0).is_ok());
        queue.region.header(LAST_BATCH_HEAD).store(1, Ordering::Relaxed);
        queue.region.half(1, NEXT).store(1, Ordering::Relaxed);
        queue.region.header(USED_INDEX).store(0x1234, Ordering::Relaxed);
        assert!(region(&file).recover(0).is_ok());
        queue.region.flag(2).store(1, Ordering::Relaxed);
        queue.region.header(10).store(SIZE * 2, Ordering::Relaxed);
        assert_eq!(region(&file).recover(0), Err(SIZE * 2), "a queue of another size");
    }

    #[test]
    fn a_driver_may_choose_another_size_when_nothing_is_in_flight() {
        let file = file();
        let mut queue = region(&file);
        assert_eq!(queue.recover(0), Ok(None));
        queue.take(&[1]).expect("heads that are free");
        queue.give_back(1);
        queue.published(1);
        let smaller = |file: &File| InflightQueue::new(place(mapping(file), 1), SIZE / 2).expect("a region");
        assert_eq!(smaller(&file).recover(0), Ok(None));
        assert_eq!(smaller(&file).recover(0), Ok(Some(Recovered { available: 0, heads: vec![] })));
    }

    #[test]
    fn a_region_beyond_the_mapping_is_refused() {
        let file = file();
        let mapping = mapping(&file);
        assert!(InflightQueue::new(place(mapping.clone(), 2), SIZE).is_err());
        assert!(InflightQueue::new(place(mapping.clone(), 0), SIZE * 2).is_err());
        assert!(InflightQueue::new(place(mapping, usize::MAX), SIZE).is_err());
    }
}
