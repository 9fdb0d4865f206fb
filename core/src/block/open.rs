//! Which data path a disk's queue gets.
//!
//! A device model calls a [`DiskQueue`](super::DiskQueue) through a type parameter, so that the seam costs its data
//! path nothing. For that it must know what the queue is, once, when it is opened.
use super::{
    disk::{Disk, DiskError},
    stack::StackQueue,
};
use crate::plugin::BackendQueue;
use std::{any::Any, sync::Arc};

/// A queue that was just opened: one variant for each data path that is compiled.
#[derive(Debug)]
pub enum OpenQueue {
    /// A plugin's queue, with nothing in between.
    Backend(BackendQueue),
    /// A queue of any other kind, which is called a batch at a time.
    Stack(StackQueue),
}

impl OpenQueue {
    /// Opens queue `index` of `disk` with room for `depth` requests in flight.
    ///
    /// # Errors
    /// As [`Disk::open_queue`].
    pub fn of(disk: &Arc<dyn Disk>, index: u32, depth: u32) -> Result<Self, DiskError> {
        let queue = disk.clone().open_queue(index, depth)?;
        let is_known = (&*queue as &dyn Any).is::<BackendQueue>() || (&*queue as &dyn Any).is::<StackQueue>();
        if !is_known {
            return Ok(OpenQueue::Stack(StackQueue::new(disk.clone(), Box::default(), queue, depth)?));
        }
        Ok(match (queue as Box<dyn Any>).downcast::<BackendQueue>() {
            Ok(backend) => OpenQueue::Backend(*backend),
            Err(other) => OpenQueue::Stack(*other.downcast::<StackQueue>().expect("it is one of the two")),
        })
    }
}
