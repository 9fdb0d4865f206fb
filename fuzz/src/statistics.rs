//! Any file as the statistics of another process, which changes its length while it is read.
use crate::{file, input::Input};
use pollux_core::stats::{BlkStats, COUNTERS, Capacity, QueueIdentity, SegmentReader, Snapshot, StatsSegment};
use std::{fs::File, os::unix::fs::FileExt};

/// Changes of a true segment.
const CHANGES_MAX: usize = 32;

/// Opens a segment and reads it twice, the second time after the file was given another length.
///
/// # Panics
/// A file that has become shorter was read as if it had not, or the other way round.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let resized = u64::from(input.byte());
    let segment = if input.flag() { changed(&mut input) } else { file::in_memory(input.bytes(data.len())) };
    let Ok(reader) = SegmentReader::open(&file::path(&segment)) else { return };
    let before = reader.snapshot().expect("a whole file");
    look(&before);
    reader.writer().is_alive();
    let length = segment.metadata().expect("a file").len();
    // Half of them leave it as it is, or make it longer.
    let resized = length * resized / 128;
    segment.set_len(resized).expect("a length");
    match reader.snapshot() {
        Ok(after) => {
            assert!(resized >= length, "a file that has become shorter was read");
            look(&after.since(&before));
        }
        Err(error) => assert!(resized < length, "{error}"),
    }
}

/// A true segment with words of it changed, and its length.
fn changed(input: &mut Input<'_>) -> File {
    let file = file::in_memory(&[]);
    let room = 1 + input.below(2);
    let capacity = Capacity { workers: room, queues: 1 + input.below(2), backends: room };
    let segment = StatsSegment::create(file.try_clone().expect("a descriptor"), capacity).expect("a segment");
    // A reader finds as many as were added.
    let queue = QueueIdentity { device: "blk0", index: 0, worker: "io0" };
    let records = (segment.add_worker("io0"), segment.add_queue::<BlkStats>(queue));
    let mut backend = segment.add_backend("disk", "mem").expect("room");
    backend.publish([("reads", 1)]);
    // They are in use in what is read.
    segment.keep_records();
    let length = file.metadata().expect("a file").len();
    for _ in 0..CHANGES_MAX {
        if input.is_empty() {
            break;
        }
        // The header is what matters most.
        let at = if input.flag() { u64::from(input.byte()) } else { u64::from(input.half()) << 3 };
        let value = if input.flag() { u64::from(input.byte()).to_le_bytes() } else { input.long().to_le_bytes() };
        file.write_all_at(&value, (at << 3).min(length - 8)).expect("a write");
    }
    drop(records);
    drop(segment);
    file
}

/// Asks everything that `pollux stats` asks.
fn look(snapshot: &Snapshot) {
    for worker in &snapshot.workers {
        worker.name();
        worker.busy_share();
    }
    for queue in &snapshot.queues {
        queue.device();
        queue.worker();
        queue.kicks_avoided();
        queue.batches.sizes().for_each(drop);
        let Some(blk) = queue.blk() else { continue };
        blk.errors_by_number().for_each(drop);
        assert!(blk.latency.quantile(0.5) <= blk.latency.quantile(0.999), "quantiles ascend");
        blk.latency.buckets().for_each(drop);
    }
    for backend in &snapshot.backends {
        assert!(backend.counters.len() <= COUNTERS, "no more than there is room for");
    }
    snapshot.nanoseconds(u64::MAX);
}
