//! Another process reads the statistics from a file: whole, of the right version, and also when the writer is gone.
use pollux_core::{
    stats::{
        BlkStats, Capacity, KindSnapshot, LAYOUT_VERSION, PlainStats, QueueIdentity, QueueRecord, ReadError,
        SegmentReader, StatsSegment,
    },
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{Cut, IN, OK, PATIENCE, wait_for},
    disk::{self, Behaviour},
    rig::Guest,
};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

const CAPACITY: Capacity = Capacity { workers: 2, queues: 3, backends: 1 };

fn create(path: &Path) -> StatsSegment {
    let file = fs::File::options().read(true).write(true).create_new(true).open(path).expect("a file");
    StatsSegment::create(file, CAPACITY).expect("a segment")
}

fn add(segment: &StatsSegment, index: usize) -> QueueRecord<BlkStats> {
    segment.add_queue(QueueIdentity { device: "blk0", index, worker: "io0" }).expect("room")
}

#[test]
fn what_is_written_is_read_from_the_file_at_once_and_after_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let reader = SegmentReader::open(&path).expect("readable");
    assert!(reader.snapshot().expect("numbers").queues.is_empty());
    let queue = add(&segment, 0);
    queue.block.writes.add(3);
    queue.block.latency.record(2, 5000);
    queue.batches.record(2);
    let worker = segment.add_worker("io0").expect("room");
    worker.turns.add(9);
    let snapshot = reader.snapshot().expect("numbers");
    let (queue_read, blk) = (&snapshot.queues[0], snapshot.queues[0].blk().expect("a block device"));
    assert_eq!((queue_read.device(), queue_read.index(), queue_read.worker()), ("blk0".into(), 0, "io0".into()));
    assert_eq!((queue_read.kind(), blk.writes.get()), (2, 3));
    assert_eq!(blk.latency.operations().map(|histogram| histogram.count()), [0, 0, 1, 0]);
    assert_eq!((snapshot.workers[0].name(), snapshot.workers[0].turns.get()), ("io0".into(), 9));
    assert!(!reader.writer().has_ended && reader.writer().is_alive());
    segment.keep_records();
    drop((segment, queue, worker));
    assert!(reader.writer().has_ended);
    let late = SegmentReader::open(&path).expect("readable").snapshot().expect("numbers");
    assert_eq!(late.queues[0].blk().map(|blk| blk.writes.get()), Some(3));
    assert_eq!(late.workers[0].turns.get(), 9);
}

#[test]
fn the_words_are_where_the_documentation_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let first = add(&segment, 0);
    first.errors.add(1);
    let queue = add(&segment, 1);
    queue.block.reads.add(11);
    queue.interrupts.add(12);
    queue.batches.record(3);
    queue.block.latency.record(1, 1000);
    let mut backend = segment.add_backend("disk", "mem").expect("room");
    backend.publish([("one", 21), ("other", 22)]);
    let bytes = fs::read(&path).expect("the file");
    let word = |at: u64| u64::from_le_bytes(bytes[at as usize..][..8].try_into().expect("8 bytes"));
    assert_eq!(&bytes[..8], b"POLLUXST");
    assert_eq!((word(8), word(16), word(32)), (3, bytes.len() as u64, std::process::id().into()));
    assert_eq!((word(80), word(112), word(120)), (2, 3, 2), "room for workers and queues; queues");
    let second = word(96) + word(104);
    let text = |at: u64, text: &[u8]| bytes[at as usize..].starts_with(text);
    assert!(text(second + 64, b"blk0\0") && text(second + 128, b"io0\0"), "device and worker");
    assert_eq!((word(second + 8), word(second + 24)), (2, 1), "a block device's second queue");
    assert!(word(second) > 0 && word(second) != word(word(96)), "lives of their own");
    assert_eq!(word(second + 2 * word(104) - word(104)), 0, "the third is free");
    let block = second + 384;
    assert_eq!((word(block), word(second + 224), word(second + 256 + 2 * 8)), (11, 12, 1));
    assert_eq!(word(second + 16), word(104) - 384, "every record has room for this block, the longest");
    let backend = word(128);
    assert!(text(backend + 64, b"disk\0") && text(backend + 128, b"mem\0"), "backend and plugin");
    assert_eq!((word(backend + 8) % 2, word(backend + 16)), (0, 2));
    assert!(text(backend + 256 + 64, b"other\0"));
    assert_eq!(word(backend + 256 + 64 + 56), 22);
    // The writes' histogram is the second; find the bucket by the documented rule.
    let (buckets, linear) = (word(160), word(168));
    let lower = |index: u64| if index < linear { index } else { (linear + index % linear) << (index / linear - 1) };
    let bucket = (0..buckets).rfind(|&index| lower(index) <= 1000).expect("a bucket");
    assert_eq!(word(block + 128 + 8 * (buckets + bucket)), 1);
}

