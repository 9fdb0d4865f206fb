//! The queues of one device on their workers, whatever the device is: attached, changed while they run, detached.
use super::{Position, QueueUpdate, Retired, position_of};
use crate::{
    memory::GuestMemory,
    ring::QueueConfig,
    worker::{Task, TaskId, WorkerHandle},
};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use tracing::error;

/// The running queues of one device. `[control]`
#[derive(Debug)]
pub struct QueueSet {
    /// The device's name, for messages.
    device: String,
    /// Queues are dealt out to these in turn.
    workers: Vec<WorkerHandle>,
    running: Vec<Running>,
    /// Memory maps that queues still have requests in flight for.
    retiring: Vec<Receiver<Retired>>,
    lost: bool,
}

#[derive(Debug)]
struct Running {
    index: usize,
    worker: WorkerHandle,
    id: TaskId,
}

impl QueueSet {
    /// No queue runs yet.
    pub fn new(device: &str, workers: &[WorkerHandle]) -> Self {
        QueueSet {
            device: device.into(),
            workers: workers.into(),
            running: Vec::new(),
            retiring: Vec::new(),
            lost: false,
        }
    }

    /// The name of the worker that serves queue `index`; empty if the queues are polled by hand.
    pub fn worker_name(&self, index: usize) -> &str {
        self.workers.get(index % self.workers.len().max(1)).map_or("", WorkerHandle::name)
    }

    /// Hands queue `index` to its worker.
    ///
    /// # Errors
    /// It does not start: why.
    pub fn attach(&mut self, index: usize, task: Box<dyn Task>) -> Result<(), String> {
        let worker = self.workers[index % self.workers.len()].clone();
        let id = worker.attach(task).map_err(|error| error.to_string())?;
        self.running.push(Running { index, worker, id });
        Ok(())
    }

    /// Takes a queue back, drained, and says where it stands. `None`: it did not run, or was lost.
    pub fn detach(&mut self, index: usize) -> Option<Position> {
        let at = self.running.iter().position(|running| running.index == index)?;
        let Running { worker, id, .. } = self.running.remove(at);
        let Some(mut task) = worker.detach(id, &self.device) else {
            error!("{}: a queue was lost on worker {}; the device stays out of service", self.device, worker.name());
            self.lost = true;
            return None;
        };
        position_of(&mut *task)
    }

    /// Takes all of them back.
    pub fn detach_all(&mut self) {
        while let Some(running) = self.running.first() {
            self.detach(running.index);
        }
        self.collect_retired();
    }

    /// Changes something of a running queue. Does nothing if it does not run.
    pub fn update(&self, index: usize, update: QueueUpdate) {
        if let Some(running) = self.running.iter().find(|running| running.index == index) {
            // What comes back is dropped here.
            drop(running.worker.update(running.id, update));
        }
    }

    /// Gives every running queue a new memory map. `config` says where the rings of a queue are in it; without an
    /// answer the old place is kept, and the queue breaks if there is nothing.
    pub fn set_memory(&mut self, memory: &GuestMemory, config: &dyn Fn(usize) -> QueueConfig) {
        for running in &self.running {
            let (retired, receiver) = sync_channel(1);
            let update = QueueUpdate::Memory {
                config: config(running.index),
                tables: memory.translator(),
                data: memory.translator(),
                retired,
            };
            drop(running.worker.update(running.id, update));
            self.retiring.push(receiver);
        }
    }

    /// Drops the memory maps that no request needs any more. Returns whether there are others.
    pub fn collect_retired(&mut self) -> bool {
        self.retiring.retain(|receiver| match receiver.try_recv() {
            // A sender that is gone has sent, or its queue was lost: that one keeps its memory.
            Ok(_) | Err(TryRecvError::Disconnected) => false,
            Err(TryRecvError::Empty) => true,
        });
        !self.retiring.is_empty()
    }

    /// Whether any queue runs.
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// A queue was lost whose backend may still touch the guest's memory.
    pub fn has_lost(&self) -> bool {
        self.lost
    }
}
