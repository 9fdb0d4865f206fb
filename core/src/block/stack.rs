//! A disk with layers in front of it.
//!
//! A stack is chosen when a queue is opened, and costs nothing where there is none. Where there is one, each layer is
//! called once a batch, with the layers below it as an argument; what has completed goes up in one list, in which
//! every layer may change what those below have added.
use super::{
    disk::{Disk, DiskError, DiskQueue},
    filter::{Base, Below, Filter, FilterQueue},
};
use crate::{
    fallible,
    memory::GuestMemory,
    plugin::{Completion, QueueFailed, StopFailed},
    stats::StatsSegment,
    worker::Deadline,
};
use pollux_abi::block_v1::{BlockInfo, BlockRequest};
use std::{os::fd::RawFd, sync::Arc};

/// A disk behind filters. `[control]`
#[derive(Debug)]
pub struct Stack {
    /// From the device's side to the disk's.
    filters: Box<[Arc<dyn Filter>]>,
    disk: Arc<dyn Disk>,
    info: BlockInfo,
}

impl Stack {
    /// `disk` behind `filters`, the first of which is next to the device. Without any, it is the disk itself.
    pub fn over(disk: Arc<dyn Disk>, filters: Vec<Arc<dyn Filter>>) -> Arc<dyn Disk> {
        if filters.is_empty() {
            return disk;
        }
        let info = described(&filters, *disk.info());
        Arc::new(Stack { filters: filters.into(), disk, info })
    }
}

/// What a disk is like above all of `filters`.
fn described(filters: &[Arc<dyn Filter>], info: BlockInfo) -> BlockInfo {
    filters.iter().rev().fold(info, |below, filter| filter.describe(below))
}

impl Disk for Stack {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn server(&self) -> String {
        self.disk.server()
    }

    fn info(&self) -> &BlockInfo {
        &self.info
    }

    fn describe(&self) -> Result<BlockInfo, DiskError> {
        Ok(described(&self.filters, self.disk.describe()?))
    }

    fn change_event(&self) -> RawFd {
        self.disk.change_event()
    }

    fn add_memory(&self, memory: &GuestMemory) -> Result<(), DiskError> {
        self.disk.add_memory(memory)
    }

    fn remove_memory_but(&self, memory: Option<&GuestMemory>) {
        self.disk.remove_memory_but(memory);
    }

    fn count(&self, segment: &StatsSegment) {
        self.disk.count(segment);
    }

    fn open_queue(self: Arc<Self>, index: u32, depth: u32) -> Result<Box<dyn DiskQueue>, DiskError> {
        let (mut layers, mut depth_below) = (Vec::new(), depth);
        for filter in &self.filters {
            layers.push(filter.open_queue(index, depth_below)?);
            depth_below = filter.depth_below(depth_below);
        }
        let queue = self.disk.clone().open_queue(index, depth_below)?;
        Ok(Box::new(StackQueue::new(self, layers.into(), queue, depth)?))
    }
}

/// What is remembered of a slot's request: where it begins on the medium, which stays when it has ended, and
/// [`IN_FLIGHT`]. One word, since every request writes it twice.
type Slot = u64;

/// The bit of an offset, which is of whole sectors, that says that its request is in flight.
const IN_FLIGHT: Slot = 1;

/// One queue of a stack. It knows which requests of the device are in flight, so that no layer has to.
#[derive(Debug)]
pub struct StackQueue {
    layers: Box<[Box<dyn FilterQueue>]>,
    base: Base,
    slots: Box<[Slot]>,
    /// What the last call has completed.
    done: Vec<Completion>,
    in_flight: u32,
    has_failed: bool,
    /// Layers may have lent memory to what the disk still does.
    is_started: bool,
    disk: Arc<dyn Disk>,
}

