//! What a worker runs.
use super::Deadline;
use crate::event::Watch;
use std::{any::Any, os::fd::RawFd};

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
    /// What the task waits for, if its next turn does nothing until that changes: it may then be left alone until it
    /// does. Asked after turns without work. `None`: it must be polled, since it waits for something else as well.
    fn watch(&self) -> Option<Watch> {
        None
    }
    /// When the task wants to be polled, whatever it watches and whatever signals arrive. Asked when it comes to rest
    /// and before the worker sleeps, so it may change with any call of the task. The task itself checks in its turns
    /// whether the deadline is due, since it is polled at other times as well. While one is due, the worker does not
    /// sleep. `None`: it waits for no time.
    fn deadline(&self) -> Option<Deadline> {
        None
    }
    /// Take up nothing new; finish what has begun.
    fn begin_stop(&mut self);
    /// Whether everything has ended after `begin_stop`.
    fn is_stopped(&self) -> bool;
    /// The last call of the worker. Returns whether the task may be dropped: not if something may still touch what it
    /// owns.
    fn finish(&mut self) -> bool;
    /// Applies a change of a type that its kind of task knows, and leaves the previous value in its place: dropping
    /// that may take long, so the sender of the change does it. Changes of other types are left as they are. After the
    /// last call of the worker, the thread that has the task back may query it in this way.
    fn update(&mut self, _change: &mut dyn Any) {}
    /// The task has panicked: tell the guest, and release what others may touch. Returns whether that has succeeded, as
    /// [`finish`](Self::finish) does; then nothing is called any more but [`update`](Self::update) and `drop`, else not
    /// even these.
    fn abandon(&mut self) -> bool;
    /// Where to sleep for it.
    fn sleep_fds(&self) -> SleepFds;
    /// Makes those descriptors readable at the next event. Returns `true` if there is work already, or if the task
    /// cannot be waited for: the worker must not sleep.
    fn arm(&mut self) -> bool;
    /// The worker polls again.
    fn disarm(&mut self);
}
