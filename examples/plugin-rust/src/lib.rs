//! A disk in memory: the smallest plugin that keeps data.
//!
//! Its options: `size`, such as `"512M"`.
#![deny(unsafe_code)]
use pollux_abi::{
    block::{Block, BlockInfo, BlockQueue, Completions, EROFS, ENOTSUP, Error, OpenContext, Operation, Request},
    block_v1::{
        POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_INFO_READ_ONLY, POLLUX_BLOCK_READ, POLLUX_BLOCK_WRITE,
        POLLUX_BLOCK_WRITE_ZEROES,
    },
    options::Size,
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// What the configuration says in `options`. A key that is not here is refused, with its name.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    size: Size,
}

/// An opened disk. Its calls come from control threads, one at a time.
struct RamDisk {
    capacity: u64,
    read_only: bool,
    shared: Arc<Shared>,
}

/// What disk and queue share.
struct Shared {
    /// The data, while no queue has it. A queue works without a lock.
    data: Mutex<Option<Vec<u8>>>,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Block for RamDisk {
    type Options = Options;
    type Queue = RamQueue;

    fn open(options: Options, context: &OpenContext) -> Result<Self, Error> {
        let capacity = options.size.bytes();
        if capacity == 0 || !capacity.is_multiple_of(512) {
            return Err(Error::new(format!("size = {capacity}: write a multiple of 512, such as \"512M\"")));
        }
        // A probe only asks what the disk is like.
        let length = if context.probe { 0 } else { capacity as usize };
        let mut data = Vec::new();
        data.try_reserve_exact(length).map_err(|_| Error::new(format!("no memory for {} bytes", options.size)))?;
        data.resize(length, 0);
        let shared =
            Shared { data: Mutex::new(Some(data)), bytes_read: AtomicU64::new(0), bytes_written: AtomicU64::new(0) };
        Ok(RamDisk { capacity, read_only: context.read_only, shared: Arc::new(shared) })
    }

    fn info(&self) -> BlockInfo {
        let mut operations = 1 << POLLUX_BLOCK_READ | 1 << POLLUX_BLOCK_FLUSH;
        let mut flags = 0;
        if self.read_only {
            flags |= POLLUX_BLOCK_INFO_READ_ONLY;
        } else {
            operations |= 1 << POLLUX_BLOCK_WRITE | 1 << POLLUX_BLOCK_WRITE_ZEROES;
        }
        // Several queues are on several threads: this disk is for one.
        BlockInfo { operations, flags, maximum_queues: 1, ..BlockInfo::new(self.capacity) }
    }

    fn open_queue(&self, _index: u32, _depth: u32) -> Result<RamQueue, Error> {
        let data = self.shared.data.lock().unwrap_or_else(PoisonError::into_inner).take();
        let data = data.ok_or_else(|| Error::new("this disk has one queue: write queues = 1"))?;
        Ok(RamQueue { data, read_only: self.read_only, shared: self.shared.clone() })
    }

    fn statistics(&self) -> String {
        let (read, written) =
            (self.shared.bytes_read.load(Ordering::Relaxed), self.shared.bytes_written.load(Ordering::Relaxed));
        format!(r#"{{"bytes_read": {read}, "bytes_written": {written}}}"#)
    }
}

/// Its queue. `submit` and `poll` run on the polling core and never block.
struct RamQueue {
    data: Vec<u8>,
    read_only: bool,
    shared: Arc<Shared>,
}

impl BlockQueue for RamQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        for request in requests {
            done.complete(request.token(), self.serve(request));
        }
        // All were taken. One that cannot be taken now, with those behind it, is offered again.
        requests.len()
    }

    // All requests complete in `submit`.
    fn poll(&mut self, _done: &mut Completions) {}
}

impl RamQueue {
    /// 0, or a negative errno.
    fn serve(&mut self, request: &Request) -> i32 {
        // The host has checked that this lies within the disk.
        let start = request.offset() as usize;
        let range = &mut self.data[start..start + request.length() as usize];
        match request.operation() {
            Some(Operation::Read) => {
                request.copy_from(range);
                self.shared.bytes_read.fetch_add(request.length(), Ordering::Relaxed);
            }
            // Nothing is as durable as memory here: a flush has nothing to do, and neither has `request.is_fua()`.
            Some(Operation::Flush) => {}
            Some(Operation::Write | Operation::WriteZeroes) if self.read_only => return -EROFS,
            Some(Operation::Write) => {
                request.copy_to(range);
                self.shared.bytes_written.fetch_add(request.length(), Ordering::Relaxed);
            }
            Some(Operation::WriteZeroes) => range.fill(0),
            // What is not offered does not come. An operation that this version of pollux-abi does not know is `None`.
            Some(Operation::Discard) | None => return -ENOTSUP,
        }
        0
    }
}

impl Drop for RamQueue {
    fn drop(&mut self) {
        // For the next queue: that of the guest's next start.
        let data = std::mem::take(&mut self.data);
        *self.shared.data.lock().unwrap_or_else(PoisonError::into_inner) = Some(data);
    }
}

pollux_abi::export_plugin! { name: "ramdisk", block: RamDisk }
