//! One queue of a plugin's medium: the hot calls of `block/1`, and the choke point of its contract. Every completion is
//! checked here.
use super::{
    super::{
        error::{BackendError, with_reason},
        queue_life::{QueueCalls, QueueFailed, QueueLife, StopFailed},
        tokens::Tokens,
    },
    backend::BlockBackend,
};
use crate::fallible;
use pollux_abi::block_v1::{BlockCompletion, BlockCompletions, BlockQueueHandle, BlockRequest};
use std::{collections::TryReserveError, ffi::c_void, os::fd::RawFd, ptr::null_mut, sync::Arc};

/// One completed request, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot that its request was submitted in.
    pub slot: u32,
    /// 0, or a negative errno.
    pub result: i32,
}

/// One queue of a backend, `[worker]` unless said otherwise. A request is known by its slot, a number below the depth;
/// when it is passed to the plugin, it gets a token that is used only once.
#[derive(Debug)]
pub struct BackendQueue {
    life: QueueLife,
    submit: unsafe extern "C" fn(*mut c_void, *const BlockRequest, u32, *mut BlockCompletions) -> i32,
    poll: unsafe extern "C" fn(*mut c_void, *mut BlockCompletions) -> i32,
    /// The requests in flight, and where on the medium each begins.
    tokens: Tokens<u64>,
    completions: Box<[BlockCompletion]>,
    /// Valid entries of `completions`, checked.
    completed: usize,
    in_flight: u32,
    backend: Arc<BlockBackend>,
}

impl BlockBackend {
    /// Opens queue `index` with room for `depth` requests in flight.
    ///
    /// # Errors
    /// The plugin's reason, or no memory.
    pub fn open_queue(self: &Arc<Self>, index: u32, depth: u32) -> Result<BackendQueue, BackendError> {
        let room = QueueRoom::new(depth)
            .map_err(|cause| BackendError::Refused { name: self.name().into(), reason: cause.to_string() })?;
        let lock = self.instance().lock()?;
        let mut handle = BlockQueueHandle { queue: null_mut(), wake_fd: -1, reserved0: 0, reserved: [0; 2] };
        // SAFETY: the instance is open.
        with_reason(self.name(), |error| unsafe {
            (self.table().queue_open)(self.instance().handle(), index, depth, &mut handle, error)
        })?;
        drop(lock);
        Ok(BackendQueue::new(self.clone(), &handle, room))
    }
}

/// Our own part of a queue. It is allocated first: after the plugin has opened its part, nothing may fail for lack of
/// memory.
struct QueueRoom {
    tokens: Tokens<u64>,
    completions: Box<[BlockCompletion]>,
}

impl QueueRoom {
    /// Room for `depth` requests in flight.
    ///
    /// # Errors
    /// There is no memory for it.
    fn new(depth: u32) -> Result<Self, TryReserveError> {
        let empty = BlockCompletion { token: 0, result: 0, reserved: 0 };
        let completions = fallible::filled(empty, depth as usize)?;
        Ok(QueueRoom { tokens: Tokens::new(depth as usize, 0)?, completions })
    }
}

// SAFETY: a queue is used by one thread at a time; the contract allows that to be another one after `queue_stop`.
unsafe impl Send for BackendQueue {}

impl BackendQueue {
    /// A queue that was just opened.
    fn new(backend: Arc<BlockBackend>, handle: &BlockQueueHandle, room: QueueRoom) -> Self {
        let table = backend.table();
        let calls =
            QueueCalls { start: table.queue_start, arm: table.arm, stop: table.queue_stop, close: table.queue_close };
        // SAFETY: the queue was opened by the same table, and is closed there alone.
        let life = unsafe { QueueLife::new(backend.instance().clone(), calls, handle.queue, handle.wake_fd) };
        BackendQueue {
            life,
            submit: table.submit,
            poll: table.poll,
            tokens: room.tokens,
            completions: room.completions,
            completed: 0,
            in_flight: 0,
            backend,
        }
    }

    /// The calling thread owns the queue from now on.
    ///
    /// # Errors
    /// The plugin's reason.
    pub fn start(&mut self) -> Result<(), BackendError> {
        self.life.start()
    }

    /// Offers requests in order; returns how many were taken. The `token` of each must be its slot, and that slot must
    /// be free. Those that completed at once are in [`completion`](Self::completion).
    ///
    /// # Errors
    /// The queue has failed: take its requests back with [`take_in_flight`](Self::take_in_flight), after those that
    /// did complete.
    #[inline(always)]
    pub fn submit(&mut self, requests: &mut [BlockRequest]) -> Result<usize, QueueFailed> {
        self.completed = 0;
        if self.life.has_failed() {
            return Err(QueueFailed("it has failed before"));
        }
        self.tokens.begin_batch();
        for request in &mut *requests {
            request.token = self.tokens.issue(request.token as u32, request.offset);
        }
        let mut buffer = self.buffer();
        // SAFETY: the queue is started and its worker calls; requests and buffer are valid for the counts given.
        let taken = unsafe { (self.submit)(self.life.handle(), requests.as_ptr(), requests.len() as u32, &mut buffer) };
        let Ok(taken) = usize::try_from(taken) else { return Err(self.life.fail("submit failed")) };
        if taken > requests.len() {
            return Err(self.life.fail("submit took more requests than there were"));
        }
        for request in &mut requests[taken..] {
            request.token = self.tokens.withdraw(request.token).into();
        }
        self.in_flight += taken as u32;
        self.check(buffer.count)?;
        Ok(taken)
    }

