//! What all records have: words that can be copied and compared one by one, a life, a name.
use super::header::TableOf;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Something made of words and nothing else, so that it can be copied word by word.
///
/// # Safety
/// The type consists only of `AtomicU64`, without padding, and all zeroes are a valid value of it.
pub unsafe trait Words: Sized {
    /// Number of words.
    const WORDS: usize = size_of::<Self>() / 8;

    /// Words that are not pure counters.
    fn gauges(&self) -> impl Iterator<Item = &AtomicU64>;

    /// All of it.
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the trait's own promise.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), Self::WORDS) }
    }

    /// All zeroes, in private memory.
    fn zeroed() -> Box<Self> {
        // SAFETY: the trait's own promise.
        unsafe { Box::<Self>::new_zeroed().assume_init() }
    }

    /// A copy of `words`, in private memory: padded with zeroes, or cut to length.
    fn copy_of(words: &[AtomicU64]) -> Box<Self> {
        let copy = Self::zeroed();
        for (to, from) in copy.words().iter().zip(words) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        copy
    }

    /// A copy in private memory.
    fn copy(&self) -> Box<Self> {
        Self::copy_of(self.words())
    }

    /// What was counted since `earlier`, a copy of the same life; gauges as they are now.
    fn since(&self, earlier: &Self) -> Box<Self> {
        let difference = self.copy();
        for (word, earlier) in difference.words().iter().zip(earlier.words()) {
            let now = word.load(Ordering::Relaxed);
            word.store(now.wrapping_sub(earlier.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        for (to, from) in difference.gauges().zip(self.gauges()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        difference
    }
}

/// How often to try to copy a record that keeps being released and taken again.
const ATTEMPTS: usize = 8;

/// An entry of a segment's tables, which comes and goes.
pub(super) trait Record: Words {
    const TABLE: TableOf;

    /// 0 while it is free, and otherwise a number that no other record of the segment has had or will have.
    fn life(&self) -> &AtomicU64;

    fn is_alive(&self) -> bool {
        self.life().load(Ordering::Acquire) != 0
    }

    /// Changes a free record by `describe`, then gives it a life.
    fn begin_life(&self, life: u64, describe: impl FnOnce(&Self)) {
        // Partner: the fence of `read_alive`. A reader that sees any of the changes also sees that the previous life
        // has ended.
        fence(Ordering::Release);
        describe(self);
        // Partner: the first load of `read_alive`.
        self.life().store(life, Ordering::Release);
    }

    /// Frees it. Its numbers stay until it is taken again.
    fn end_life(&self) {
        self.life().store(0, Ordering::Relaxed);
    }

    /// Reads something that belongs to a single life of it. `None`: it is free, or keeps changing hands.
    fn read_alive<T>(&self, read: impl Fn() -> T) -> Option<T> {
        for _ in 0..ATTEMPTS {
            let life = self.life().load(Ordering::Acquire);
            if life == 0 {
                return None;
            }
            let seen = read();
            fence(Ordering::Acquire);
            if self.life().load(Ordering::Relaxed) == life {
                return Some(seen);
            }
        }
        None
    }
}

/// Clears words of a record that is free.
pub(super) fn clear(words: &[AtomicU64]) {
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

/// A name of at most `8 * WORDS` bytes, padded with zeroes.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Name<const WORDS: usize = 8>([AtomicU64; WORDS]);

impl<const WORDS: usize> Name<WORDS> {
    pub(super) fn set(&self, name: &str) {
        let name = &name[..name.floor_char_boundary(8 * WORDS)];
        let mut bytes = name.bytes().chain(std::iter::repeat(0));
        for word in &self.0 {
            let chunk = std::array::from_fn(|_| bytes.next().unwrap_or_default());
            word.store(u64::from_le_bytes(chunk), Ordering::Relaxed);
        }
    }

    /// As text that can be shown, whatever another process has written.
    pub(super) fn get(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.trim_end_matches('\0').replace(char::is_control, "\u{fffd}")
    }

    pub(super) fn words(&self) -> &[AtomicU64; WORDS] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use crate::stats::{
        BUCKETS, BackendStats, BlkStats, COUNTERS, QueueIdentity, QueueStats, StatsSegment, WorkerStats,
        header::{Header, Table},
        record::Name,
    };
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_as_documented() {
        assert_eq!(size_of::<Header>(), 256);
        assert_eq!((offset_of!(Header, ended), offset_of!(Header, tables), size_of::<Table>()), (48, 64, 32));
        assert_eq!((offset_of!(Header, buckets), offset_of!(Header, sub_buckets)), (160, 168));
        assert_eq!(size_of::<WorkerStats>(), 256);
        assert_eq!((offset_of!(WorkerStats, thread), offset_of!(WorkerStats, resting)), (64, 104));
        assert_eq!(offset_of!(WorkerStats, wakes_by_deadline), 120);
        assert_eq!((offset_of!(WorkerStats, turns), offset_of!(WorkerStats, sleeps)), (128, 160));
        assert_eq!((offset_of!(WorkerStats, wakes_by_kick), offset_of!(WorkerStats, commands)), (184, 208));
        assert_eq!((offset_of!(WorkerStats, run_ns), offset_of!(WorkerStats, switches_involuntary)), (224, 248));
        assert_eq!((offset_of!(QueueStats, requests), offset_of!(QueueStats, in_flight)), (192, 208));
        assert_eq!((offset_of!(QueueStats, kicks), offset_of!(QueueStats, interrupts)), (216, 224));
        assert_eq!(offset_of!(QueueStats, interrupts_merged), 240);
        assert_eq!((offset_of!(QueueStats, batches), size_of::<QueueStats>()), (256, 384));
        assert_eq!((offset_of!(BlkStats, bytes_read), offset_of!(BlkStats, latency)), (32, 128));
        assert_eq!(size_of::<BlkStats>(), 128 + 4 * 8 * BUCKETS, "no padding");
        assert_eq!((size_of::<BackendStats>(), COUNTERS), (256 + 60 * 64, 60));
    }

    #[test]
    fn the_descriptions_of_records_are_where_documented() {
        let segment = StatsSegment::anonymous(1).expect("segment");
        let identity = QueueIdentity { device: "blk0", index: 7, worker: "io0" };
        let queue = segment.add_queue::<BlkStats>(identity).expect("room");
        let word = |index: usize| super::Words::words(&*queue)[index].load(std::sync::atomic::Ordering::Relaxed);
        let letters = |text: &[u8; 8]| u64::from_le_bytes(*text);
        assert_eq!((word(0), word(1), word(2), word(3)), (1, 2, size_of::<BlkStats>() as u64, 7));
        assert_eq!((word(8), word(16)), (letters(b"blk0\0\0\0\0"), letters(b"io0\0\0\0\0\0")));
        queue.block.count_error(28);
        let word = |index: usize| super::Words::words(&*queue.block)[index].load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((word(8), word(9)), (28, 1));
    }

    #[test]
    fn names_are_cut_between_characters_and_shown_without_control_characters() {
        let name: Name<1> = Name(Default::default());
        name.set("1234567\u{e9}");
        assert_eq!(name.get(), "1234567");
        name.set("a\u{1b}[2J");
        assert_eq!(name.get(), "a\u{fffd}[2J");
        name.set("");
        assert_eq!(name.get(), "");
    }

    #[test]
    fn errors_are_told_apart_by_their_first_errnos_also_of_a_period() {
        let segment = StatsSegment::anonymous(1).expect("segment");
        let queue =
            segment.add_queue::<BlkStats>(QueueIdentity { device: "blk0", index: 0, worker: "io0" }).expect("room");
        let count = |numbers: &[u16]| {
            queue.errors.add(numbers.len() as u64);
            numbers.iter().for_each(|&number| queue.block.count_error(number));
        };
        count(&[5, 28, 5, BlkStats::REFUSED]);
        let before = segment.snapshot();
        let all = |queue: &BlkStats| queue.errors_by_number().collect::<Vec<_>>();
        assert_eq!(all(before.queues[0].blk().expect("blk")), [(5, 2), (28, 1), (BlkStats::REFUSED, 1)]);
        // A fourth one, and one that says nothing, are among the others.
        count(&[28, 61, 0, BlkStats::REFUSED]);
        let between = segment.snapshot().since(&before);
        assert_eq!(all(between.queues[0].blk().expect("blk")), [(28, 1), (BlkStats::REFUSED, 1)]);
        assert_eq!(between.queues[0].errors.get(), 4);
    }
}
