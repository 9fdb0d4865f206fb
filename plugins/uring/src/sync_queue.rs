//! A queue whose requests are system calls that `submit` makes itself, for media that never make it wait.
//!
//! Where a file cannot be read without the chance of blocking (`RWF_NOWAIT`), io_uring hands each request to a thread
//! of the kernel, which costs several times what the request does. If the medium is memory there is nothing to wait
//! for.
use crate::{
    bounce::BouncePool,
    call::Call,
    image::Image,
    rules::Rules,
    slot::{Next, Slot},
    step::Step,
    sync_turns::reopened,
    write_order::{Hold, Turns},
};
use pollux_abi::block::{BlockQueue, Completions, EIO, Operation, Request};
use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
};

/// The only chunk of the queue's pool.
const CHUNK: u32 = 0;

/// A queue that has nothing in flight between two calls.
#[derive(Debug)]
pub(crate) struct SyncQueue {
    image: Arc<Image>,
    /// What is synced through.
    sync_file: File,
    rules: Rules,
    /// One chunk, for one request at a time.
    pool: BouncePool,
    turns: Arc<Turns>,
}

impl SyncQueue {
    pub(crate) fn open(image: Arc<Image>) -> io::Result<Self> {
        let sync_file = reopened(&image.file)?;
        let (rules, pool, turns) = (Rules::of(&image), BouncePool::new(1)?, Turns::of_caller());
        Ok(SyncQueue { sync_file, rules, pool, turns, image })
    }

    /// As `submit`, where a write may have to wait for its turn.
    #[cold]
    fn submit_in_order(&mut self, requests: &[Request], done: &mut Completions) {
        for request in requests {
            let result = match self.rules.begin(request, &self.image, &self.sync_file) {
                Ok((operation, step)) => {
                    let hold = self.enter(request, operation);
                    // It may have waited.
                    let result = match self.rules.must_end(operation, request, &self.image, &self.sync_file) {
                        true => -EIO,
                        false => self.make_calls(request, operation, step),
                    };
                    if let Some(order) = &self.image.write_order {
                        order.leave(&self.turns, 0, hold);
                    }
                    result
                }
                Err(result) => result,
            };
            done.complete(request.token(), result);
        }
    }

    /// Makes the calls of a request, one after the other. Returns its result.
    #[inline(always)]
    fn make_calls(&mut self, request: &Request, operation: Operation, step: Step) -> i32 {
        let mut slot = Slot::new(*request, operation, step);
        if matches!(step, Step::Bounce) {
            self.image.counters.bounced.fetch_add(1, Ordering::Relaxed);
        }
        slot.chunk = CHUNK;
        loop {
            let call = slot.call(&self.rules, &self.pool);
            if let Call::Sync = call {
                return self.sync();
            }
            // SAFETY: the call points to the segments of a request in flight or into the pool.
            let result = unsafe { call.perform(&*self.image.file) };
            match slot.completed(result, &self.rules, &self.pool, &self.image.counters) {
                Next::Push if self.rules.must_end(operation, request, &self.image, &self.sync_file) => return -EIO,
                Next::Push => {}
                Next::Defer(result) | Next::Complete(result) => return result,
                Next::EndOfMedium(byte) => {
                    self.image.ended_at(byte);
                    return -EIO;
                }
            }
        }
    }

    /// Waits for the request's turn. Whoever is before it is in a system call on another thread.
    fn enter(&self, request: &Request, operation: Operation) -> Hold {
        let (Some(order), Some(change)) = (&self.image.write_order, self.rules.change(request, operation)) else {
            return Hold::None;
        };
        let (hold, is_granted) = order.enter(&self.turns, 0, change);
        if !is_granted {
            self.turns.wait();
        }
        hold
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
        if self.rules.orders_writes {
            self.submit_in_order(requests, done);
            return requests.len();
        }
        for request in requests {
            let result = match self.rules.begin(request, &self.image, &self.sync_file) {
                Ok((operation, step)) => self.make_calls(request, operation, step),
                Err(result) => result,
            };
            done.complete(request.token(), result);
        }
        requests.len()
    }

    fn poll(&mut self, _done: &mut Completions) {}
}
