//! What a worker runs.
use std::os::fd::RawFd;

/// The file descriptors on which a worker may sleep for a task.
#[derive(Clone, Copy, Debug, Default)]
pub struct SleepFds {
    /// The driver's kicks.
    pub kick: Option<RawFd>,
    /// The backend's completions.
    pub wake: Option<RawFd>,
}

/// Something that a worker polls: a queue, later also block jobs and timers. `[worker]` throughout.
///
/// The life of a task: `start`, then turns of `poll`, with `arm` and `disarm` around each sleep; after `begin_stop`
/// further turns until `is_stopped`, then `finish`.
pub trait Task: Send {
    /// What it is, for messages: `blk0 queue 1`.
    fn name(&self) -> &str;
    /// The calling thread owns the task from now on.
    ///
    /// # Errors
    /// The reason why it cannot run.
    fn start(&mut self) -> Result<(), String>;
    /// One turn. Returns how much there was to do; 0 makes the turn an empty one. Never blocks.
    fn poll(&mut self) -> usize;
    /// Take up nothing new; finish what has begun.
    fn begin_stop(&mut self);
    /// Whether everything has ended after `begin_stop`.
    fn is_stopped(&self) -> bool;
    /// The last call of the worker. Returns whether the task may be dropped: not if something may still touch what it
    /// owns.
    fn finish(&mut self) -> bool;
    /// The task has panicked: tell the guest, as far as that is possible. Nothing is called after it, not even `drop`.
    fn abandon(&mut self);
    /// Where to sleep for it.
    fn sleep_fds(&self) -> SleepFds;
    /// Makes those descriptors readable at the next event. Returns `true` if there is work already, or if the task
    /// cannot be waited for: the worker must not sleep.
    fn arm(&mut self) -> bool;
    /// The worker polls again.
    fn disarm(&mut self);
}
