//! One queue of the backend, whichever way its requests go.
use crate::{nvme::NvmeCommands, protocol::Files, ring_queue::RingQueue, sync_queue::SyncQueue};
use pollux_abi::block::{BlockQueue, Completions, Error, Request};
use std::os::fd::RawFd;

/// One queue of the backend.
#[derive(Debug)]
pub struct UringQueue(Way);

// It lies on the heap whichever it is, and another indirection would be one more on the hot path.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(crate) enum Way {
    /// Through io_uring.
    Ring(RingQueue<Files>),
    /// By NVMe commands through io_uring.
    Nvme(RingQueue<NvmeCommands>),
    /// By system calls within `submit`.
    Sync(SyncQueue),
}

/// Calls the same function of whichever queue it is.
macro_rules! forward {
    ($queue:expr, $inner:ident => $call:expr) => {
        match &mut $queue.0 {
            Way::Ring($inner) => $call,
            Way::Nvme($inner) => $call,
            Way::Sync($inner) => $call,
        }
    };
}

impl From<Way> for UringQueue {
    fn from(way: Way) -> Self {
        UringQueue(way)
    }
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
        match &self.0 {
            Way::Ring(queue) => queue.wake_fd(),
            Way::Nvme(queue) => queue.wake_fd(),
            Way::Sync(queue) => queue.wake_fd(),
        }
    }

    fn arm(&mut self, armed: bool) -> bool {
        forward!(self, queue => queue.arm(armed))
    }

    fn stop(&mut self) -> Result<(), Error> {
        forward!(self, queue => queue.stop())
    }
}
