//! `mem`: a disk in memory, or in a file that is mapped into memory.
//!
//! Its options are described in `docs/configuration.md`.
//!
//! Every request completes in `submit`. That includes a flush of a file, which waits for the file system: on anything
//! but a tmpfs, the worker and all its queues stand still meanwhile.
//!
//! Unless it is `sparse`, a writable file gets all its blocks at open. A page that the file cannot give, because its
//! file system is full or somebody has cut it short, ends no more than the request: from then on until it is opened
//! again, the file is served by system calls, which say what is wrong with each request.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod calls;
#[cfg(test)]
mod flush_tests;
#[cfg(test)]
mod lost_pages_tests;
#[allow(unsafe_code)]
mod medium;
mod options;
mod queue;
// Written for the tests of both plugins; this one needs less of it.
#[cfg(test)]
#[allow(unsafe_code, dead_code)]
#[path = "../../uring/src/testing/mod.rs"]
mod testing;
#[cfg(test)]
mod tests;

use crate::{medium::Medium, options::Options, queue::MemQueue};
use pollux_abi::{
    block::{Block, BlockInfo, Error, OpenContext},
    host::Level,
};
use std::sync::{Arc, atomic::Ordering};

/// The backend: one piece of memory.
#[derive(Debug)]
pub struct Mem {
    medium: Arc<Medium>,
}

impl Block for Mem {
    type Options = Options;
    type Queue = MemQueue;

    fn open(options: Options, context: &OpenContext) -> Result<Self, Error> {
        let medium = Medium::open(&options, context)?;
        context.host.log(Level::Info, &medium);
        Ok(Mem { medium: Arc::new(medium) })
    }

    fn info(&self) -> BlockInfo {
        self.medium.info()
    }

    fn open_queue(&self, _index: u32, _depth: u32) -> Result<MemQueue, Error> {
        Ok(MemQueue::new(self.medium.clone()))
    }

    fn statistics(&self) -> String {
        // Memory has nothing to count that the host does not.
        match self.medium.file {
            Some(_) => format!(r#"{{"served_by_calls":{}}}"#, self.medium.calls.load(Ordering::Relaxed)),
            None => "{}".into(),
        }
    }
}

pollux_abi::export_plugin! { name: "mem", block: Mem }