#[test]
fn other_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let queues = (add(&segment, 0), add(&segment, 1), add(&segment, 2));
    let whole = fs::read(&path).expect("the file");
    let other = folder.path().join("other");
    let refusal = |bytes: &[u8]| {
        fs::write(&other, bytes).expect("a file");
        SegmentReader::open(&other).expect_err("refused").to_string()
    };
    let name = other.display();
    assert_eq!(refusal(b""), format!("{name}: is not a statistics segment: it does not begin with POLLUXST"));
    assert_eq!(refusal(&[b'x'; 4096]), format!("{name}: is not a statistics segment: it does not begin with POLLUXST"));
    let changed = |at: usize, value: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for version in [1, 2, LAYOUT_VERSION + 1] {
        let said = refusal(&changed(8, version));
        assert!(
            said.contains(&format!("its layout is version {version}, made by another release of pollux")),
            "{said}"
        );
    }
    for length in [8, 20, 100, 300, whole.len() - 1] {
        let said = refusal(&whole[..length]);
        assert!(said.contains("is incomplete or damaged"), "{length}: {said}");
    }
    // Records beyond the file, unaligned, of another size.
    for (at, value) in
        [(96, whole.len() as u64), (96, 257), (64, u64::MAX), (112, u64::MAX), (112, 4), (72, 8), (104, 384 + 8)]
    {
        let said = refusal(&changed(at, value));
        assert!(said.contains("the records of "), "{at} {value}: {said}");
    }
    assert!(refusal(&changed(160, 100)).contains("its histograms have 100 buckets"));
    assert!(matches!(SegmentReader::open(&folder.path().join("none")), Err(ReadError::Open(..))));
    assert!(matches!(SegmentReader::open(folder.path()), Err(ReadError::Open(..))));
    // A count beyond the room is no reason to read beyond it.
    fs::write(&other, changed(120, u64::MAX)).expect("a file");
    let snapshot = SegmentReader::open(&other).expect("readable").snapshot().expect("numbers");
    assert_eq!(snapshot.queues.len(), CAPACITY.queues);
    let reader = SegmentReader::open(&path).expect("readable");
    fs::File::options().write(true).open(&path).expect("the file").set_len(whole.len() as u64 - 4096).expect("shorter");
    assert!(reader.snapshot().expect_err("shorter").to_string().ends_with("it was truncated"));
    // Its writer would not survive what it says at its end.
    std::mem::forget((segment, queues));
}

/// What a later release may write without another version: kinds of devices that this one does not know, whose blocks
/// are longer than any of its own, and shorter blocks than it has itself.
#[test]
fn kinds_that_are_not_known_are_skipped_and_shorter_blocks_are_as_if_zeroes_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let queues = [0, 1].map(|index| add(&segment, index));
    for queue in &queues {
        queue.requests.add(5);
        queue.block.reads.add(4);
        queue.block.writes.add(1);
    }
    let mut bytes = fs::read(&path).expect("the file");
    let word = |at: usize| u64::from_le_bytes(bytes[at..][..8].try_into().expect("8 bytes")) as usize;
    let (first, distance) = (word(96), word(104));
    let mut set = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    set(first + 8, 1);
    set(first + 16, u64::MAX);
    set(first + distance + 16, 8);
    let other = folder.path().join("other");
    fs::write(&other, &bytes).expect("a file");
    let snapshot = SegmentReader::open(&other).expect("readable").snapshot().expect("numbers");
    assert!(matches!(snapshot.queues[0].kind, KindSnapshot::Unknown(1)), "{:?}", snapshot.queues[0].kind());
    assert_eq!((snapshot.queues[0].requests.get(), snapshot.queues[0].device()), (5, "blk0".into()));
    let blk = snapshot.queues[1].blk().expect("a block device");
    assert_eq!((blk.reads.get(), blk.writes.get()), (4, 0));
}

