//! Interrupts of a queue that may be held for later requests: what a turn does at its end where there is more to it
//! than to signal.
use super::queue::{BlkQueue, Phase};
use crate::{block::DiskQueue, queue::coalescing::Fate, ring::Ring, stats::clock};

impl<R: Ring, Q: DiskQueue> BlkQueue<R, Q> {
    /// Goes on with a stop, shows the driver what was completed, and sends the interrupt that is owed for it, if it is
    /// due. `is_shown`: a part of it has been shown already.
    #[inline(never)]
    pub(super) fn end_turn(&mut self, is_shown: bool) {
        if self.phase != Phase::Running {
            self.advance_stop();
        }
        if self.ring.publish() | is_shown {
            self.note_batch();
        }
        if self.coalescer.is_owed() && self.coalescer.is_due(self.has_more(), clock::ticks) {
            self.send_owed();
        }
    }

    /// Asks the driver whether it wants to be told of the batch that was just published, and counts what becomes of it.
    fn note_batch(&mut self) {
        let used = self.ring.used_count();
        let fresh = used.wrapping_sub(std::mem::replace(&mut self.used_noted, used));
        // The ring is asked in any case: what it answers is of the time since it was last asked.
        let is_wanted = self.ring.needs_signal();
        match self.coalescer.note(fresh.into(), is_wanted) {
            Fate::Unwanted => self.stats.interrupts_suppressed.add(1),
            Fate::Merged => self.stats.interrupts_merged.add(1),
            // It is counted when it is sent.
            Fate::Owed => {}
        }
    }

    /// Whether more requests are going to complete that an interrupt could tell of. A queue that has failed or comes to
    /// its end holds nothing.
    fn has_more(&self) -> bool {
        if self.phase != Phase::Running || self.broken {
            return false;
        }
        self.backend.in_flight() > 0 || !self.pending.is_empty() || self.recovering || self.ring.has_available()
    }

    /// Sends the interrupt that is owed, if there is one, due or not.
    pub(super) fn send_owed(&mut self) {
        if self.coalescer.take(clock::ticks) {
            self.notifier.signal();
            self.stats.interrupts.add(1);
        }
    }
}
