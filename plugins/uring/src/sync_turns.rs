//! The syncs of a queue, each of which must hear of every loss.
//!
//! The kernel tells a loss once to each open file ([`FlushLatch`](pollux_abi::flush_latch::FlushLatch)). So each queue
//! syncs through an open file of its own, so that no other queue's sync takes its report away, and makes one sync at a
//! time, so that none of its own does.
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

/// Another open file of the same medium, whose reports of failed write-backs are its own.
pub(crate) fn reopened(file: &File) -> io::Result<File> {
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    // `fdatasync` asks for no permission to write. Without /proc the reports are shared, and the latch alone keeps
    // them.
    OpenOptions::new().read(true).open(name).or_else(|_| file.try_clone())
}

/// The syncs of a queue, of which one is made at a time. Those that come meanwhile are one call, too: the next.
#[derive(Debug)]
pub(crate) struct SyncTurns {
    /// Slots that end with the call under way; the first has made it.
    current: Vec<u32>,
    waiting: Vec<u32>,
}

impl SyncTurns {
    pub(crate) fn new(depth: u32) -> Self {
        let room = || Vec::with_capacity(depth as usize);
        SyncTurns { current: room(), waiting: room() }
    }

    /// Takes a slot in, unless it is there already. Returns whether it makes the call now.
    pub(crate) fn join(&mut self, index: u32) -> bool {
        match self.current.first() {
            Some(&first) if first == index => {}
            Some(_) => self.waiting.push(index),
            None => self.current.push(index),
        }
        self.current[0] == index
    }

    /// Whether the call under way is this slot's.
    pub(crate) fn is_under_way(&self, index: u32) -> bool {
        self.current.first() == Some(&index)
    }

    /// The call under way has ended: takes the slots that end with it. To be given back to [`next`](Self::next).
    pub(crate) fn take_ended(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.current)
    }

    /// Those that have waited have their turn. Returns the one that makes the call.
    pub(crate) fn next(&mut self, mut ended: Vec<u32>) -> Option<u32> {
        ended.clear();
        self.current = std::mem::replace(&mut self.waiting, ended);
        self.current.first().copied()
    }

    /// Slots for which no call of their own is under way.
    pub(crate) fn idle(&self) -> usize {
        self.waiting.len() + self.current.len().saturating_sub(1)
    }

    /// Takes those out, for good.
    pub(crate) fn drain_idle(&mut self) -> impl Iterator<Item = u32> {
        let own = self.current.len().min(1);
        self.waiting.drain(..).chain(self.current.drain(own..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_that_come_during_one_are_the_next_together() {
        let mut turns = SyncTurns::new(4);
        assert!(turns.join(3));
        assert!(!turns.join(0) && !turns.join(2));
        assert_eq!(turns.idle(), 2);
        let ended = turns.take_ended();
        assert_eq!(ended, [3]);
        assert_eq!(turns.next(ended), Some(0));
        assert!(!turns.join(1));
        let ended = turns.take_ended();
        assert_eq!(ended, [0, 2]);
        assert_eq!(turns.next(ended), Some(1));
        let ended = turns.take_ended();
        assert_eq!(turns.next(ended), None);
        assert!(turns.join(3), "the next has nobody to wait for");
    }
}
