//! One block queue: its state between two turns.
use super::{
    chain::ChainParts,
    failures::FailureLog,
    portions::Portions,
    request::MediumLimits,
    rooms::{Rooms, inline_rooms},
    shared::Shared,
    slot::{Inline, Slot},
};
use crate::{block::DiskQueue, fallible, queue::BATCH, ring::RingError, stats::BlkStatsHandle};
use pollux_abi::block_v1::BlockRequest;
use std::{collections::HashMap, sync::Arc};

/// What a block queue needs besides its virtqueue.
#[derive(Debug)]
pub(super) struct BlkSetup<Q> {
    /// Size of the ring.
    pub(super) size: u16,
    pub(super) backend: Q,
    pub(super) limits: MediumLimits,
    pub(super) serial: String,
    pub(super) shared: Arc<Shared>,
    pub(super) stats: BlkStatsHandle,
}

/// One queue of a block device, in front of a disk's queue.
#[derive(Debug)]
pub(super) struct BlkQueue<Q> {
    pub(super) backend: Q,
    pub(super) slots: Box<[Slot]>,
    /// The segments of each slot's request.
    pub(super) inline: Box<[Inline]>,
    /// Room for chains that outgrow it.
    pub(super) rooms: Rooms,
    /// The batch between its second and third stage. It is kept, since clearing it every turn would cost more than a
    /// request.
    pub(super) parts: Box<[ChainParts]>,
    /// Requests for the backend, those from `pending_start` on not yet taken by it.
    pub(super) pending: Vec<BlockRequest>,
    pub(super) pending_start: usize,
    /// The backend completed all that it was offered the last time, before it returned.
    pub(super) completes_at_once: bool,
    /// Requests that are done in portions, by their heads: as many as the ring has, if the guest chooses so.
    pub(super) portions: HashMap<u16, Portions>,
    pub(super) limits: MediumLimits,
    /// The backend has failed and has not stopped: it may touch the memory of its requests for ever.
    pub(super) is_lost: bool,
    pub(super) stats: BlkStatsHandle,
    pub(super) shared: Arc<Shared>,
    pub(super) serial: String,
}

// SAFETY: the pointers in slots and requests lead to guest memory, which the translators of the virtqueue keep mapped,
// or into the queue's own boxes, which move with it.
unsafe impl<Q: DiskQueue> Send for BlkQueue<Q> {}

impl<Q: DiskQueue> BlkQueue<Q> {
    pub(super) fn new(setup: BlkSetup<Q>) -> Result<Self, RingError> {
        let size = usize::from(setup.size);
        assert!(setup.backend.depth() > size, "the backend's queue has a slot for the last flush");
        Ok(BlkQueue {
            backend: setup.backend,
            slots: fallible::filled(Slot::EMPTY, size)?,
            inline: inline_rooms(size)?,
            rooms: Rooms::new(size)?,
            parts: vec![ChainParts::EMPTY; BATCH].into(),
            pending: Vec::with_capacity(BATCH),
            pending_start: 0,
            completes_at_once: false,
            portions: HashMap::new(),
            limits: setup.limits,
            is_lost: false,
            stats: setup.stats,
            shared: setup.shared,
            serial: setup.serial,
        })
    }

    pub(super) fn failures(&self) -> &FailureLog {
        &self.shared.failures
    }

    pub(super) fn limits(&self) -> &MediumLimits {
        &self.limits
    }
}
