//! What it costs to reach a backend behind the ABI of plugins: the queue of `null`, through its real shared library,
//! and a static function in its place.
use crate::backend::{backend, started_reads};
use pollux_abi::block_v1::{BlockCompletion, BlockRequest};
use pollux_core::{memory::GuestMemory, plugin::BackendQueue};
use std::{hint::black_box, time::Instant};

/// Of a slot that is free.
const NO_TOKEN: u64 = u64::MAX;

/// Requests of a batch.
pub const BATCH: usize = 32;

/// Both ways, with a batch of reads each.
#[derive(Debug)]
pub struct Crossing {
    queue: BackendQueue,
    requests: Vec<BlockRequest>,
    completions: Vec<BlockCompletion>,
    /// As core notes which requests are in flight.
    tokens: Vec<u64>,
    generation: u64,
    _guest: GuestMemory,
}

impl Crossing {
    /// Opens the backend. The calling thread is the worker.
    pub fn new() -> Self {
        let null = backend("null", r#"{"size": 1073741824}"#);
        let (queue, requests, guest) = started_reads(&null, BATCH);
        let empty = BlockCompletion { token: 0, result: -1, reserved: 0 };
        Crossing {
            queue,
            requests,
            completions: vec![empty; BATCH],
            tokens: vec![NO_TOKEN; BATCH],
            generation: 0,
            _guest: guest,
        }
    }

    /// Nanoseconds per request of [`BackendQueue::submit`] with batches of [`BATCH`]: tokens are given and checked on
    /// the way back, the plugin is called through the pointer that its shared library holds, and its guard against
    /// panics is passed.
    pub fn plugin(&mut self, batches: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..batches {
            self.name();
            assert_eq!(self.queue.submit(&mut self.requests).expect("submit"), BATCH);
            assert_eq!(self.queue.completed(), BATCH);
            for index in 0..BATCH {
                black_box(self.queue.completion(index));
            }
        }
        per_request(start, batches)
    }

    /// The same loop around a function that the compiler sees and that does what `null` does. Nothing is checked.
    pub fn inlined(&mut self, batches: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..batches {
            self.name();
            complete(black_box(&self.requests), &mut self.completions);
            for completion in &self.completions {
                black_box((completion.token as u32, completion.result));
            }
        }
        per_request(start, batches)
    }

    /// As [`inlined`](Self::inlined), with what [`BackendQueue`] does around the plugin's function: each request gets a
    /// token that no other had, and each completion must be of a token in flight. What is left to
    /// [`plugin`](Self::plugin) is the way across.
    pub fn checked(&mut self, batches: u64) -> f64 {
        let start = Instant::now();
        for _ in 0..batches {
            self.name();
            self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
            for request in &mut self.requests {
                let slot = request.token as u32;
                request.token = u64::from(slot) | self.generation << 32;
                let entry = &mut self.tokens[slot as usize];
                assert!(*entry == NO_TOKEN, "a slot was submitted twice");
                *entry = request.token;
            }
            complete(black_box(&self.requests), &mut self.completions);
            for completion in &self.completions {
                let entry = &mut self.tokens[completion.token as u32 as usize];
                assert!(*entry == completion.token, "a completion for a request that is not in flight");
                *entry = NO_TOKEN;
            }
            for completion in &self.completions {
                black_box((completion.token as u32, completion.result));
            }
        }
        per_request(start, batches)
    }

    /// Names the slots: `submit` makes other tokens of them.
    #[inline(always)]
    fn name(&mut self) {
        for (slot, request) in self.requests.iter_mut().enumerate() {
            request.token = slot as u64;
        }
    }
}

impl Default for Crossing {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        self.queue.stop().expect("the queue stops");
    }
}

#[inline(always)]
fn complete(requests: &[BlockRequest], completions: &mut [BlockCompletion]) {
    for (request, completion) in requests.iter().zip(completions) {
        (completion.token, completion.result) = (request.token, 0);
    }
}

fn per_request(start: Instant, batches: u64) -> f64 {
    start.elapsed().as_nanos() as f64 / (batches * BATCH as u64) as f64
}
