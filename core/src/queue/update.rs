//! Changes to a queue that runs, and what is known of one that has stopped.
use crate::{
    event::Notifier,
    memory::{DirtyLog, Translator},
    ring::QueueConfig,
    worker::Task,
};
use std::sync::{Arc, mpsc::SyncSender};
use vmm_sys_util::eventfd::EventFd;

/// The position of a queue that has been taken back from its worker. `None`: the task is not a queue.
pub fn position_of(queue: &mut dyn Task) -> Option<Position> {
    let mut question = QueueUpdate::Position(None);
    queue.update(&mut question);
    if let QueueUpdate::Position(position) = question { position } else { None }
}

/// The position of a queue in its rings: what is needed to continue from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// As [`Ring::base`](crate::ring::Ring::base) says it.
    pub base: u32,
}

/// Memory that a queue does not use any more: kept mapped until the last request taken under it has completed.
#[derive(Debug)]
pub struct Retired(pub [Translator; 2]);

/// A change to a running queue. The queue swaps the new for the old, which goes back to the control thread: dropping it
/// may take long, and allocating it did.
#[derive(Debug)]
pub enum QueueUpdate {
    /// A new memory map. The queue continues in it at once; requests in flight complete in the old one.
    Memory {
        /// Where the rings are in it.
        config: QueueConfig,
        /// For the rings and descriptor tables.
        tables: Translator,
        /// For data.
        data: Translator,
        /// Where the old map goes once no request taken under it is in flight. Has room for one.
        retired: SyncSender<Retired>,
    },
    /// How the driver is notified of used buffers. It is notified once at the change, in case the old way missed
    /// something.
    Notifier(Notifier),
    /// Where the driver's kicks come in.
    Kick(Option<Arc<EventFd>>),
    /// Which log notes the pages that the device writes, and the guest address by which the used ring is noted.
    Log(Option<DirtyLog>, Option<u64>),
    /// Asks for the queue's position. Its owner does so when it has the queue back.
    Position(Option<Position>),
    /// Nothing, or nothing any more.
    Empty,
}
