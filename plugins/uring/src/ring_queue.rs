//! A queue whose requests go through io_uring. `submit` and `poll` together enter the kernel once per turn of the
//! worker.
//!
//! What each request passes is inlined by force: as calls, with their copies of the records, it takes half as many
//! instructions again (`cargo bench --bench uring` counts them).
mod later;
mod ordered;
#[cfg(test)]
mod tests;

use self::ordered::Ordered;
use crate::{
    availability,
    bounce::{BouncePool, NO_CHUNK},
    call::Call,
    fallback::Deferred,
    image::Image,
    inline::InlineReads,
    protocol::Protocol,
    ring::{MAXIMUM_DEPTH, Purpose, Ring, SetUp},
    rules::Rules,
    slot::Slot,
    step::Step,
    sync_turns::{SyncTurns, reopened},
};
use io_uring::{cqueue, squeue};
use pollux_abi::block::{BlockQueue, Completions, Error, Operation, Request};
use std::{
    collections::VecDeque,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, RawFd},
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
pub(crate) struct RingQueue<P: Protocol> {
    protocol: P,
    ring: Ring<P::Submission, P::Completion>,
    polled: Option<PolledRing<P>>,
    image: Arc<Image>,
    slots: Box<[Option<Slot>]>,
    free: Vec<u32>,
    /// Slots that wait for bounce memory, in order.
    waiting: VecDeque<u32>,
    pool: BouncePool,
    /// For media whose unit is larger than the guest's block.
    ordered: Option<Ordered>,
    /// For media that are synced by `fdatasync`.
    syncs: Option<SyncTurns>,
    /// What is synced through.
    sync_file: Arc<File>,
    deferred: Deferred,
    rules: Rules,
    /// Reads through the page cache that the ring is spared.
    inline: Option<InlineReads>,
}

/// A second ring, for reads and writes whose end the worker finds by asking the device (IOPOLL). Such a ring takes
/// nothing else: flushes, discards and zeroes go through the first one.
#[derive(Debug)]
struct PolledRing<P: Protocol> {
    ring: Ring<P::Submission, P::Completion>,
    /// Requests that only the asking brings to an end.
    in_flight: u32,
    /// The device has refused to be asked: it takes no more requests.
    is_refused: bool,
}

