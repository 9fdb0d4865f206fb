//! `uring`: raw image files, block devices and LVM volumes through io_uring.
//!
//! Its options are described in `docs/configuration.md`.
//!
//! Each queue has a ring of its own, which its worker alone enters: at most one system call per turn of the worker,
//! none while nothing is in flight. A ring permits what it is used for and nothing else. The path of an NVMe generic
//! device, such as `/dev/ng0n1`, has requests go to the drive as commands, past the block layer.
//!
//! Where a file knows no `RWF_NOWAIT` (tmpfs, zram), io_uring would hand each request to a thread of the kernel. If the
//! medium is memory, requests are system calls instead: on a tmpfs a tenth of the time at depth 1, a third at depth 32.
//! Registered memory gained nothing that could be measured on a loop device, so it is off by default.
//!
//! A module imports only modules that stand above it:
//!
//! | module | holds |
//! |---|---|
//! | `options` | the options of the configuration |
//! | `counters` | what the queues of an instance count |
//! | `access` | opening a path that another process may hold |
//! | `lock` | the lock against other processes |
//! | `ring` | the io_uring itself, and how a worker sleeps on it |
//! | `background` | where the kernel's threads of io_uring run |
//! | `availability` | whether this process may use io_uring |
//! | `geometry` | sizes, alignments and identity, as the kernel tells them |
//! | `end` | where the medium ends, and what is lost beyond |
//! | `discard` | which way of discarding the medium knows |
//! | `call` | one call to the kernel, as a ring's entry or at once |
//! | `fallback` | a thread for calls that io_uring has none for |
//! | `registered` | guest memory that is registered with the kernel |
//! | `protocol` | how calls become entries of a ring |
//! | `nvme` | requests as NVMe commands |
//! | `engine` | which way requests go |
//! | `polling` | whether the worker asks the device |
//! | `write_order` | which writes may be under way together, where a guest's block is a part of the medium's |
//! | `image` | the open medium |
//! | `namespace` | opening an NVMe namespace |
//! | `opening` | opening what `path` names, and the messages for what cannot be used |
//! | `bounce` | aligned memory for segments that direct I/O does not take |
//! | `step` | the steps in which a request is done |
//! | `rules` | how a request begins |
//! | `slot` | one request in flight: the call of each step, and what follows a result |
//! | `inline` | reads that are tried on the page cache first |
//! | `sync_turns` | the syncs of a queue |
//! | `ring_queue` | the hot path through io_uring: submit, poll, completions |
//! | `sync_queue` | the hot path by system calls |
//! | `queue` | one queue, whichever way its requests go |
//!
#![deny(unsafe_code)]

mod access;
mod availability;
#[allow(unsafe_code)]
mod background;
#[allow(unsafe_code)]
mod bounce;
#[allow(unsafe_code)]
mod call;
mod counters;
#[allow(unsafe_code)]
mod discard;
mod end;
#[allow(unsafe_code)]
mod engine;
#[allow(unsafe_code)]
mod fallback;
#[allow(unsafe_code)]
mod geometry;
mod image;
mod inline;
mod lock;
mod namespace;
#[allow(unsafe_code)]
mod nvme;
mod opening;
mod options;
mod polling;
mod protocol;
mod queue;
#[allow(unsafe_code)]
mod registered;
#[allow(unsafe_code)]
mod ring;
#[allow(unsafe_code)]
mod ring_queue;
mod rules;
#[allow(unsafe_code)]
mod slot;
mod step;
#[allow(unsafe_code)]
mod sync_queue;
mod sync_turns;
#[cfg(test)]
#[allow(unsafe_code)]
mod testing;
#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
mod write_order;

