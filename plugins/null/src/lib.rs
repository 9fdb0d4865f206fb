//! `null`: completes every request at once and touches no data. For measuring what the rest of the path costs.
//!
//! Its options are described in `docs/configuration.md`.
#![deny(unsafe_code)]
use pollux_abi::{
    block::{Block, BlockInfo, BlockQueue, Completions, Error, OpenContext, Request},
    options::{BlockSize, Size},
};

/// The options of the configuration.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Capacity.
    size: Size,
    /// Logical block size.
    block_size: BlockSize,
}

impl Default for Options {
    fn default() -> Self {
        Options { size: Size::from_bytes(1 << 30), block_size: BlockSize::default() }
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
        let block = options.block_size.bytes();
        let info =
            BlockInfo { logical_block_size: block, physical_block_size: block, ..BlockInfo::new(options.size.bytes()) };
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
