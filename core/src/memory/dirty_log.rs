//! The log of guest pages that the device has written, for live migration (vhost-user document, "Migration").
use super::ForeignMapping;
use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

/// Bytes of guest memory for each bit, whatever the guest's own page size (VHOST_LOG_PAGE in the document).
const PAGE_BYTES: u64 = 4096;

/// A bit for each page of guest memory, in a mapping that the front end reads and clears. Clones share it.
#[derive(Clone, Debug)]
pub struct DirtyLog {
    mapping: Arc<ForeignMapping>,
}

impl DirtyLog {
    /// The log in that mapping.
    pub fn new(mapping: Arc<ForeignMapping>) -> Self {
        DirtyLog { mapping }
    }

    /// Records that `length` bytes at guest address `address` have been written. Call it after the writes: otherwise,
    /// the front end could copy the page before them and clear the bit. Pages beyond the end of the log are ignored.
    pub fn mark(&self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        let last = (address.saturating_add(length - 1) / PAGE_BYTES).min(self.mapping.len() as u64 * 8 - 1);
        for page in address / PAGE_BYTES..=last {
            self.byte(page / 8).fetch_or(1 << (page % 8), Ordering::Release);
        }
    }

    /// As [`mark`](Self::mark), of `count` entries of `bytes` each in a ring of `size` of them at `address`: those from
    /// `first` on, wrapping at the end.
    pub fn mark_around(&self, address: u64, bytes: u64, size: u16, first: u16, count: u16) {
        let count = count.min(size);
        let before_end = count.min(size - first);
        for (start, count) in [(first, before_end), (0, count - before_end)] {
            self.mark(address.wrapping_add(bytes * u64::from(start)), bytes * u64::from(count));
        }
    }

    fn byte(&self, index: u64) -> &AtomicU8 {
        assert!(index < self.mapping.len() as u64);
        // SAFETY: the byte was just checked to lie in the mapping, which lives as long as `self`. Partner: the front
        // end's atomic exchange, with which it takes bits out.
        unsafe { AtomicU8::from_ptr(self.mapping.as_ptr().wrapping_add(index as usize)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn entries_of_a_ring_are_marked_around_its_end() {
        let file = crate::memory::anonymous_file(c"log").expect("a file");
        file.set_len(4096).expect("a length");
        // A ring of 8 entries of a page each, from the second page on.
        let marked = |first, count| {
            file.write_all_at(&[0; 8], 0).expect("a file");
            let log = DirtyLog::new(Arc::new(ForeignMapping::map(&file, 0, 8, true).expect("a mapping")));
            log.mark_around(4096, 4096, 8, first, count);
            let mut bits = [0; 8];
            file.read_exact_at(&mut bits, 0).expect("bits");
            u64::from_le_bytes(bits)
        };
        assert_eq!(marked(2, 3), 0b1_1100 << 1);
        assert_eq!(marked(6, 3), 0b1100_0001 << 1);
        assert_eq!(marked(6, 2), 0b1100_0000 << 1);
        assert_eq!([marked(3, 8), marked(3, 9), marked(3, 0)], [0xff << 1, 0xff << 1, 0]);
    }

    #[test]
    fn marks_every_page_that_a_range_touches_and_none_beyond_the_log() {
        let file = crate::memory::anonymous_file(c"log").expect("a file");
        file.set_len(4096).expect("a length");
        let log = DirtyLog::new(Arc::new(ForeignMapping::map(&file, 8, 4, true).expect("a mapping")));
        log.mark(0, 0);
        log.mark(4095, 2);
        log.mark(9 * 4096, 3 * 4096);
        log.mark(31 * 4096, 1 << 40);
        log.mark(32 * 4096, 1);
        log.mark(u64::MAX - 1, 8);
        let mut bits = [0; 8];
        file.read_exact_at(&mut bits, 4).expect("bits");
        assert_eq!(bits, [0, 0, 0, 0, 0b11, 0b1110, 0, 0b1000_0000]);
        file.read_exact_at(&mut bits, 12).expect("bits");
        assert_eq!(bits, [0; 8], "behind the log");
    }
}
