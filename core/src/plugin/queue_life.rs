//! The life cycle of one queue of an instance, whichever interface it implements: start, arm, stop, close.
use super::{
    error::{BackendError, with_reason},
    instance::Instance,
};
use pollux_abi::text::TextBuffer;
use std::{ffi::c_void, mem, os::fd::RawFd, sync::Arc};
use tracing::warn;

/// The queue of a backend has failed: its plugin panicked or broke the contract. It takes no more requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QueueFailed(pub(super) &'static str);

/// A queue could not be stopped: something may still write to the memory of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plugin could not stop the queue")]
pub struct StopFailed;

/// The calls that the queues of every interface have, out of its table. The first argument of each is the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueCalls {
    pub(super) start: unsafe extern "C" fn(*mut c_void, *mut TextBuffer) -> i32,
    pub(super) arm: unsafe extern "C" fn(*mut c_void, u32) -> i32,
    pub(super) stop: unsafe extern "C" fn(*mut c_void) -> i32,
    pub(super) close: unsafe extern "C" fn(*mut c_void),
}

/// An open queue. Dropped, it is closed, unless something may still use it: then it is leaked with its instance.
#[derive(Debug)]
pub(super) struct QueueLife {
    queue: *mut c_void,
    failed: bool,
    started: bool,
    wake_fd: Option<RawFd>,
    calls: QueueCalls,
    instance: Arc<Instance>,
}

impl QueueLife {
    /// A queue of `instance` that was just opened. `wake_fd` is negative if there is none.
    ///
    /// # Safety
    /// `calls` are of the interface that `queue` is a queue of; it is open, and nobody else closes it.
    pub(super) unsafe fn new(instance: Arc<Instance>, calls: QueueCalls, queue: *mut c_void, wake_fd: RawFd) -> Self {
        let wake_fd = (wake_fd >= 0).then_some(wake_fd);
        QueueLife { queue, failed: false, started: false, wake_fd, calls, instance }
    }

    /// The first argument of its calls.
    #[inline(always)]
    pub(super) fn handle(&self) -> *mut c_void {
        self.queue
    }

    #[inline(always)]
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn wake_fd(&self) -> Option<RawFd> {
        self.wake_fd
    }

    /// The calling thread owns the queue from now on.
    ///
    /// # Errors
    /// The plugin's reason.
    pub(super) fn start(&mut self) -> Result<(), BackendError> {
        // SAFETY: the queue is open and not started.
        with_reason(self.instance.name(), |error| unsafe { (self.calls.start)(self.queue, error) })?;
        self.started = true;
        Ok(())
    }

    /// Before (`true`) and after a sleep. Returns whether the worker must not sleep, which without a descriptor depends
    /// on whether the queue `is_busy`.
    ///
    /// # Errors
    /// The queue has failed.
    pub(super) fn arm(&mut self, armed: bool, is_busy: bool) -> Result<bool, QueueFailed> {
        if self.failed || self.wake_fd.is_none() {
            return Ok(is_busy);
        }
        // SAFETY: the queue is started and its worker calls.
        match unsafe { (self.calls.arm)(self.queue, armed.into()) } {
            0 => Ok(false),
            1.. => Ok(true),
            _ => Err(self.fail("arm failed")),
        }
    }

    /// The worker gives the queue back.
    ///
    /// # Errors
    /// Something may still use what the queue was given.
    pub(super) fn stop(&mut self) -> Result<(), StopFailed> {
        if !mem::take(&mut self.started) {
            return Ok(());
        }
        // SAFETY: the queue is started and its worker calls.
        if unsafe { (self.calls.stop)(self.queue) } < 0 {
            self.started = true;
            return Err(StopFailed);
        }
        Ok(())
    }

    /// Nothing is called any more but what ends the queue.
    #[cold]
    pub(super) fn fail(&mut self, what: &'static str) -> QueueFailed {
        self.failed = true;
        QueueFailed(what)
    }

    /// Whether the plugin may still use what the queue was given: only its worker could have stopped it.
    pub(super) fn is_started(&self) -> bool {
        self.started
    }
}

impl Drop for QueueLife {
    fn drop(&mut self) {
        if self.started {
            warn!("{}: a queue is leaked, since it was not stopped", self.instance.name());
            mem::forget(self.instance.clone());
            return;
        }
        let _lock = match self.instance.lock() {
            Ok(lock) => lock,
            Err(error) => {
                warn!("{error}; a queue is left open");
                mem::forget(self.instance.clone());
                return;
            }
        };
        // SAFETY: opened once, closed once, stopped before; control calls are serialised by the lock.
        unsafe { (self.calls.close)(self.queue) };
    }
}
