//! `null`: completes every request at once and touches no data. For measuring what the rest of the path costs.
//!
//! Options: `size` in bytes (default 1 GiB), `block_size` (default 512).
#![deny(unsafe_code)]
use pollux_abi::block::{Block, BlockInfo, BlockQueue, Completions, Error, OpenContext, Request};

/// The options of the configuration.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Capacity in bytes.
    size: u64,
    /// Logical block size in bytes.
    block_size: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { size: 1 << 30, block_size: 512 }
    }
}

/// The backend.
#[derive(Debug)]
pub struct Null {
    info: BlockInfo,
}

/// A queue of it.
#[derive(Debug)]
pub struct NullQueue;

impl Block for Null {
    type Options = Options;
    type Queue = NullQueue;

    fn open(options: Options, _context: &OpenContext) -> Result<Self, Error> {
        let block = options.block_size;
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(Error::new(format!("block_size = {block}: write a power of two from 512 to 65536")));
        }
        let info = BlockInfo { logical_block_size: block, physical_block_size: block, ..BlockInfo::new(options.size) };
        Ok(Null { info })
    }

    fn info(&self) -> BlockInfo {
        self.info
    }

    fn open_queue(&self, _index: u32, _depth: u32) -> Result<NullQueue, Error> {
        Ok(NullQueue)
    }
}

impl BlockQueue for NullQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        for request in requests {
            done.success(request.token());
        }
        requests.len()
    }

    fn poll(&mut self, _done: &mut Completions) {}
}

pollux_abi::export_plugin! { name: "null", block: Null }
