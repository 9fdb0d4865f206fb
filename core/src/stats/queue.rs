//! The record that every queue has, whatever its device is.
use super::{
    counter::Counter,
    header::TableOf,
    histogram::BatchSizes,
    record::{Name, Record, Words},
};
use std::sync::atomic::AtomicU64;

/// What is counted for one queue. Written only by its worker.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct QueueStats {
    life: AtomicU64,
    kind: Counter,
    block_bytes: Counter,
    index: Counter,
    reserved: [Counter; 4],
    device: Name,
    worker: Name,
    /// Requests completed.
    pub requests: Counter,
    /// Requests that failed.
    pub errors: Counter,
    /// Requests in flight.
    pub in_flight: Counter,
    /// Kicks received from the driver.
    pub kicks: Counter,
    /// Interrupts sent to the driver.
    pub interrupts: Counter,
    /// Times that the driver wanted no interrupt for completed requests.
    pub interrupts_suppressed: Counter,
    /// Times that completed requests were left to an interrupt already held back for earlier ones.
    pub interrupts_merged: Counter,
    reserved_counter: Counter,
    /// Batches of new requests, by size.
    pub batches: BatchSizes,
    reserved_counters: [Counter; 8],
}

/// Which queue it is.
#[derive(Clone, Copy, Debug)]
pub struct QueueIdentity<'n> {
    /// Name of the device.
    pub device: &'n str,
    /// Index of the queue in it.
    pub index: usize,
    /// Name of the worker that serves it; empty if none does.
    pub worker: &'n str,
}

/// What the queues of one kind of device have in addition: words that follow those of [`QueueStats`].
pub trait QueueKind: Words + Sync {
    /// The kind: its virtio device ID.
    const KIND: u32;
}

/// For a kind of device whose queues count nothing else: its virtio device ID.
#[derive(Debug)]
pub struct PlainStats<const KIND: u32>;

// SAFETY: there are no words.
unsafe impl<const KIND: u32> Words for PlainStats<KIND> {
    fn gauges(&self) -> impl Iterator<Item = &AtomicU64> {
        std::iter::empty()
    }
}

impl<const KIND: u32> QueueKind for PlainStats<KIND> {
    const KIND: u32 = KIND;
}

impl QueueStats {
    /// Names the queue, which has a block of kind `K`.
    pub(super) fn describe<K: QueueKind>(&self, identity: QueueIdentity<'_>) {
        self.kind.set(K::KIND.into());
        self.block_bytes.set(size_of::<K>() as u64);
        self.index.set(identity.index as u64);
        self.device.set(identity.device);
        self.worker.set(identity.worker);
    }

    /// Name of the device.
    pub fn device(&self) -> String {
        self.device.get()
    }

    /// Index of the queue in its device.
    pub fn index(&self) -> u64 {
        self.index.get()
    }

    /// Name of the worker that serves the queue; empty if none does.
    pub fn worker(&self) -> String {
        self.worker.get()
    }

    /// The kind of the device: its virtio device ID.
    pub fn kind(&self) -> u64 {
        self.kind.get()
    }

    /// Size of the block of that kind.
    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes.get()
    }

    /// Batches for which the driver would have kicked, had it not been asked not to.
    pub fn kicks_avoided(&self) -> u64 {
        self.batches.get().saturating_sub(self.kicks.get())
    }
}

// SAFETY: atomic words and nothing else; `the_layout_is_as_documented` finds padding.
unsafe impl Words for QueueStats {
    fn gauges(&self) -> impl Iterator<Item = &AtomicU64> {
        let counters = [&self.kind, &self.block_bytes, &self.index, &self.in_flight];
        let names = self.device.words().iter().chain(self.worker.words());
        names.chain([&self.life]).chain(counters.map(|counter| &counter.0))
    }
}

impl Record for QueueStats {
    const TABLE: TableOf = TableOf::Queues;

    fn life(&self) -> &AtomicU64 {
        &self.life
    }
}
