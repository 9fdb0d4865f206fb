//! What changes while a queue runs: its memory map, its notifications, the log of pages that it writes. All of it is
//! done between two turns, on the worker, and takes no longer than a turn does.
use super::{
    chain::{IN_USE, OLD_MEMORY},
    queue::BlkQueue,
};
use crate::{
    block::DiskQueue,
    memory::{DirtyLog, Translator},
    queue::{Position, QueueUpdate, Retired},
    ring::{QueueConfig, Ring},
};
use pollux_abi::block_v1::{POLLUX_BLOCK_READ, Segment};
use rustix::io::{ReadWriteFlags, preadv2};
use std::{
    io::IoSliceMut,
    mem::{replace, swap},
    os::fd::{AsRawFd, BorrowedFd},
    sync::mpsc::SyncSender,
};

/// Replaced memory maps, each with where it goes when the last request is done that was taken before the replacement.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    maps: Vec<(Retired, SyncSender<Retired>)>,
    /// Requests in flight that were taken under any of them.
    requests: u32,
}

impl Retiring {
    /// One of those requests has ended.
    #[cold]
    pub(super) fn request_done(&mut self) {
        self.requests -= 1;
        self.release();
    }

    fn release(&mut self) {
        if self.requests == 0 {
            for (map, done) in self.maps.drain(..) {
                // There is room for one. A receiver that is gone has no use for it; then it is unmapped here.
                let _ = done.try_send(map);
            }
        }
    }

    /// The guest address of a host address in one of the maps.
    fn guest_address(&self, host: *const u8) -> Option<u64> {
        self.maps.iter().find_map(|(Retired([_, data]), _)| data.guest_address(host))
    }
}

/// Notes what the device has written to guest memory, if that is logged.
pub(super) fn log_segments(log: Option<&DirtyLog>, data: &Translator, retiring: &Retiring, segments: &[Segment]) {
    let Some(log) = log else { return };
    for segment in segments {
        let host = segment.base;
        if let Some(address) = data.guest_address(host).or_else(|| retiring.guest_address(host)) {
            log.mark(address, segment.length as u64);
        }
    }
}

impl<R: Ring, Q: DiskQueue> BlkQueue<R, Q> {
    /// Takes up a change and leaves in its place what was there before.
    #[cold]
    pub(super) fn change(&mut self, update: &mut QueueUpdate) {
        match replace(update, QueueUpdate::Empty) {
            QueueUpdate::Memory { config, tables, data, retired } => {
                self.adopt_memory(&config, tables, data, retired);
            }
            QueueUpdate::Notifier(mut notifier) => {
                // What is owed is told in the new way: the old one may lead to nobody any more.
                swap(&mut self.notifier, &mut notifier);
                if self.coalescer.is_owed() {
                    self.send_owed();
                } else {
                    self.notifier.signal();
                }
                *update = QueueUpdate::Notifier(notifier);
            }
            QueueUpdate::Kick(mut kick) => {
                self.take_kicks();
                swap(&mut self.kick, &mut kick);
                *update = QueueUpdate::Kick(kick);
            }
            QueueUpdate::Log(mut log, used) => {
                let old = self.ring.set_log(log.clone().zip(used));
                swap(&mut self.log, &mut log);
                *update = QueueUpdate::Log(log.or(old.map(|(log, _)| log)), None);
            }
            QueueUpdate::Position(_) => {
                *update = QueueUpdate::Position(Some(Position { base: self.ring.base() }));
            }
            QueueUpdate::Empty => {}
        }
    }

    /// Goes on in another memory map. Requests in flight end in the old one, which is kept for them.
    fn adopt_memory(
        &mut self,
        config: &QueueConfig,
        mut tables: Translator,
        mut data: Translator,
        done: SyncSender<Retired>,
    ) {
        // A ring that is broken stays where it was, for what is in flight; then the new map is what it has no use for.
        // Either way the old one is in use until those requests are done.
        if !self.broken {
            match self.ring.adopt(config, &mut tables) {
                Ok(()) => swap(&mut self.data, &mut data),
                Err(error) => _ = self.break_ring(error),
            }
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.state & IN_USE != 0) {
            slot.state |= OLD_MEMORY;
        }
        // Not so many as there are slots in use, if the ring broke within a batch: that one is never submitted.
        self.retiring.requests = self.backend.in_flight() + (self.pending.len() - self.pending_start) as u32;
        self.retiring.maps.push((Retired([tables, data]), done));
        self.retiring.release();
    }

    /// Notes what the device has written for requests that have just ended, before the driver is told of them.
    #[cold]
    #[inline(never)]
    pub(super) fn log_completed(&mut self, completed: usize) {
        for index in 0..completed {
            if let Ok(head) = u16::try_from(self.completed_slot(index))
                && head < self.ring.size()
            {
                self.log_request(head);
            }
        }
    }

    /// Notes what the device has written for one request: its data, if it was read, and the status byte.
    #[cold]
    pub(super) fn log_request(&mut self, head: u16) {
        let Some(log) = &self.log else { return };
        let index = usize::from(head);
        let slot = &self.slots[index];
        let mark = |segments: &[Segment]| log_segments(Some(log), &self.data, &self.retiring, segments);
        mark(&[Segment { base: slot.status, length: 1 }]);
        // Of what does not come from the backend, only the answer to GET_ID has data that is written; to note too much
        // does no harm.
        if slot.operation == POLLUX_BLOCK_READ || slot.operation == u32::MAX {
            mark(slot.data((&self.inline[index], self.rooms.of(head))));
        }
    }

    /// Takes the kicks that came in, for the statistics and so that the descriptor is not readable any more.
    pub(super) fn take_kicks(&mut self) {
        let Some(kick) = &self.kick else { return };
        // SAFETY: the descriptor is open as long as `kick` is borrowed.
        let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
        let mut count = [0; 8];
        // The descriptor may come from a front end, which can make it block at any time: hence RWF_NOWAIT, which an
        // eventfd knows (Linux 5.8). EAGAIN: there were none.
        let read = preadv2(kick, &mut [IoSliceMut::new(&mut count)], u64::MAX, ReadWriteFlags::NOWAIT);
        if read == Ok(8) {
            self.stats.kicks.add(u64::from_ne_bytes(count));
        }
    }
}
