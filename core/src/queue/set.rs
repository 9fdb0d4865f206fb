//! The queues of one device on their workers, whatever the device is: attached, changed while they run, detached.
use super::{Position, QueueUpdate, Retired, position_of};
use crate::{
    memory::GuestMemory,
    ring::QueueConfig,
    worker::{Detaching, Task, TaskId, WorkerHandle},
};
use std::{
    sync::mpsc::{Receiver, TryRecvError, sync_channel},
    task::Poll,
};
use tracing::error;

/// The running queues of one device. `[control]`
#[derive(Debug)]
pub struct QueueSet {
    /// The device's name, for messages.
    device: String,
    /// Queues are assigned to these in turn.
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
    /// It is on its way back.
    detaching: Option<Detaching>,
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
        self.running.push(Running { index, worker, id, detaching: None });
        Ok(())
    }

    /// Takes a queue back, drained, and returns its position. `None`: it did not run, or was lost.
    pub fn detach(&mut self, index: usize) -> Option<Position> {
        let at = self.position(index)?;
        let Running { worker, id, detaching, .. } = self.running.remove(at);
        let task = detaching.unwrap_or_else(|| worker.begin_detach(id)).wait(&self.device);
        self.taken_back(&worker, task)
    }

    /// Begins to take a queue back, and does not wait for it.
    pub fn begin_detach(&mut self, index: usize) {
        if let Some(at) = self.position(index) {
            let running = &mut self.running[at];
            running.detaching.get_or_insert_with(|| running.worker.begin_detach(running.id));
        }
    }

    /// As [`detach`](Self::detach), if the queue that was [asked for](Self::begin_detach) is there.
    pub fn poll_detach(&mut self, index: usize) -> Poll<Option<Position>> {
        let Some(at) = self.position(index) else { return Poll::Ready(None) };
        let Some(detaching) = &mut self.running[at].detaching else { return Poll::Pending };
        let Poll::Ready(task) = detaching.poll(&self.device) else { return Poll::Pending };
        let worker = self.running.remove(at).worker;
        Poll::Ready(self.taken_back(&worker, task))
    }

    fn position(&self, index: usize) -> Option<usize> {
        self.running.iter().position(|running| running.index == index)
    }

    fn taken_back(&mut self, worker: &WorkerHandle, task: Option<Box<dyn Task>>) -> Option<Position> {
        let Some(mut task) = task else {
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

    /// Changes a setting of a running queue. Does nothing if it does not run.
    pub fn update(&self, index: usize, update: QueueUpdate) {
        if let Some(running) = self.running.iter().find(|running| running.index == index) {
            // The previous value is dropped here.
            drop(running.worker.update(running.id, update));
        }
    }

    /// Gives every running queue a new memory map. `config` says where the rings of a queue are in it; if it does not,
    /// the old place is kept, and the queue breaks if the new map has nothing there.
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
            // A sender that is gone has either sent the map, or its queue was lost and keeps its memory.
            Ok(_) | Err(TryRecvError::Disconnected) => false,
            Err(TryRecvError::Empty) => true,
        });
        !self.retiring.is_empty()
    }

    /// Whether any queue runs.
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// A queue whose backend may still touch the guest's memory was lost.
    pub fn has_lost(&self) -> bool {
        self.lost
    }
}
