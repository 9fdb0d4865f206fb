//! What a block device model knows of its medium.
use crate::{
    memory::GuestMemory,
    plugin::{BackendError, Completion, QueueFailed, StopFailed},
    stats::StatsSegment,
    worker::Deadline,
};
use pollux_abi::block_v1::{BlockInfo, BlockRequest};
use std::{any::Any, collections::TryReserveError, fmt::Debug, os::fd::RawFd, sync::Arc};

/// Why a disk cannot do what it is asked to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its backend's reason.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// There is no memory for a queue of it.
    #[error("{name}: no memory for a queue of {depth} requests: {source}")]
    Memory {
        /// The disk.
        name: String,
        /// Requests in flight that there was to be room for.
        depth: u32,
        /// Why.
        source: TryReserveError,
    },
}

/// A medium, as a block device model knows it. `[control]` unless said otherwise.
pub trait Disk: Debug + Send + Sync {
    /// Its name in the configuration. `[any thread]`
    fn name(&self) -> &str;
    /// What serves it, for messages: `the plugin mem`. `[any thread]`
    fn server(&self) -> String;
    /// What the medium was like when it was opened. `[any thread]`
    fn info(&self) -> &BlockInfo;
    /// Asks again what the medium is like.
    ///
    /// # Errors
    /// It is like nothing that there can be, or has other blocks than before.
    fn describe(&self) -> Result<BlockInfo, DiskError>;
    /// Becomes readable when the description has changed; [`describe`](Self::describe) clears it.
    fn change_event(&self) -> RawFd;
    /// Announces the regions of the guest's memory that are not known yet. They stay mapped until they are taken back.
    ///
    /// # Errors
    /// A region was refused. Those before it are known then.
    fn add_memory(&self, memory: &GuestMemory) -> Result<(), DiskError>;
    /// Takes all regions back that are not in `memory`. No request may be in flight that points into one.
    fn remove_memory_but(&self, memory: Option<&GuestMemory>);
    /// Has what serves it count into a record of `segment`, if there is room for one. To be called once.
    fn count(&self, segment: &StatsSegment);
    /// Opens queue `index` with room for `depth` requests in flight.
    ///
    /// # Errors
    /// It was refused, or there is no memory for it.
    fn open_queue(self: Arc<Self>, index: u32, depth: u32) -> Result<Box<dyn DiskQueue>, DiskError>;
}

/// One queue of a disk: `[worker]` unless said otherwise. A request is known by its slot, a number below the depth, and
/// completes exactly once.
///
/// The life of a queue: `start`, then `submit`, `poll` and `arm` in any order, then `stop`. In a queue that has failed
/// come `stop` and [`take_in_flight`](Self::take_in_flight) alone.
pub trait DiskQueue: Any + Debug + Send {
    /// The calling thread owns the queue from now on.
    ///
    /// # Errors
    /// Why it cannot run.
    fn start(&mut self) -> Result<(), DiskError>;
    /// Offers requests, in order; returns how many were taken. The `token` of each must be its slot, and that slot
    /// must be free. Those that completed at once are in [`completion`](Self::completion).
    ///
    /// # Errors
    /// The queue has failed: take its requests back with [`take_in_flight`](Self::take_in_flight), after those that
    /// did complete.
    fn submit(&mut self, requests: &mut [BlockRequest]) -> Result<usize, QueueFailed>;
    /// Looks for completed requests; returns how many there are. To be called while requests are in flight or were not
    /// taken.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    fn poll(&mut self) -> Result<usize, QueueFailed>;
    /// Number of completions of the last `submit` or `poll`.
    fn completed(&self) -> usize;
    /// One of them.
    fn completion(&self, index: usize) -> Completion;
    /// The same, when its request is about to end: for each of them, once, before the queue is called again.
    #[inline(always)]
    fn take_completion(&mut self, index: usize) -> Completion {
        self.completion(index)
    }
    /// As [`submit`](Self::submit), and takes all that has completed, for callers that know the queue by its trait
    /// alone.
    ///
    /// # Errors
    /// As there.
    fn submit_to(&mut self, requests: &mut [BlockRequest], done: &mut Vec<Completion>) -> Result<usize, QueueFailed> {
        let result = self.submit(requests);
        done.extend((0..self.completed()).map(|index| self.take_completion(index)));
        result
    }
    /// As [`poll`](Self::poll), likewise.
    ///
    /// # Errors
    /// As there.
    fn poll_to(&mut self, done: &mut Vec<Completion>) -> Result<usize, QueueFailed> {
        let result = self.poll();
        done.extend((0..self.completed()).map(|index| self.take_completion(index)));
        result
    }
    /// Where on the medium the last request of a slot began, also after its end.
    fn offset(&self, slot: u32) -> u64;
    /// Requests in flight.
    fn in_flight(&self) -> u32;
    /// Most requests in flight. `[any thread]`
    fn depth(&self) -> usize;
    /// Whether the queue has failed.
    fn has_failed(&self) -> bool;
    /// After a failure: the slots of all requests that were in flight. They will not complete any more.
    fn take_in_flight(&mut self) -> Vec<u32>;
    /// A descriptor that becomes readable when an armed queue has completions. `[any thread]`
    fn wake_fd(&self) -> Option<RawFd>;
    /// From when on it wants to be polled, whatever completes. Asked before a sleep. Only a queue with requests in
    /// flight has one.
    #[inline(always)]
    fn deadline(&self) -> Option<Deadline> {
        None
    }
    /// Before (`true`) and after a sleep on [`wake_fd`](Self::wake_fd). Returns whether the worker must not sleep: it
    /// must not for requests that end neither with a sign of that descriptor nor after a [`deadline`](Self::deadline).
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    fn arm(&mut self, armed: bool) -> Result<bool, QueueFailed>;
    /// The worker gives the queue back. Returns when nothing touches the memory of its requests any more; those that
    /// were in flight, if the queue has failed, do not complete.
    ///
    /// # Errors
    /// That cannot be said. Neither the queue nor the memory of its requests may be freed or used again, ever.
    fn stop(&mut self) -> Result<(), StopFailed>;
    /// The disk it belongs to. `[any thread]`
    fn disk(&self) -> Arc<dyn Disk>;
}
