//! One queue of the backend, whichever way its requests go.
use crate::{ring_queue::RingQueue, sync_queue::SyncQueue};
use pollux_abi::block::{BlockQueue, Completions, Error, Request};
use std::os::fd::RawFd;

/// One queue of the backend.
// It lies on the heap whichever it is, and another indirection would be one more on the hot path.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum UringQueue {
    /// Through io_uring.
    Ring(RingQueue),
    /// By system calls within `submit`.
    Sync(SyncQueue),
}

/// Calls the same function of whichever queue it is.
macro_rules! forward {
    ($queue:expr, $inner:ident => $call:expr) => {
        match $queue {
            UringQueue::Ring($inner) => $call,
            UringQueue::Sync($inner) => $call,
        }
    };
}

impl BlockQueue for UringQueue {
    fn start(&mut self) -> Result<(), Error> {
        forward!(self, queue => queue.start())
    }

    #[inline]
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        forward!(self, queue => queue.submit(requests, done))
    }

    #[inline]
    fn poll(&mut self, done: &mut Completions) {
        forward!(self, queue => queue.poll(done))
    }

    fn wake_fd(&self) -> Option<RawFd> {
        forward!(self, queue => queue.wake_fd())
    }

    fn arm(&mut self, armed: bool) -> bool {
        forward!(self, queue => queue.arm(armed))
    }

    fn stop(&mut self) -> Result<(), Error> {
        forward!(self, queue => queue.stop())
    }
}
