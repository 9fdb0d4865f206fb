//! Another process reads the statistics from a file: whole, of the right version, and also when the writer is gone.
use pollux_core::{
    stats::{Capacity, LAYOUT_VERSION, ReadError, SegmentReader, StatsSegment},
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

const CAPACITY: Capacity = Capacity { workers: 2, queues: 3 };

fn create(path: &Path) -> StatsSegment {
    let file = fs::File::options().read(true).write(true).create_new(true).open(path).expect("a file");
    StatsSegment::create(file, CAPACITY).expect("a segment")
}

#[test]
fn what_is_written_is_read_from_the_file_at_once_and_after_the_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let reader = SegmentReader::open(&path).expect("readable");
    assert!(reader.snapshot().expect("numbers").queues.is_empty());
    let queue = segment.add("blk0/0 io0").expect("room");
    queue.writes.add(3);
    queue.latency.record(2, 5000);
    queue.batches.record(2);
    segment.add_worker("io0").expect("room").turns.add(9);
    let snapshot = reader.snapshot().expect("numbers");
    assert_eq!((snapshot.queues[0].name(), snapshot.queues[0].writes.get()), ("blk0/0 io0".into(), 3));
    assert_eq!(snapshot.queues[0].latency.operations().map(|histogram| histogram.count()), [0, 0, 1, 0]);
    assert_eq!((snapshot.workers[0].name(), snapshot.workers[0].turns.get()), ("io0".into(), 9));
    assert!(!reader.writer().has_ended && reader.writer().is_alive());
    drop((segment, queue));
    assert!(reader.writer().has_ended);
    let late = SegmentReader::open(&path).expect("readable").snapshot().expect("numbers");
    assert_eq!(late.queues[0].writes.get(), 3);
}

#[test]
fn the_words_are_where_the_documentation_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    segment.add("blk0/0 io0").expect("room").errors.add(1);
    let queue = segment.add("blk0/1 io0").expect("room");
    queue.reads.add(11);
    queue.interrupts.add(12);
    queue.batches.record(3);
    queue.latency.record(1, 1000);
    let bytes = fs::read(&path).expect("the file");
    let word = |at: u64| u64::from_le_bytes(bytes[at as usize..][..8].try_into().expect("8 bytes"));
    assert_eq!(&bytes[..8], b"POLLUXST");
    assert_eq!((word(8), word(16), word(32)), (2, bytes.len() as u64, std::process::id().into()));
    assert_eq!((word(80), word(112), word(120)), (2, 3, 2), "room for workers and queues; queues");
    let second = word(96) + word(104);
    assert_eq!(&bytes[second as usize..][..11], b"blk0/1 io0\0");
    assert_eq!((word(second + 64), word(second + 136), word(second + 192 + 2 * 8)), (11, 12, 1));
    // The writes' histogram is the second; find the bucket by the documented rule.
    let (buckets, linear) = (word(128), word(136));
    let lower = |index: u64| if index < linear { index } else { (linear + index % linear) << (index / linear - 1) };
    let bucket = (0..buckets).rfind(|&index| lower(index) <= 1000).expect("a bucket");
    assert_eq!(word(second + 256 + 8 * (buckets + bucket)), 1);
}

#[test]
fn other_files_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    let whole = fs::read(&path).expect("the file");
    let other = folder.path().join("other");
    let refusal = |bytes: &[u8]| {
        fs::write(&other, bytes).expect("a file");
        SegmentReader::open(&other).expect_err("refused").to_string()
    };
    let name = other.display();
    assert_eq!(refusal(b""), format!("{name}: is no statistics segment: it does not begin with POLLUXST"));
    assert_eq!(refusal(&[b'x'; 4096]), format!("{name}: is no statistics segment: it does not begin with POLLUXST"));
    let changed = |at: usize, value: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for version in [1, LAYOUT_VERSION + 1] {
        let said = refusal(&changed(8, version));
        assert!(said.contains(&format!("its layout is version {version}, and this program reads")), "{said}");
    }
    for length in [8, 20, 100, 300, whole.len() - 1] {
        let said = refusal(&whole[..length]);
        assert!(said.contains("is incomplete or damaged"), "{length}: {said}");
    }
    // Records beyond the file, unaligned, of another size.
    for (at, value) in [(96, whole.len() as u64), (96, 257), (64, u64::MAX), (112, u64::MAX), (112, 4), (72, 8)] {
        let said = refusal(&changed(at, value));
        assert!(said.contains("the records of "), "{at} {value}: {said}");
    }
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
    std::mem::forget(segment);
}

#[test]
fn a_file_that_is_truncated_while_it_is_read_is_an_error_and_no_bus_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("segment");
    let segment = create(&path);
    segment.add("blk0/0 io0").expect("room").errors.add(1);
    segment.add_worker("io0").expect("room");
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
    let queue = segment.add("blk0/0 io0").expect("room");
    fs::File::options().write(true).open(&path).expect("the file").set_len(0).expect("shorter");
    queue.errors.add(1);
    let more = segment.add("blk0/1 io0").expect("room");
    more.reads.add(7);
    assert_eq!((more.reads.get(), more.name().as_str()), (7, "blk0/1 io0"), "it counts for itself from then on");
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