    /// Polls for completed requests; returns how many there are.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    #[inline]
    pub fn poll(&mut self) -> Result<usize, QueueFailed> {
        self.completed = 0;
        if self.life.has_failed() {
            return Err(QueueFailed("it has failed before"));
        }
        let mut buffer = self.buffer();
        // SAFETY: the queue is started and its worker calls; the buffer has room for every request in flight.
        let result = unsafe { (self.poll)(self.life.handle(), &mut buffer) };
        if result < 0 {
            return Err(self.life.fail("poll failed"));
        }
        self.check(buffer.count)?;
        Ok(self.completed)
    }

    /// Number of completions of the last `submit` or `poll`.
    #[inline]
    pub fn completed(&self) -> usize {
        self.completed
    }

    /// One of them.
    #[inline]
    pub fn completion(&self, index: usize) -> Completion {
        let BlockCompletion { token, result, .. } = self.completions[..self.completed][index];
        Completion { slot: Tokens::<u64>::slot(token), result }
    }

    /// All of them.
    #[inline]
    pub fn completions(&self) -> impl ExactSizeIterator<Item = Completion> {
        let completions = self.completions[..self.completed].iter();
        completions
            .map(|&BlockCompletion { token, result, .. }| Completion { slot: Tokens::<u64>::slot(token), result })
    }

    /// Where on the medium the last request of a slot began; also valid after it has completed.
    pub fn offset(&self, slot: u32) -> u64 {
        self.tokens.note(slot)
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Most requests in flight.
    pub fn depth(&self) -> usize {
        self.tokens.depth()
    }

    /// Whether the queue has failed.
    pub fn has_failed(&self) -> bool {
        self.life.has_failed()
    }

    /// After a failure: the slots of all requests that were in flight. They will not complete any more.
    pub fn take_in_flight(&mut self) -> Vec<u32> {
        self.in_flight = 0;
        self.tokens.take_all()
    }

    /// A descriptor that becomes readable when an armed queue has completions. `[any thread]`
    pub fn wake_fd(&self) -> Option<RawFd> {
        self.life.wake_fd()
    }

    /// Before (`true`) and after a sleep on [`wake_fd`](Self::wake_fd). Returns whether the worker must not sleep.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn arm(&mut self, armed: bool) -> Result<bool, QueueFailed> {
        self.life.arm(armed, self.in_flight > 0)
    }

    /// The worker gives the queue back. Returns when nothing touches the memory of its requests any more; those that
    /// were in flight, if the queue has failed, do not complete.
    ///
    /// # Errors
    /// The plugin could not confirm that. Neither the queue nor the memory of its requests may ever be freed or used
    /// again.
    pub fn stop(&mut self) -> Result<(), StopFailed> {
        if self.life.is_started() {
            self.life.stop()?;
            self.in_flight = 0;
        }
        Ok(())
    }

    /// The backend it belongs to. `[any thread]`
    pub fn backend(&self) -> &Arc<BlockBackend> {
        &self.backend
    }

    #[inline(always)]
    fn buffer(&mut self) -> BlockCompletions {
        self.completed = 0;
        BlockCompletions { entries: self.completions.as_mut_ptr(), capacity: self.completions.len() as u32, count: 0 }
    }

    /// Checks what the plugin put into the buffer: each token is in flight, and completes once.
    #[inline(always)]
    fn check(&mut self, count: u32) -> Result<(), QueueFailed> {
        let count = count as usize;
        if count > self.completions.len() {
            return Err(self.life.fail("more completions than there is room for"));
        }
        // The completions before a bad one are valid: their tokens have been redeemed.
        let entries = self.completions[..count].iter();
        let redeemed = entries.take_while(|completion| self.tokens.redeem(completion.token)).count();
        self.completed = redeemed;
        self.in_flight -= redeemed as u32;
        if redeemed < count {
            return Err(self.life.fail("a completion for a request that is not in flight"));
        }
        Ok(())
    }
}

impl Drop for BackendQueue {
    fn drop(&mut self) {
        if self.life.is_started() {
            // The plugin may still use what the queue owns, and only its worker may stop it.
            std::mem::forget(std::mem::take(&mut self.completions));
        }
    }
}
