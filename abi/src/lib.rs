//! What crosses the boundary between Pollux and its plugins, and what the authors of plugins write against.
//!
//! A plugin is one shared library that exports numbered interfaces. This crate holds both sides' contract:
//!
//! | module | holds |
//! |---|---|
//! | [`plugin`] | the descriptor that every plugin exports, and the two doors through which the host finds it |
//! | [`block_v1`] | the frozen `repr(C)` interface `block/1` |
//! | [`host_v1`] | the frozen `repr(C)` table of what the host lends to a plugin |
//! | [`block`] | the safe traits that the authors of block backends implement |
//! | [`export`] | the macro that turns types into a plugin |
//! | [`host`] | the host's services as an author sees them |
//!
//! What all interfaces share:
//!
//! | module | holds |
//! |---|---|
//! | [`text`] | text that crosses the boundary |
//! | [`segment`], [`memory_region`] | where data lies, and the guest memory that a plugin is told of |
//! | [`error`] | why a plugin says no, and errnos |
//! | `guard` | ends a panic before it reaches the host |
//!
//! What several plugins need:
//!
//! | module | holds |
//! |---|---|
//! | [`flush_latch`] | a flush that has failed stays failed |
//! | [`file_lock`] | locks that keep others off a file |
//! | [`image_format`] | which files are no raw images, and what to do with them |
//! | [`options`] | sizes such as `"512M"` for the options of plugins |
//!
//! The smallest whole plugin:
//!
//! ```
//! use pollux_abi::block::{Block, BlockInfo, BlockQueue, Completions, Error, OpenContext, Request};
//!
//! pub struct Null { capacity_bytes: u64 }
//! pub struct NullQueue;
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! pub struct Options { size: u64 }
//!
//! impl Block for Null {
//!     type Options = Options;
//!     type Queue = NullQueue;
//!     fn open(options: Options, _context: &OpenContext) -> Result<Self, Error> {
//!         Ok(Null { capacity_bytes: options.size })
//!     }
//!     fn info(&self) -> BlockInfo {
//!         BlockInfo::new(self.capacity_bytes)
//!     }
//!     fn open_queue(&self, _index: u32, _depth: u32) -> Result<NullQueue, Error> {
//!         Ok(NullQueue)
//!     }
//! }
//!
//! impl BlockQueue for NullQueue {
//!     fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
//!         for request in requests {
//!             done.success(request.token());
//!         }
//!         requests.len()
//!     }
//!     fn poll(&mut self, _done: &mut Completions) {}
//! }
//!
//! pollux_abi::export_plugin! { name: "null", block: Null }
//! # fn main() {}
//! ```
//!
//! # Stability
//!
//! An interface never changes once it is released: a new need gets a new number. This crate is versioned 1.x, since
//! `abi_stable` compares crate versions. Fixed records carry reserved words, which both sides set to zero.
#![deny(unsafe_code)]
// abi_stable's derive macro emits items that these two lints dislike.
#![allow(non_local_definitions, non_camel_case_types)]

#[allow(unsafe_code)]
pub mod block;
pub mod block_v1;
pub mod error;
#[allow(unsafe_code)]
pub mod export;
pub mod file_lock;
pub mod flush_latch;
#[allow(unsafe_code)]
mod guard;
#[allow(unsafe_code)]
pub mod host;
pub mod host_v1;
pub mod image_format;
pub mod memory_region;
pub mod options;
#[allow(unsafe_code)]
pub mod plugin;
pub mod segment;
#[allow(unsafe_code)]
pub mod text;

/// Names that `export_plugin!` needs in the plugin's crate. No part of the contract.
#[doc(hidden)]
pub mod __private {
    pub use abi_stable::{self, StableAbi};
}
