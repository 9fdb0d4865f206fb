//! A queue whose requests are system calls that `submit` makes itself, for media that never make it wait.
//!
//! Where a file cannot be read without the chance of blocking (`RWF_NOWAIT`), io_uring hands each request to a thread of
//! the kernel, which costs several times what the request does. If the medium is memory there is nothing to wait for.
use crate::{
    bounce::BouncePool,
    call::Call,
    flush_latch::reopened,
    image::Image,
    rules::Rules,
    slot::{Next, Slot, Step},
};
use pollux_abi::block::{BlockQueue, Completions, EIO, Request};
use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
};

/// A queue that has nothing in flight between two calls.
#[derive(Debug)]
pub(crate) struct SyncQueue {
    image: Arc<Image>,
    /// What is synced through.
    sync_file: File,
    rules: Rules,
    /// One chunk, for one request at a time.
    pool: BouncePool,
}

impl SyncQueue {
    pub(crate) fn open(image: Arc<Image>) -> io::Result<Self> {
        let sync_file = reopened(&image.file)?;
        Ok(SyncQueue { sync_file, rules: Rules::of(&image), pool: BouncePool::new(1)?, image })
    }

    /// Makes the calls of a request, one after the other. Returns its result.
    #[inline]
    fn run(&mut self, mut slot: Slot) -> i32 {
        if let Step::Bounce(chunk) = &mut slot.step {
            *chunk = 0;
            self.image.counters.bounced.fetch_add(1, Ordering::Relaxed);
        }
        loop {
            let call = slot.call(&self.rules, &self.pool);
            if let Call::Sync = call {
                return self.sync();
            }
            // SAFETY: the call points to the segments of a request in flight or into the pool.
            let result = unsafe { call.perform(&*self.image.file) };
            match slot.completed(result, &self.rules, &self.pool, &self.image.counters) {
                Next::Push => {}
                Next::Defer(result) | Next::Complete(result) => return result,
                Next::EndOfMedium(byte) => {
                    self.image.ended_at(byte);
                    return -EIO;
                }
            }
        }
    }
}

impl SyncQueue {
    /// The last call of a request.
    #[cold]
    fn sync(&self) -> i32 {
        let latch = &self.image.flush_latch;
        latch.failure().unwrap_or_else(|| {
            loop {
                // SAFETY: it passes no memory.
                let result = unsafe { Call::Sync.perform(&self.sync_file) };
                if result != -libc::EINTR {
                    return latch.outcome(result);
                }
            }
        })
    }
}

impl BlockQueue for SyncQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        self.rules.refresh(&self.image);
        for request in requests {
            let result = match self.rules.begin(request) {
                Ok((operation, step)) => self.run(Slot::new(*request, operation, step)),
                Err(result) => result,
            };
            done.complete(request.token(), result);
        }
        requests.len()
    }

    fn poll(&mut self, _done: &mut Completions) {}
}