#[test]
fn a_file_that_is_truncated_while_it_is_read_is_an_error_and_no_bus_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let _records = (add(&segment, 0), segment.add_worker("io0").expect("room"));
    let (copy, whole) = (folder.path().join("copy"), fs::read(&path).expect("the file"));
    fs::write(&copy, &whole).expect("a file");
    // Nothing looks at the length of the file before this looks at its pages.
    let reader = SegmentReader::open(&copy).expect("readable");
    let file = fs::File::options().write(true).open(&copy).expect("the file");
    file.set_len(0).expect("shorter");
    assert_eq!(reader.writer().process, 0, "it reads as zeroes");
    // As long as before, it is another one all the same.
    file.set_len(whole.len() as u64).expect("longer");
    assert!(reader.snapshot().expect_err("shorter").to_string().ends_with("it was truncated"));
    // At any moment of being opened and read.
    let done = AtomicBool::new(false);
    let (mut good, mut bad, start) = (0, 0, Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::write(&copy, &whole).expect("a file");
                file.set_len(0).expect("shorter");
            }
        });
        while (good + bad < 5000 || good == 0 || bad == 0) && start.elapsed() < PATIENCE {
            match SegmentReader::open(&copy).and_then(|reader| reader.snapshot()) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(good > 0 && bad > 0, "{good} were read, {bad} were not");
}

#[test]
fn whoever_truncates_the_file_of_a_segment_does_no_harm_to_its_writer() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let queue = add(&segment, 0);
    fs::File::options().write(true).open(&path).expect("the file").set_len(0).expect("shorter");
    queue.errors.add(1);
    let more = add(&segment, 1);
    more.block.reads.add(7);
    assert_eq!(
        (more.block.reads.get(), more.device().as_str(), more.index()),
        (7, "blk0", 1),
        "it counts for itself from then on"
    );
    drop((queue, more, segment));
    assert!(SegmentReader::open(&path).is_err(), "and nobody reads it");
}

#[test]
fn a_process_is_found_by_its_number() {
    let segment = StatsSegment::anonymous(1).expect("a segment");
    let reader = SegmentReader::of_process(std::process::id()).expect("this process");
    assert!(reader.writer().is_alive());
    drop(segment);
    let error = SegmentReader::of_process(u32::MAX).expect_err("no such process");
    assert_eq!(error.to_string(), format!("process {}: there is no such process", u32::MAX));
}

#[test]
fn a_worker_counts_its_turns_sleeps_and_wake_ups() {
    let segment = StatsSegment::anonymous_with(CAPACITY).expect("a segment");
    let record = segment.add_worker("io0").expect("room");
    let worker = Worker::spawn_counted("io0", None, IdlePolicy::Interrupt, record.clone()).expect("a worker");
    let disk = disk::open("counted", 1 << 20, Behaviour::Inline).expect("disk");
    let mut guest = Guest::new("counted", disk, 2, &[worker.handle()]);
    guest.start();
    for round in 0..20 {
        // The last wake-up has been counted when the worker sleeps again.
        wait_for("a worker that sleeps", || (record.resting.get() + record.turns.get() > 0).then_some(()));
        assert_eq!(guest.request(round % 2, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    }
    wait_for("counts", || (record.tasks.get() == 2 && record.sleeps.get() > 0).then_some(()));
    let snapshot = segment.snapshot();
    assert!(snapshot.schedules[0].is_some_and(|schedule| schedule.run_ns > 0), "{:?}", snapshot.schedules);
    guest.device.set_status(0);
    drop(worker);
    assert_eq!((record.policy.get(), record.cpu.get(), record.ended.get(), record.tasks.get()), (2, 0, 1, 0));
    assert!(record.thread.get() > 0);
    assert!(record.turns.get() > record.empty_turns.get(), "some turns had work");
    assert!(record.slept_ticks.get() > 0 && record.wakes_by_kick.get() > 0);
    assert_eq!(record.commands.get(), 5, "two queues came and went, and the end");
    let last = segment.snapshot().schedules[0].expect("known at the end");
    assert!(last.run_ns > 0 && last.switches_voluntary > 0, "{last:?}");
}

#[test]
fn a_kind_of_device_that_counts_nothing_besides_has_what_all_have() {
    let segment = StatsSegment::anonymous(2).expect("a segment");
    let identity = |index| QueueIdentity { device: "rng0", index, worker: "io0" };
    let queues: [QueueRecord<PlainStats<4>>; 2] = [0, 1].map(|index| segment.add_queue(identity(index)).expect("room"));
    queues[1].requests.add(7);
    let snapshot = segment.snapshot();
    assert_eq!(snapshot.queues.iter().map(|queue| queue.requests.get()).collect::<Vec<_>>(), [0, 7]);
    assert!(matches!(snapshot.queues[1].kind, KindSnapshot::Unknown(4)));
}