use crate::{
    image::Image,
    nvme::NvmeCommands,
    options::Options,
    protocol::Files,
    queue::{UringQueue, Way},
    registered::{MemoryRegistry, RegisteredMemory},
    ring_queue::RingQueue,
    sync_queue::SyncQueue,
};
use pollux_abi::{
    block::{Block, BlockInfo, Error, MemoryRegion, OpenContext},
    host::{Host, Level},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// The backend: one open image or block device.
#[derive(Debug)]
pub struct Uring {
    image: Arc<Image>,
    queue_depth: u32,
    host: Host,
    /// Of guest memory, if it is to be registered.
    registry: Option<Arc<MemoryRegistry>>,
    /// Whether the log knows that memory could not be registered.
    refusal_logged: AtomicBool,
    /// Whether the log knows what the rings are like. They are all alike, and a guest can have them made again for
    /// ever.
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
        let image = opening::open(&options, context)?;
        context.host.log(Level::Info, &image);
        let (host, is_of_use) = (context.host, image.direct && image.namespace.is_none() && !image.engine.is_sync);
        let registry = match options.register_memory && !context.probe {
            true if is_of_use => registry(&host),
            true => {
                host.log(Level::Info, "register_memory has no effect here: only direct I/O by io_uring gains by it");
                None
            }
            false => None,
        };
        let (image, described, refusal_logged) = (Arc::new(image), AtomicBool::new(false), AtomicBool::new(false));
        Ok(Uring { image, queue_depth, host, registry, refusal_logged, described })
    }

    fn info(&self) -> BlockInfo {
        self.image.info()
    }

    fn open_queue(&self, _index: u32, depth: u32) -> Result<UringQueue, Error> {
        if self.image.engine.is_sync {
            let queue = SyncQueue::open(self.image.clone());
            return queue
                .map(|queue| Way::Sync(queue).into())
                .map_err(|error| Error::from_io("no memory for a queue", error));
        }
        self.look_for_memory();
        let depth = depth.min(self.queue_depth);
        let (queue, set_up) = match self.image.namespace {
            Some(namespace) => {
                let commands = || Ok(NvmeCommands::new(namespace, depth));
                let (queue, set_up) = RingQueue::open(&self.image, depth, commands)?;
                (Way::Nvme(queue), set_up)
            }
            None => {
                let files = || Ok(Files { registered: self.registry.clone().map(RegisteredMemory::new) });
                let (queue, set_up) = RingQueue::open(&self.image, depth, files)?;
                (Way::Ring(queue), set_up)
            }
        };
        match set_up.missing() {
            _ if self.described.swap(true, Ordering::Relaxed) => {}
            None => self.host.log(Level::Info, format!("io_uring with {set_up}")),
            Some(missing) => self.host.log(
                Level::Warn,
                format!("io_uring with {set_up}: this kernel lacks {missing}, polling costs more (Linux 6.1 has all)"),
            ),
        }
        Ok(queue.into())
    }

    fn statistics(&self) -> String {
        self.image.counters.to_string()
    }

    fn memory_added(&self, region: &MemoryRegion) -> Result<(), Error> {
        if let Some(registry) = &self.registry
            && let Err(error) = registry.add(region)
            && !self.refusal_logged.swap(true, Ordering::Relaxed)
        {
            self.host.log(
                Level::Warn,
                format!(
                    "the kernel does not register guest memory, requests go without: {error}; raise the limit on \
                     locked memory (ulimit -l), or leave register_memory out"
                ),
            );
        }
        Ok(())
    }

    fn memory_removed(&self, region: &MemoryRegion) {
        if let Some(registry) = &self.registry {
            registry.remove(region);
        }
    }
}

impl Uring {
    /// Says it once if there is nothing to register.
    fn look_for_memory(&self) {
        if self.registry.as_ref().is_some_and(|registry| registry.is_empty())
            && !self.refusal_logged.swap(true, Ordering::Relaxed)
        {
            self.host.log(
                Level::Warn,
                "register_memory has no effect: the guest's memory cannot be registered (over vhost-user another \
                 process may take pages back, as a balloon does, and registered ones would be those of before)",
            );
        }
    }
}

/// The registry of guest memory, where the kernel has it.
fn registry(host: &Host) -> Option<Arc<MemoryRegistry>> {
    let registry = MemoryRegistry::new();
    if let Err(error) = &registry {
        host.log(Level::Warn, format!("this kernel does not register guest memory: {error} (Linux 6.12 does)"));
    }
    registry.ok()
}

pollux_abi::export_plugin! { name: "uring", block: Uring }
