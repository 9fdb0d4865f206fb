//! Backends of the real plugins, and reads for their queues.
use pollux_abi::block_v1::{BlockRequest, POLLUX_BLOCK_READ, Segment};
use pollux_core::{
    memory::GuestMemory,
    plugin::{BackendQueue, BlockBackend, OpenOptions, Plugin},
};
use pollux_testing::build;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Bytes of a request's data.
pub const BLOCK_BYTES: u64 = 4096;

/// The shared library of a plugin, built once by each process that asks.
pub fn plugin(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().expect("no build has panicked");
    built.entry(name.to_owned()).or_insert_with(|| build::plugin(&format!("pollux-{name}"))).clone()
}

/// Opens a backend of the plugin through the real shared library.
pub fn backend(name: &str, options: &str) -> Arc<BlockBackend> {
    let plugin = Plugin::load(&plugin(name)).expect("the plugin");
    BlockBackend::open(&plugin, name, &OpenOptions { json: options.into(), ..OpenOptions::default() })
        .expect("a backend")
}

/// A started queue of the backend, whose worker the calling thread is, and a read of one block for each of its slots,
/// of the blocks from the first on. The memory is the requests'.
pub fn started_reads(backend: &Arc<BlockBackend>, depth: usize) -> (BackendQueue, Vec<BlockRequest>, GuestMemory) {
    let guest = GuestMemory::create(&[(0, depth as u64 * BLOCK_BYTES)], None).expect("guest memory");
    backend.add_memory(&guest).expect("the memory is announced");
    let memory = guest.regions()[0].base;
    let mut queue = backend.open_queue(0, depth as u32).expect("a queue");
    queue.start().expect("the queue starts");
    let request = |slot: usize| {
        let base = memory.wrapping_add(slot * BLOCK_BYTES as usize);
        let segment: &[Segment] = vec![Segment { base, length: BLOCK_BYTES as usize }].leak();
        BlockRequest {
            operation: POLLUX_BLOCK_READ,
            flags: 0,
            token: slot as u64,
            offset: slot as u64 * BLOCK_BYTES,
            length: BLOCK_BYTES,
            segments: segment.as_ptr(),
            segment_count: 1,
            reserved0: 0,
            reserved: [0; 2],
        }
    };
    (queue, (0..depth).map(request).collect(), guest)
}