impl StackQueue {
    /// A queue of `disk`: `layers` in front of `queue`, with room for `depth` requests in flight.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        layers: Box<[Box<dyn FilterQueue>]>,
        queue: Box<dyn DiskQueue>,
        depth: u32,
    ) -> Result<Self, DiskError> {
        let no_memory = |source| DiskError::Memory { name: disk.name().into(), depth, source };
        let slots = fallible::filled(0, depth as usize).map_err(no_memory)?;
        let done = fallible::with_capacity(depth as usize).map_err(no_memory)?;
        let base = Base { queue, has_refused: false };
        Ok(StackQueue { layers, base, slots, done, in_flight: 0, has_failed: false, is_started: false, disk })
    }

    /// All of the layers and the disk, and the list that completions are added to.
    #[inline(always)]
    fn parts(&mut self) -> (Below<'_>, &mut Vec<Completion>) {
        self.done.clear();
        (Below { layers: &mut self.layers, base: &mut self.base }, &mut self.done)
    }

    /// Counts what has completed, also if the queue has failed in the same call. Slots are noted when the completions
    /// are taken: to walk through the list once more would cost as much as a layer.
    #[inline(always)]
    fn note<T>(&mut self, result: Result<T, QueueFailed>) -> Result<T, QueueFailed> {
        self.in_flight -= self.done.len() as u32;
        self.has_failed |= result.is_err();
        result
    }
}

impl DiskQueue for StackQueue {
    fn start(&mut self) -> Result<(), DiskError> {
        self.parts().0.start()?;
        self.is_started = true;
        Ok(())
    }

    #[inline]
    fn submit(&mut self, requests: &mut [BlockRequest]) -> Result<usize, QueueFailed> {
        let slots = &mut *self.slots;
        for request in &*requests {
            let slot = &mut slots[request.token as u32 as usize];
            debug_assert!(*slot & IN_FLIGHT == 0, "a slot was submitted twice");
            *slot = request.offset | IN_FLIGHT;
        }
        self.in_flight += requests.len() as u32;
        let (mut below, done) = self.parts();
        let result = below.submit(requests, done);
        // After a failure nobody knows which were taken: all of them were.
        let taken = *result.as_ref().unwrap_or(&requests.len());
        for request in &requests[taken..] {
            self.slots[request.token as u32 as usize] &= !IN_FLIGHT;
        }
        self.in_flight -= (requests.len() - taken) as u32;
        self.note(result)
    }

    #[inline]
    fn poll(&mut self) -> Result<usize, QueueFailed> {
        let (mut below, done) = self.parts();
        let result = below.poll(done);
        self.note(result)?;
        Ok(self.done.len())
    }

    #[inline(always)]
    fn completed(&self) -> usize {
        self.done.len()
    }

    #[inline(always)]
    fn completion(&self, index: usize) -> Completion {
        self.done[index]
    }

    #[inline(always)]
    fn take_completion(&mut self, index: usize) -> Completion {
        let completion = self.done[index];
        let slot = &mut self.slots[completion.slot as usize];
        let offset = *slot ^ IN_FLIGHT;
        assert!(offset & IN_FLIGHT == 0, "a layer has completed a request that is not in flight");
        *slot = offset;
        completion
    }

    fn offset(&self, slot: u32) -> u64 {
        self.slots[slot as usize] & !IN_FLIGHT
    }

    #[inline(always)]
    fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn depth(&self) -> usize {
        self.slots.len()
    }

    fn has_failed(&self) -> bool {
        self.has_failed
    }

    fn take_in_flight(&mut self) -> Vec<u32> {
        self.in_flight = 0;
        let slots = self.slots.iter_mut().enumerate();
        let was_in_flight = |slot: &mut Slot| std::mem::replace(slot, *slot & !IN_FLIGHT) & IN_FLIGHT != 0;
        slots.filter_map(|(index, slot)| was_in_flight(slot).then_some(index as u32)).collect()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.base.queue.wake_fd()
    }

    fn deadline(&self) -> Option<Deadline> {
        if self.in_flight == 0 {
            // It is not polled, so a deadline would stay due.
            return None;
        }
        let layers = self.layers.iter().filter_map(|layer| layer.deadline());
        layers.chain(self.base.queue.deadline()).reduce(Deadline::or_earlier)
    }

    fn arm(&mut self, armed: bool) -> Result<bool, QueueFailed> {
        if self.has_failed {
            return Ok(self.in_flight > 0);
        }
        let result = self.parts().0.arm(armed);
        self.note(result)
    }

    fn stop(&mut self) -> Result<(), StopFailed> {
        self.parts().0.stop()?;
        self.is_started = false;
        self.in_flight = 0;
        Ok(())
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }
}

impl Drop for StackQueue {
    fn drop(&mut self) {
        if self.is_started {
            // The disk's queue says so in the log, and keeps what is its own.
            std::mem::forget(std::mem::take(&mut self.layers));
        }
    }
}
