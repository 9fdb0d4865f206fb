//! A plugin's medium as a disk. The methods do what those of the same name do, and are inlined into the data path.
use super::disk::{Disk, DiskError, DiskQueue};
use crate::{
    memory::GuestMemory,
    plugin::{BackendQueue, BlockBackend, Completion, Counters, QueueFailed, StopFailed},
    stats::StatsSegment,
};
use pollux_abi::block_v1::{BlockInfo, BlockRequest};
use std::{os::fd::RawFd, sync::Arc};
use tracing::warn;

impl Disk for BlockBackend {
    fn name(&self) -> &str {
        self.name()
    }

    fn server(&self) -> String {
        format!("the plugin {}", self.plugin().name())
    }

    fn info(&self) -> &BlockInfo {
        self.info()
    }

    fn describe(&self) -> Result<BlockInfo, DiskError> {
        Ok(self.describe()?)
    }

    fn change_event(&self) -> RawFd {
        self.change_event()
    }

    fn add_memory(&self, memory: &GuestMemory) -> Result<(), DiskError> {
        Ok(self.add_memory(memory)?)
    }

    fn remove_memory_but(&self, memory: Option<&GuestMemory>) {
        self.remove_memory_but(memory);
    }

    fn count(&self, segment: &StatsSegment) {
        let (name, plugin) = (self.name(), self.plugin().name());
        let Some(mut record) = segment.add_backend(name, plugin) else {
            return warn!("{name}: there is no room in the statistics for what the plugin {plugin} counts");
        };
        let publish = move |counters: &Counters| record.publish(counters.iter().map(|(name, value)| (&**name, *value)));
        if let Err(error) = self.count(publish) {
            warn!("{error}");
        }
    }

    fn open_queue(self: Arc<Self>, index: u32, depth: u32) -> Result<Box<dyn DiskQueue>, DiskError> {
        Ok(Box::new(BlockBackend::open_queue(&self, index, depth)?))
    }
}

impl DiskQueue for BackendQueue {
    fn start(&mut self) -> Result<(), DiskError> {
        Ok(self.start()?)
    }

    #[inline(always)]
    fn submit(&mut self, requests: &mut [BlockRequest]) -> Result<usize, QueueFailed> {
        self.submit(requests)
    }

    #[inline(always)]
    fn poll(&mut self) -> Result<usize, QueueFailed> {
        self.poll()
    }

    #[inline(always)]
    fn completed(&self) -> usize {
        self.completed()
    }

    #[inline(always)]
    fn completion(&self, index: usize) -> Completion {
        self.completion(index)
    }

    fn submit_to(&mut self, requests: &mut [BlockRequest], done: &mut Vec<Completion>) -> Result<usize, QueueFailed> {
        let result = self.submit(requests);
        done.extend(self.completions());
        result
    }

    fn poll_to(&mut self, done: &mut Vec<Completion>) -> Result<usize, QueueFailed> {
        let result = self.poll();
        done.extend(self.completions());
        result
    }

    fn offset(&self, slot: u32) -> u64 {
        self.offset(slot)
    }

    #[inline(always)]
    fn in_flight(&self) -> u32 {
        self.in_flight()
    }

    fn depth(&self) -> usize {
        self.depth()
    }

    fn has_failed(&self) -> bool {
        self.has_failed()
    }

    fn take_in_flight(&mut self) -> Vec<u32> {
        self.take_in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.wake_fd()
    }

    fn arm(&mut self, armed: bool) -> Result<bool, QueueFailed> {
        self.arm(armed)
    }

    fn stop(&mut self) -> Result<(), StopFailed> {
        self.stop()
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.backend().clone()
    }
}
