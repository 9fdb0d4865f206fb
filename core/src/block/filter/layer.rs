//! What a layer has to be, and what it has below it.
use crate::{
    block::disk::{DiskError, DiskQueue},
    plugin::{Completion, QueueFailed, StopFailed},
    worker::Deadline,
};
use pollux_abi::block_v1::{BlockInfo, BlockRequest};
use std::fmt::Debug;

/// A layer of a disk: what its queues have in common. `[control]`
pub trait Filter: Debug + Send + Sync {
    /// What the disk is like above this layer.
    fn describe(&self, below: BlockInfo) -> BlockInfo {
        below
    }
    /// How many requests may be in flight below, if `depth` may be above. Slots below are numbers less than that.
    fn depth_below(&self, depth: u32) -> u32 {
        depth
    }
    /// This layer's part of queue `index`, with room for `depth` requests in flight above it.
    ///
    /// # Errors
    /// There is no memory for it.
    fn open_queue(&self, index: u32, depth: u32) -> Result<Box<dyn FilterQueue>, DiskError>;
}

/// A layer's part of one queue. `[worker]`
///
/// It is called once a batch. Requests are known by their slots, as in a [`DiskQueue`]. A layer has
/// nothing in flight below for a request that it has completed: the guest has its memory back then.
pub trait FilterQueue: Debug + Send {
    /// The calling thread owns the queue from now on.
    ///
    /// # Errors
    /// Why it cannot run. Then nothing below it has been started.
    fn start(&mut self, below: &mut Below<'_>) -> Result<(), DiskError> {
        below.start()
    }
    /// Takes requests, in order, and returns how many; the others are offered again. Those that complete at once are
    /// added to `done`. What cannot be passed on should be held rather than refused: a worker with refused requests
    /// does not sleep.
    ///
    /// # Errors
    /// The queue below has failed.
    fn submit(
        &mut self,
        requests: &mut [BlockRequest],
        below: &mut Below<'_>,
        done: &mut Vec<Completion>,
    ) -> Result<usize, QueueFailed> {
        below.submit(requests, done)
    }
    /// Adds what has completed to `done`. Called in every turn in which requests are in flight or were refused.
    ///
    /// # Errors
    /// The queue below has failed.
    fn poll(&mut self, below: &mut Below<'_>, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        below.poll(done)
    }
    /// From when on this layer wants to be polled, though nothing completes below: as soon as the first of the requests
    /// that it holds is to go on. Until then the worker may sleep. Asked before each sleep, but only while requests are
    /// in flight.
    fn deadline(&self) -> Option<Deadline> {
        None
    }
    /// Before and after a sleep. Returns whether the worker must not sleep: it has something to do though nothing
    /// completes below, and cannot say [when](Self::deadline).
    ///
    /// # Errors
    /// The queue below has failed.
    fn arm(&mut self, armed: bool, below: &mut Below<'_>) -> Result<bool, QueueFailed> {
        below.arm(armed)
    }
    /// The worker gives the queue back. What is held, if the queue has failed, is forgotten.
    ///
    /// # Errors
    /// Something below may still use the memory of requests.
    fn stop(&mut self, below: &mut Below<'_>) -> Result<(), StopFailed> {
        below.stop()
    }
}

/// What is below a layer: further layers, and at their end the disk. `[worker]`
#[derive(Debug)]
pub struct Below<'q> {
    pub(in crate::block) layers: &'q mut [Box<dyn FilterQueue>],
    pub(in crate::block) base: &'q mut Base,
}

impl Below<'_> {
    /// The next layer, and what is below that. `None`: there are no more, and the disk comes next.
    #[inline(always)]
    fn next(&mut self) -> Option<(&mut dyn FilterQueue, Below<'_>)> {
        let (layer, layers) = self.layers.split_first_mut()?;
        Some((&mut **layer, Below { layers, base: self.base }))
    }

    /// As [`DiskQueue::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(&mut self) -> Result<(), DiskError> {
        match self.next() {
            Some((layer, mut below)) => layer.start(&mut below),
            None => self.base.queue.start(),
        }
    }

    /// As [`DiskQueue::submit`], and adds what has completed to `done`. The tokens of those that were taken are not to
    /// be used any more.
    ///
    /// # Errors
    /// As there.
    pub fn submit(&mut self, requests: &mut [BlockRequest], done: &mut Vec<Completion>) -> Result<usize, QueueFailed> {
        match self.next() {
            Some((layer, mut below)) => layer.submit(requests, &mut below, done),
            None => self.base.submit(requests, done),
        }
    }

    /// As [`DiskQueue::poll`], and adds what has completed to `done`.
    ///
    /// # Errors
    /// As there.
    pub fn poll(&mut self, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        match self.next() {
            Some((layer, mut below)) => layer.poll(&mut below, done),
            None => self.base.poll(done),
        }
    }

    /// As [`DiskQueue::arm`].
    ///
    /// # Errors
    /// As there.
    pub fn arm(&mut self, armed: bool) -> Result<bool, QueueFailed> {
        match self.next() {
            Some((layer, mut below)) => layer.arm(armed, &mut below),
            None => self.base.queue.arm(armed),
        }
    }

    /// As [`DiskQueue::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&mut self) -> Result<(), StopFailed> {
        match self.next() {
            Some((layer, mut below)) => layer.stop(&mut below),
            None => self.base.queue.stop(),
        }
    }
}

/// The disk's queue at the end of a stack.
#[derive(Debug)]
pub(in crate::block) struct Base {
    pub(in crate::block) queue: Box<dyn DiskQueue>,
    /// It has not taken all that it was offered last, and is to be polled for that.
    pub(in crate::block) has_refused: bool,
}

impl Base {
    fn submit(&mut self, requests: &mut [BlockRequest], done: &mut Vec<Completion>) -> Result<usize, QueueFailed> {
        if requests.is_empty() {
            return Ok(0);
        }
        let taken = self.queue.submit_to(requests, done)?;
        self.has_refused = taken < requests.len();
        Ok(taken)
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> Result<(), QueueFailed> {
        // Layers are polled for what they hold; the disk is not, if it has nothing.
        if self.queue.in_flight() == 0 && !self.has_refused {
            return Ok(());
        }
        self.queue.poll_to(done).map(|_| ())
    }
}
