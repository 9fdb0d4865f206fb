//! How requests begin: from the chains that were taken to requests for the backend.
use super::{
    chain::{answer_id, range_action},
    completion::Next,
    failures::Cause,
    portions::Portions,
    queue::BlkQueue,
    request::{Action, Data, Header, Status, Transfer},
    slot::PORTIONED,
};
use crate::{block::DiskQueue, queue::Virtqueue, ring::Ring, stats::BlkStats};
use pollux_abi::block_v1::POLLUX_BLOCK_FLUSH;
use std::sync::atomic::Ordering;

impl<Q: DiskQueue> BlkQueue<Q> {
    /// Turns the chains that were taken into requests for the backend. Returns how much there was to do.
    #[inline(always)]
    pub(super) fn accept<R: Ring>(&mut self, queue: &mut Virtqueue<R>, count: usize) -> usize {
        queue.stats.batches.record(count);
        let started = queue.sampler.begin();
        for (parts, &head) in self.parts.iter_mut().zip(&queue.heads[..count]) {
            let index = usize::from(head);
            let room = (&mut self.inline[index], &mut self.rooms);
            let slot = &mut self.slots[index];
            if let Err(error) = parts.take_chain::<R, Q>(&mut queue.ring, &mut queue.data, head, slot, room) {
                // The driver is broken, and so is all of this batch: none of it has been submitted.
                return queue.break_ring(error);
            }
            self.slots[index].started = started;
        }
        let durable = !self.shared.writeback.load(Ordering::Relaxed);
        self.limits.capacity_sectors = self.shared.capacity_sectors.load(Ordering::Relaxed);
        for index in 0..count {
            self.accept_request(queue, index, durable);
        }
        count
    }

    /// Reads the header and carries out, queues or refuses the request.
    #[inline]
    fn accept_request<R: Ring>(&mut self, queue: &mut Virtqueue<R>, index: usize, durable: bool) {
        let head = queue.heads[index];
        let parts = &self.parts[index];
        let (header, data) = (parts.header(), parts.data());
        let slot = &mut self.slots[usize::from(head)];
        slot.length = 0;
        slot.operation = u32::MAX;
        let mut action = header.action(&data, &self.limits, durable);
        if let Action::Range(operation) = action {
            slot.operation = operation;
            action = range_action(operation, &data, &self.limits, durable);
        }
        match action {
            Action::Submit(transfer) => {
                // Discards move no data, however long they are.
                let moves_data = transfer.operation < POLLUX_BLOCK_FLUSH;
                slot.operation = transfer.operation;
                slot.length = if moves_data { transfer.length as u32 } else { 0 };
                self.pending.push(transfer.request(head, if moves_data { data.segments } else { &[] }));
            }
            Action::GetId => {
                let status = answer_id(&data, &self.serial);
                self.answer(queue, head, &header, &data, status);
            }
            Action::Complete(status) => self.answer(queue, head, &header, &data, status),
            Action::Range(_) => unreachable!("a range has been turned into a request"),
        }
    }

    /// Ends a request that the device answers by itself; or begins it after all, if the backend can do it in portions.
    #[cold]
    fn answer<R: Ring>(
        &mut self,
        queue: &mut Virtqueue<R>,
        head: u16,
        header: &Header,
        data: &Data<'_>,
        status: Status,
    ) {
        let is_durable = !self.shared.writeback.load(Ordering::Relaxed);
        if status == Status::IoError
            && let Some(transfer) = header.portions(data, &self.limits, is_durable)
        {
            return self.begin_portions(queue, head, transfer);
        }
        if status != Status::Ok {
            let (operation, offset, reason) = header.refusal(data, self.limits());
            self.stats.count_error(BlkStats::REFUSED);
            self.failures().note(operation, offset, Cause::Refused(reason));
        }
        self.complete_alone(queue, head, status);
    }

    /// Begins a request in portions. Its state is in its slot.
    #[cold]
    fn begin_portions<R: Ring>(&mut self, queue: &mut Virtqueue<R>, head: u16, transfer: Transfer) {
        let slot = &mut self.slots[usize::from(head)];
        slot.operation = transfer.operation;
        slot.length = transfer.length.try_into().unwrap_or(u32::MAX);
        slot.state |= PORTIONED;
        let segments = slot.data_range();
        self.portions.insert(head, Portions::new(head, transfer, segments));
        if !matches!(self.next_portion(queue, head), Next::Submitted) {
            self.note_impossible(transfer.operation, transfer.offset);
            self.complete_alone(queue, head, Status::IoError);
        }
    }
}