impl<P: Protocol> BlockQueue for RingQueue<P> {
    fn start(&mut self) -> Result<(), Error> {
        let polled = self.polled.as_mut().map_or(Ok(()), |polled| polled.ring.enable());
        self.ring
            .enable()
            .and(polled)
            .map_err(|error| Error::from_io("cannot start the io_uring on this worker", error))?;
        self.image.background.receive(&self.ring);
        Ok(())
    }

    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        self.protocol.refresh(&self.ring, self.polled.as_ref().map(|polled| &polled.ring));
        self.rules.refresh(&self.image);
        let mut accepted = 0;
        for request in requests {
            let Some(index) = self.free.pop() else { break };
            accepted += 1;
            match self.rules.begin(request, &self.image, &self.sync_file) {
                Ok((operation, step)) => {
                    self.slots[index as usize] = Some(Slot::new(*request, operation, step));
                    if self.rules.orders_writes {
                        self.begin_in_order(index, done);
                    } else if requests.len() > 1 || !self.read_at_once(index, done) {
                        self.begin(index, done);
                    }
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
        if self.ordered.as_ref().is_some_and(Ordered::waits) {
            self.take_turns(done);
        }
        if self.ring.wants_enter() {
            self.ring.enter();
        }
        self.reap(done);
        if self.polled.is_some() {
            self.poll_device(done);
        }
        if self.deferred.in_flight > 0 {
            self.reap_deferred(done);
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.ring.wake_fd().as_raw_fd())
    }

    fn arm(&mut self, armed: bool) -> bool {
        // No interrupt would wake a worker that waits for a polled request.
        let must_poll = self.polled.as_ref().is_some_and(|polled| polled.in_flight > 0);
        // After the ring, which has made the wake-up unreadable: what ends from here on wakes.
        let may_sleep = !self.ring.arm(armed) && !must_poll;
        let has_turns = self.ordered.as_ref().is_some_and(Ordered::has_turns);
        !may_sleep || has_turns || self.deferred.in_flight > 0 && !self.deferred.results.is_empty()
    }

    fn stop(&mut self) -> Result<(), Error> {
        let drained = self.drain();
        let left = self.held();
        self.ring.disable(left == 0);
        if let Some(polled) = &mut self.polled {
            polled.ring.disable(left == 0);
        }
        if left == 0 {
            if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order) {
                ordered.abandon(order);
            }
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

impl<P: Protocol> RingQueue<P> {
    /// Takes all completions off the ring. What follows them is entered in the next turn, so this ends.
    #[inline]
    fn reap(&mut self, done: &mut Completions) {
        let mut room = [const { MaybeUninit::uninit() }; BATCH];
        loop {
            let batch = self.ring.pop(&mut room);
            for completion in batch {
                let completion: cqueue::Entry = completion.clone().into();
                self.completed(completion.user_data() as u32, completion.result(), done);
            }
            if batch.len() < BATCH {
                return;
            }
        }
    }

    /// Asks the device, and takes what has ended off the polled ring.
    fn poll_device(&mut self, done: &mut Completions) {
        let mut room = [const { MaybeUninit::uninit() }; BATCH];
        loop {
            let Some(polled) = &mut self.polled else { return };
            if polled.in_flight == 0 {
                return;
            }
            polled.ring.enter();
            let batch = polled.ring.pop(&mut room);
            polled.in_flight -= batch.len() as u32;
            for completion in batch {
                let completion: cqueue::Entry = completion.clone().into();
                let (index, result) = (completion.user_data() as u32, completion.result());
                if result == -libc::EOPNOTSUPP
                    && let Some(polled) = &mut self.polled
                {
                    polled.is_refused = true;
                    self.push(index);
                    continue;
                }
                self.completed(index, result, done);
            }
            if batch.len() < BATCH {
                break;
            }
        }
        // What has gone over to the first ring waits for no other turn.
        if self.ring.wants_enter() {
            self.ring.enter();
        }
    }

    /// Reads from the page cache if that is likely to have the bytes, and returns whether it had.
    #[inline]
    fn read_at_once(&mut self, index: u32, done: &mut Completions) -> bool {
        let Some(inline) = &mut self.inline else { return false };
        let slot = self.slots[index as usize].as_mut().expect("the slot was just filled");
        if slot.operation != Operation::Read || !matches!(slot.step, Step::Transfer) || !inline.try_this() {
            return false;
        }
        let Call::Transfer(transfer) = slot.call(&self.rules, &self.pool) else { return false };
        // SAFETY: the segments are those of a request in flight.
        let result = unsafe { transfer.perform(self.image.file.as_raw_fd(), libc::RWF_NOWAIT) };
        if u64::try_from(result) != Ok(slot.request.length()) {
            // Whatever it is, the ring finds out.
            inline.missed();
            self.image.counters.not_cached.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        inline.hit();
        done.complete(slot.request.token(), 0);
        self.free.push(index);
        true
    }

    /// Queues a new slot's first entry, once it has the bounce memory that it needs.
    #[inline(always)]
    fn begin(&mut self, index: u32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_mut().expect("the slot was just filled");
        match slot.step {
            Step::Bounce if slot.chunk == NO_CHUNK => {
                let Some(free) = self.pool.take() else {
                    self.waiting.push_back(index);
                    return;
                };
                slot.chunk = free;
                self.image.counters.bounced.fetch_add(1, Ordering::Relaxed);
            }
            Step::Sync => return self.begin_sync(index, done),
            _ => {}
        }
        self.push(index);
    }

    #[inline(always)]
    fn push(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots are pushed");
        let call = slot.call(&self.rules, &self.pool);
        let entry = self.protocol.entry(index, &call);
        // SAFETY: the entry points to the segments of a request in flight or into the pool. Both outlive it: the host
        // keeps the segments until the request completes, and a queue with requests in flight abandons its pool.
        unsafe {
            match &mut self.polled {
                Some(polled) if polled.takes(&call) => {
                    polled.in_flight += 1;
                    polled.ring.push(&entry);
                }
                _ => self.ring.push(&entry),
            }
        }
    }

    #[inline(always)]
    fn completed(&mut self, index: u32, result: i32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_mut().expect("only filled slots complete");
        let result = P::result(result, slot.asked);
        if slot.has_completed(result) {
            let (token, chunk) = (slot.request.token(), slot.chunk);
            return self.release(index, token, chunk, 0, done);
        }
        let next = slot.completed(result, &self.rules, &self.pool, &self.image.counters);
        self.go_on(index, next, done);
    }

    /// A slot's last call has ended.
    fn end(&mut self, index: u32, result: i32, done: &mut Completions) {
        match self.slots[index as usize].as_ref().expect("only filled slots end").step {
            Step::Sync => self.end_sync(index, result, done),
            _ => self.finish(index, result, done),
        }
    }

    fn finish(&mut self, index: u32, result: i32, done: &mut Completions) {
        let slot = self.slots[index as usize].as_ref().expect("only filled slots end");
        let (token, chunk) = (slot.request.token(), slot.chunk);
        self.release(index, token, chunk, result, done);
    }

    /// Gives a request back, and its bounce memory to the next.
    #[inline(always)]
    fn release(&mut self, index: u32, token: u64, chunk: u32, result: i32, done: &mut Completions) {
        self.free.push(index);
        done.complete(token, result);
        if self.rules.orders_writes {
            self.leave_order(index);
        }
        if chunk != NO_CHUNK {
            self.pool.give_back(chunk);
            self.pass_on(done);
        }
    }

    /// Syncs as soon as the sync before it has ended.
    #[cold]
    fn begin_sync(&mut self, index: u32, done: &mut Completions) {
        match (self.image.flush_latch.failure(), &mut self.syncs) {
            // The kernel has answered "not now", and meanwhile another queue's sync has failed: nobody waits on.
            (Some(failure), Some(turns)) if turns.is_under_way(index) => self.end_sync(index, failure, done),
            (Some(failure), _) => self.finish(index, failure, done),
            (None, None) => self.push(index),
            (None, Some(turns)) => {
                if turns.join(index) {
                    self.push(index);
                }
            }
        }
    }

    /// A sync has ended, and with it all slots that have waited for it.
    #[cold]
    fn end_sync(&mut self, index: u32, result: i32, done: &mut Completions) {
        let mut result = self.image.flush_latch.outcome(result);
        loop {
            let Some(turns) = &mut self.syncs else { return self.finish(index, result, done) };
            let ended = turns.take_ended();
            ended.iter().for_each(|&index| self.finish(index, result, done));
            let Some(next) = self.syncs.as_mut().and_then(|turns| turns.next(ended)) else { return };
            match self.image.flush_latch.failure() {
                Some(failure) => result = failure,
                None => return self.push(next),
            }
        }
    }

    /// Waits until the kernel has let go of everything. There is nothing, unless the host gives up a queue that failed.
    fn drain(&mut self) -> io::Result<()> {
        if let (Some(ordered), Some(order)) = (&mut self.ordered, &self.image.write_order) {
            ordered.stop_waiting(order, &mut self.free);
        }
        self.free.extend(self.waiting.drain(..));
        self.free.extend(self.syncs.iter_mut().flat_map(SyncTurns::drain_idle));
        if let Some(thread) = &self.image.fallback {
            let withdrawn = thread.withdraw(&self.deferred.results);
            self.deferred.in_flight -= withdrawn.len() as u32;
            self.free.extend(withdrawn);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut room = [const { MaybeUninit::uninit() }; BATCH];
        while self.held() > 0 && Instant::now() < deadline {
            self.ring.collect()?;
            let mut ended = drained(&mut self.ring, &mut room, &mut self.free);
            if let Some(polled) = &mut self.polled {
                polled.ring.collect()?;
                ended += drained(&mut polled.ring, &mut room, &mut self.free);
            }
            let results = self.deferred.results.take();
            ended += results.len();
            self.deferred.in_flight -= results.len() as u32;
            self.free.extend(results.into_iter().map(|(index, _)| index));
            if ended == 0 {
                thread::sleep(DRAIN_PAUSE);
            }
        }
        Ok(())
    }

    /// Requests whose memory the kernel may still touch. Those that only wait in the submission queue are ours, and
    /// when the queue is given up they stay there.
    fn held(&mut self) -> usize {
        let syncs = self.syncs.as_ref().map_or(0, SyncTurns::idle);
        let ordered = self.ordered.as_ref().map_or(0, Ordered::idle);
        self.slots.len() - self.free.len() - self.waiting.len() - syncs - ordered - self.queued()
    }

    fn queued(&mut self) -> usize {
        self.ring.queued() + self.polled.as_mut().map_or(0, |polled| polled.ring.queued())
    }
}

/// Frees the slots of what has ended on a ring, and returns how many.
fn drained<P, C>(ring: &mut Ring<P, C>, room: &mut [MaybeUninit<C>], free: &mut Vec<u32>) -> usize
where
    P: squeue::EntryMarker,
    C: cqueue::EntryMarker,
{
    let completions = ring.pop(room);
    free.extend(completions.iter().map(|completion| -> u32 {
        let completion: cqueue::Entry = completion.clone().into();
        completion.user_data() as u32
    }));
    completions.len()
}

impl<P: Protocol> PolledRing<P> {
    /// A write that must be durable may be followed by a flush, which cannot be polled for.
    #[inline]
    fn takes(&self, call: &Call) -> bool {
        !self.is_refused && matches!(call, Call::Transfer(transfer) if !transfer.is_durable)
    }
}

impl<P: Protocol> Drop for RingQueue<P> {
    fn drop(&mut self) {
        if self.held() > 0 {
            self.pool.abandon();
        }
    }
}

impl<P: Protocol> RingQueue<P> {
    /// Makes a queue with the best ring that the kernel can set up.
    pub(crate) fn open(
        image: &Arc<Image>,
        depth: u32,
        protocol: impl Fn() -> io::Result<P>,
    ) -> Result<(Self, SetUp), Error> {
        let make = |set_up| Self::open_with(image.clone(), depth, set_up, protocol()?);
        SetUp::best(make).map_err(|error| Error::from_io(availability::cause(&error), error))
    }

    pub(crate) fn open_with(image: Arc<Image>, depth: u32, set_up: SetUp, protocol: P) -> io::Result<Self> {
        let depth = depth.clamp(1, MAXIMUM_DEPTH);
        let operations = match P::OPERATIONS {
            [known @ .., _] if set_up == SetUp::Interrupting => known,
            all => all,
        };
        let may_clone_buffers = protocol.registers_memory();
        let purpose = Purpose { set_up, depth, polls_device: false, operations, may_clone_buffers };
        let sync_file = match image.namespace {
            None => Arc::new(reopened(&image.file)?),
            Some(_) => image.file.clone(),
        };
        let files = [image.file.as_fd(), sync_file.as_fd()];
        let polled = match image.polls_device {
            true => {
                let ring = Ring::build(Purpose { polls_device: true, ..purpose }, &files)?;
                Some(PolledRing { ring, in_flight: 0, is_refused: false })
            }
            false => None,
        };
        let ring = Ring::build(purpose, &files)?;
        let deferred = Deferred::new(ring.wake_fd())?;
        let ordered = Ordered::of(&image, &ring, depth)?;
        Ok(RingQueue {
            ring,
            polled,
            protocol,
            slots: vec![None; depth as usize].into(),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(depth as usize),
            pool: BouncePool::new(CHUNKS)?,
            ordered,
            syncs: image.namespace.is_none().then(|| SyncTurns::new(depth)),
            sync_file,
            deferred,
            rules: Rules::of(&image),
            inline: (!image.direct && image.engine.has_nowait).then(InlineReads::default),
            image,
        })
    }
}
