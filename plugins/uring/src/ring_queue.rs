//! A queue whose requests go through io_uring. `submit` and `poll` together enter the kernel once per turn of the worker.
use crate::{
    bounce::BouncePool,
    image::Image,
    ring::{MAXIMUM_DEPTH, Ring, SetUp},
    rules::{NO_CHUNK, Rules},
    slot::{Next, Slot, Step},
};
use pollux_abi::block::{BlockQueue, Completions, Error, Request};
use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    os::fd::RawFd,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

/// Chunks of bounce memory of each queue. Requests that find none wait for one.
const CHUNKS: u32 = 16;

/// Completions that are taken off the ring at a time.
const BATCH: usize = 64;

/// How long `stop` waits for what a failed queue has left in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it sleeps in between.
const DRAIN_PAUSE: Duration = Duration::from_micros(200);

/// A queue with a ring of its own.
#[derive(Debug)]
pub struct RingQueue {
    ring: Ring,
    image: Arc<Image>,
    slots: Box<[Option<Slot>]>,
    free: Vec<u32>,
    /// Slots that wait for bounce memory, in order.
    waiting: VecDeque<u32>,
    pool: BouncePool,
    rules: Rules,
}

impl BlockQueue for RingQueue {
    fn start(&mut self) -> Result<(), Error> {
        self.ring.enable().map_err(|error| Error::from_io("cannot start the io_uring on this worker", error))
    }

    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        let mut accepted = 0;
        for request in requests {
            let Some(index) = self.free.pop() else { break };
            accepted += 1;
            match self.rules.begin(request) {
                Ok(slot) => {
                    self.slots[index as usize] = Some(slot);
                    self.begin(index);
                }
                Err(result) => {
                    self.free.push(index);
                    done.complete(request.token(), result);
                }
            }
        }
        self.poll(done);
        accepted
    }

    fn poll(&mut self, done: &mut Completions) {
        if self.free.len() == self.slots.len() {
            return;
        }
        if self.ring.wants_enter() {
            self.ring.enter();
        }
        self.reap(done);
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.ring.wake_fd())
    }

    fn arm(&mut self, armed: bool) -> bool {
        self.ring.arm(armed)
    }

    fn stop(&mut self) -> Result<(), Error> {
        let drained = self.drain();
        let left = self.held();
        self.ring.disable(left == 0);
        if left == 0 {
            return Ok(());
        }
        Err(match drained {
            Ok(()) => Error::with_errno(
                libc::EBUSY,
                format_args!("the kernel holds {left} requests after {} s", STOP_TIMEOUT.as_secs()),
            ),
            Err(error) => Error::from_io(format_args!("the kernel holds {left} requests, and io_uring fails"), error),
        })
    }
}

impl RingQueue {
    /// Takes all completions off the ring. What follows them is entered in the next turn, so this ends.
    #[inline]
    fn reap(&mut self, done: &mut Completions) {
        let mut room = [const { MaybeUninit::uninit() }; BATCH];
        loop {
            let batch = self.ring.pop(&mut room);
            for completion in batch {
                self.completed(completion.user_data() as u32, completion.result(), done);
            }
            if batch.len() < BATCH {
                return;
            }
        }
    }

    /// Queues a new slot's first entry, once it has the bounce memory that it needs.
    #[inline]
    fn begin(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("the slot was just filled");
        if let Step::Bounce(chunk @ NO_CHUNK) = &mut slot.step {
            let Some(free) = self.pool.take() else {
                self.waiting.push_back(index);
                return;
            };
            *chunk = free;
            self.image.counters.bounced.fetch_add(1, Ordering::Relaxed);
        }
        self.push(index);
    }

    #[inline]
    fn push(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots are pushed");
        let entry = slot.call(&self.rules, &self.pool).entry().user_data(u64::from(index));
        // SAFETY: the entry points to the segments of a request in flight or into the pool. Both outlive it: the host keeps
        // the segments until the request completes, and a queue with requests in flight abandons its pool.
        unsafe { self.ring.push(&entry) };
    }

    #[inline]
    fn completed(&mut self, index: u32, result: i32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots complete");
        match slot.completed(result, &self.rules, &self.pool, &self.image.counters) {
            Next::Push => self.push(index),
            Next::Complete(result) => {
                let (token, step) = (slot.request.token(), slot.step);
                self.free.push(index);
                done.complete(token, result);
                if let Step::Bounce(chunk) = step {
                    self.pool.give_back(chunk);
                    if let Some(next) = self.waiting.pop_front() {
                        self.begin(next);
                    }
                }
            }
        }
    }

    /// Waits until the kernel has let go of everything. There is nothing, unless the host gives up a queue that failed.
    fn drain(&mut self) -> io::Result<()> {
        self.free.extend(self.waiting.drain(..));
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut room = [const { MaybeUninit::uninit() }; BATCH];
        while self.held() > 0 && Instant::now() < deadline {
            self.ring.collect()?;
            let completions = self.ring.pop(&mut room);
            self.free.extend(completions.iter().map(|completion| completion.user_data() as u32));
            if completions.is_empty() {
                thread::sleep(DRAIN_PAUSE);
            }
        }
        Ok(())
    }

    /// Requests whose memory the kernel may still touch. Those that only wait in the submission queue are ours, and when
    /// the queue is given up they stay there.
    fn held(&mut self) -> usize {
        self.slots.len() - self.free.len() - self.waiting.len() - self.ring.queued()
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        if self.held() > 0 {
            self.pool.abandon();
        }
    }
}

impl RingQueue {
    /// Makes a queue with the best ring that the kernel can set up.
    pub(crate) fn open(image: Arc<Image>, depth: u32) -> Result<(Self, SetUp), Error> {
        let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
        for set_up in SetUp::ALL {
            match Self::open_with(image.clone(), depth, set_up) {
                Ok(queue) => return Ok((queue, set_up)),
                // The kernel does not know one of the flags.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
                Err(error) => {
                    refused = error;
                    break;
                }
            }
        }
        Err(match refused.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS) => Error::from_io(
                "io_uring is switched off on this host: set the sysctl kernel.io_uring_disabled to 0, and allow it in \
                 the seccomp profile of the container, if there is one",
                refused,
            ),
            Some(libc::EINVAL) => Error::from_io("this kernel's io_uring is too old: Linux 5.11 is needed", refused),
            Some(libc::ENOMEM) => Error::from_io(
                "no memory for an io_uring: raise the limit on locked memory (ulimit -l), or lower queue_depth",
                refused,
            ),
            _ => Error::from_io("cannot set up an io_uring", refused),
        })
    }

    pub(crate) fn open_with(image: Arc<Image>, depth: u32, set_up: SetUp) -> io::Result<Self> {
        let depth = depth.clamp(1, MAXIMUM_DEPTH);
        Ok(RingQueue {
            ring: Ring::build(set_up, depth, &image.file)?,
            slots: vec![None; depth as usize].into(),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(depth as usize),
            pool: BouncePool::new(CHUNKS)?,
            rules: Rules::of(&image),
            image,
        })
    }
}
