//! `uring`: raw image files, block devices and LVM volumes through io_uring.
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `path` | | the image file or block device |
//! | `direct` | `true` | go past the page cache (`O_DIRECT`) |
//! | `queue_depth` | the device's | most requests of one queue that the kernel works on at a time |
//! | `lock` | `true` | refuse a medium that another process has open for writing |
//! | `engine` | `"auto"` | `"io_uring"`, `"sync"` (system calls within `submit`), or the one that suits the medium |
//!
//! Each queue has a ring of its own, which its worker alone enters: at most one system call per turn of the worker,
//! none while nothing is in flight. Guest memory is not registered with the ring, so the kernel pins the pages of
//! each direct request anew.
//!
//! | module | holds |
//! |---|---|
//! | `image` | the open medium, and the messages for one that cannot be used |
//! | `geometry` | sizes, alignments and identity, as the kernel tells them |
//! | `discard` | which way of discarding the medium knows |
//! | `lock` | the lock against other processes |
//! | `engine` | which way requests go |
//! | `queue` | one queue, whichever way its requests go |
//! | `ring_queue` | the hot path through io_uring: submit, poll, completions |
//! | `sync_queue` | the hot path by system calls |
//! | `rules` | how a request begins |
//! | `call` | one call to the kernel, as a ring's entry or at once |
//! | `slot` | one request in flight: its steps, and what follows a result |
//! | `ring` | the io_uring itself, and how a worker sleeps on it |
//! | `bounce` | aligned memory for segments that direct I/O does not take |
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod bounce;
#[allow(unsafe_code)]
mod call;
#[allow(unsafe_code)]
mod discard;
#[allow(unsafe_code)]
mod engine;
#[allow(unsafe_code)]
mod geometry;
mod image;
#[allow(unsafe_code)]
mod lock;
mod queue;
#[allow(unsafe_code)]
mod ring;
#[allow(unsafe_code)]
mod ring_queue;
mod rules;
#[allow(unsafe_code)]
mod slot;
#[allow(unsafe_code)]
mod sync_queue;
#[cfg(test)]
#[allow(unsafe_code)]
mod testing;
#[cfg(test)]
#[allow(unsafe_code)]
mod tests;

use crate::{engine::EngineChoice, image::Image, queue::UringQueue, ring_queue::RingQueue, sync_queue::SyncQueue};
use pollux_abi::{
    block::{Block, BlockInfo, Error, OpenContext},
    host::{Host, Level},
};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The options of the configuration.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    path: PathBuf,
    #[serde(default = "yes")]
    direct: bool,
    queue_depth: Option<u32>,
    #[serde(default = "yes")]
    lock: bool,
    #[serde(default)]
    engine: EngineChoice,
}

fn yes() -> bool {
    true
}

/// The backend: one open image or block device.
#[derive(Debug)]
pub struct Uring {
    image: Arc<Image>,
    queue_depth: u32,
    host: Host,
    /// Whether the log knows what the rings are like. They are all alike, and a guest can have them made anew for ever.
    described: AtomicBool,
}

impl Block for Uring {
    type Options = Options;
    type Queue = UringQueue;

    fn open(options: Options, context: &OpenContext) -> Result<Self, Error> {
        let queue_depth = options.queue_depth.unwrap_or(ring::MAXIMUM_DEPTH);
        if !(1..=ring::MAXIMUM_DEPTH).contains(&queue_depth) {
            return Err(Error::new(format!(
                "queue_depth = {queue_depth}: write a number from 1 to {}, or leave it out",
                ring::MAXIMUM_DEPTH
            )));
        }
        let image = Image::open(&options, context)?;
        context.host.log(Level::Info, &image);
        let (image, described) = (Arc::new(image), AtomicBool::new(false));
        Ok(Uring { image, queue_depth, host: context.host, described })
    }

    fn info(&self) -> BlockInfo {
        self.image.info()
    }

    fn open_queue(&self, _index: u32, depth: u32) -> Result<UringQueue, Error> {
        if self.image.engine.is_sync {
            let queue = SyncQueue::open(self.image.clone());
            return queue.map(UringQueue::Sync).map_err(|error| Error::from_io("no memory for a queue", error));
        }
        let (queue, set_up) = RingQueue::open(self.image.clone(), depth.min(self.queue_depth))?;
        match set_up.missing() {
            _ if self.described.swap(true, Ordering::Relaxed) => {}
            None => self.host.log(Level::Info, format!("io_uring with {set_up}")),
            Some(missing) => self.host.log(
                Level::Warn,
                format!("io_uring with {set_up}: this kernel lacks {missing}, polling costs more (Linux 6.1 has all)"),
            ),
        }
        Ok(UringQueue::Ring(queue))
    }

    fn statistics(&self) -> String {
        self.image.counters.to_string()
    }
}

pollux_abi::export_plugin! { name: "uring", block: Uring }
