//! A queue as the load drives it: a ring, the memory of its requests, a kick and a call.
use crate::{
    slots::{Operation, Slots},
    wait,
};
use pollux_driver::slots::{EitherRing, Ring, RingError};
use std::{io, time::Duration};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a queue has done since [`Queue::reset_counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times that the device wanted to be told of requests.
    pub kicks: u64,
    /// Times that the device told us of completions.
    pub interrupts: u64,
    /// Times that the driver slept.
    pub sleeps: u64,
}

/// A time that is not known any more.
pub const UNKNOWN: u64 = u64::MAX;

/// A request that has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its slot. The data stays there until the next [`Queue::reserve`].
    pub slot: u16,
    /// What was asked for.
    pub operation: Operation,
    /// What the device answered: 0 is success.
    pub status: u8,
    /// When it was submitted, as [`Queue::submit`] was told; [`UNKNOWN`] if that was before [`Queue::forget_times`].
    pub submitted_at: u64,
}

/// A queue. One thread at a time works with it.
#[derive(Debug)]
pub struct Queue<R = EitherRing> {
    ring: R,
    slots: Slots,
    /// Slots that are not in flight.
    free: Vec<u16>,
    requests: Box<[(Operation, u64)]>,
    kick: EventFd,
    call: EventFd,
    counters: Counters,
}

impl<R: Ring> Queue<R> {
    /// A queue of these parts.
    ///
    /// # Errors
    /// No file descriptors.
    pub fn new(ring: R, slots: Slots) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let count = slots.count();
        Ok(Queue {
            free: (0..count).rev().collect(),
            requests: vec![(Operation::FLUSH, 0); count.into()].into(),
            kick: event()?,
            call: event()?,
            counters: Counters::default(),
            ring,
            slots,
        })
    }

    /// A free slot, whose data may be written. It must be submitted.
    #[inline]
    pub fn reserve(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Writes the data of a reserved slot.
    pub fn write_data(&mut self, slot: u16, bytes: &[u8]) {
        self.slots.write_data(slot, bytes);
    }

    /// Makes the data of a reserved slot unlike any that was written.
    pub fn spoil_data(&mut self, slot: u16, length: usize) {
        self.slots.spoil_data(slot, length);
    }

    /// Reads the data of a slot that has just come back.
    pub fn read_data(&self, slot: u16, bytes: &mut [u8]) {
        self.slots.read_data(slot, bytes);
    }

    /// Fills the data of all slots that are not in flight, so that writes are not of zeroes.
    pub fn fill_data(&mut self, random: &mut fastrand::Rng) {
        let mut bytes = vec![0; self.slots.data_bytes() as usize];
        for &slot in &self.free {
            random.fill(&mut bytes);
            self.slots.write_data(slot, &bytes);
        }
    }

    /// Puts the request of a reserved slot into the ring. `now`, in any unit, comes back with it.
    #[inline]
    pub fn submit(&mut self, slot: u16, operation: Operation, now: u64) {
        let chain = self.slots.prepare(slot, &operation);
        self.requests[usize::from(slot)] = (operation, now);
        self.ring.add(slot, &chain);
    }

    /// Forgets when the requests in flight were submitted: the clock starts over.
    pub fn forget_times(&mut self) {
        self.requests.iter_mut().for_each(|request| request.1 = UNKNOWN);
    }

    /// Shows the device what was submitted. Whether it wants a kick for it is found out by [`publish`](Self::publish).
    #[inline]
    pub fn show(&mut self) {
        self.ring.show();
    }

    /// Shows the device what was submitted, and kicks it if it asks for that.
    ///
    /// # Errors
    /// The kick.
    #[inline]
    pub fn publish(&mut self) -> io::Result<()> {
        if self.ring.publish() { self.kick() } else { Ok(()) }
    }

    #[cold]
    fn kick(&mut self) -> io::Result<()> {
        self.counters.kicks += 1;
        self.kick_device()
    }

    /// Kicks, asked or not. For the start: a device may have missed what came before it.
    pub(crate) fn kick_device(&self) -> io::Result<()> {
        match self.kick.write(1) {
            // The counter is full of kicks that nobody reads.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// The next request that has come back.
    ///
    /// # Errors
    /// The device broke the ring.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Completion>, RingError> {
        let Some(slot) = self.ring.pop()? else { return Ok(None) };
        self.free.push(slot);
        let (operation, submitted_at) = self.requests[usize::from(slot)];
        Ok(Some(Completion { slot, operation, status: self.slots.status(slot), submitted_at }))
    }

    /// Keeps the device from sending interrupts. Call it as requests come back.
    #[inline]
    pub fn silence(&mut self) {
        self.ring.silence();
    }

    /// Sleeps until the device tells of a completion, or `timeout`.
    ///
    /// # Errors
    /// The wait.
    pub fn sleep(&mut self, timeout: Duration) -> io::Result<()> {
        if self.ring.arm() {
            self.counters.sleeps += 1;
            wait::readable(&self.call, timeout)?;
        }
        self.count_interrupts();
        Ok(())
    }

    /// Number of requests that the device has.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Number of requests that it has room for.
    pub fn depth_max(&self) -> u16 {
        self.slots.count()
    }

    /// Bytes of data that a request has room for.
    pub fn data_bytes(&self) -> u32 {
        self.slots.data_bytes()
    }

    fn count_interrupts(&mut self) {
        self.counters.interrupts += self.call.read().unwrap_or(0);
    }

    /// What was counted.
    pub fn counters(&mut self) -> Counters {
        self.count_interrupts();
        self.counters
    }

    /// Starts counting over.
    pub fn reset_counters(&mut self) {
        self.count_interrupts();
        self.counters = Counters::default();
    }

    pub(crate) fn ring(&self) -> &R {
        &self.ring
    }

    pub(crate) fn ring_mut(&mut self) -> &mut R {
        &mut self.ring
    }

    pub(crate) fn events(&self) -> (&EventFd, &EventFd) {
        (&self.kick, &self.call)
    }
}
