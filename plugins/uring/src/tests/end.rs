//! A medium that has become shorter than the guest was told: what is missing is an error, and never a hole full of
//! zeroes.
use super::*;
use crate::{testing::Memory, tests::device::LoopDevice};
use pollux_abi::block_v1::*;

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

fn resize(path: &Path, length: u64) {
    File::options().write(true).open(path).expect("it opens").set_len(length).expect("resized");
}

/// The result of a read into memory that begins at an odd address if `start` is 1, so that direct I/O bounces it.
fn read_result(queue: &mut Queue, offset: u64, length: usize, start: usize) -> i32 {
    let memory = Memory::new(length + 1);
    let segments = [memory.segment(start, length)];
    queue.run(crate::testing::transfer(POLLUX_BLOCK_READ, offset, &segments))
}

fn fill(queue: &mut Queue) {
    assert_eq!(queue.write(0, &vec![0xa5; MIB as usize]), 0);
    checked(queue, crate::testing::request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
}

/// All ways of a file: fixture, direct, engine.
fn ways() -> Vec<(Fixture, bool, &'static str)> {
    let mut ways: Vec<_> = [(true, "io_uring"), (true, "sync"), (false, "io_uring"), (false, "sync")]
        .map(|(direct, engine)| (Fixture::new(MIB), direct, engine))
        .into();
    ways.push((Fixture::on_tmpfs(MIB), false, "auto"));
    ways
}

#[test]
fn reads_of_what_was_cut_off_a_file_fail_and_those_below_do_not() {
    for length in [MIB / 2, MIB / 2 + 100, 0] {
        for (fixture, direct, engine) in ways() {
            let instance = fixture.open_with(direct, engine);
            let mut queue = instance.queue(8);
            fill(&mut queue);
            resize(&fixture.path, length);
            let case = format!("direct {direct}, {engine}, cut to {length}");
            let whole = length as usize / PAGE * PAGE;
            for start in [0, 1] {
                let beyond = read_result(&mut queue, 3 * MIB / 4, PAGE, start);
                let across = read_result(&mut queue, whole as u64, 2 * PAGE, start);
                assert_eq!((beyond, across), (-libc::EIO, -libc::EIO), "{case}");
            }
            if whole > 0 {
                assert!(queue.read(0, whole).iter().all(|&byte| byte == 0xa5), "{case}");
            }
            let lines = instance.log().matches(&format!("ends at byte {length}, but")).count();
            assert_eq!(lines, 1, "one line for all: {}", instance.log());
        }
    }
}

#[test]
fn a_write_does_not_turn_what_was_lost_into_a_hole() {
    for (fixture, direct, engine) in ways() {
        let instance = fixture.open_with(direct, engine);
        let mut queue = instance.queue(8);
        fill(&mut queue);
        resize(&fixture.path, MIB / 2);
        assert_eq!(read_result(&mut queue, 3 * MIB / 4, PAGE, 0), -libc::EIO);
        for (offset, length) in [(MIB - 4096, 4096), (MIB / 2 - 4096, 8192)] {
            assert_eq!(queue.write(offset, &vec![1; length]), -libc::EIO, "{length} bytes at {offset}");
        }
        for operation in [POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_WRITE_ZEROES] {
            assert_eq!(queue.run(crate::testing::request(operation, MIB - 4096, 4096, 0)), -libc::EIO);
        }
        assert_eq!(fixture.path.metadata().expect("metadata").len(), MIB / 2, "nothing has made the file longer");
        assert_eq!(queue.write(0, &[2; PAGE]), 0, "what is there can be written");
        // Whoever gives the file its old length back does not bring the data back.
        resize(&fixture.path, MIB);
        assert_eq!(read_result(&mut queue, 3 * MIB / 4, PAGE, 0), -libc::EIO);
        assert_eq!(queue.read(0, PAGE), [2; PAGE]);
    }
}

#[test]
fn a_change_that_comes_before_any_read_finds_that_the_file_was_cut() {
    for direct in [true, false] {
        for engine in ["io_uring", "sync"] {
            for start in [0, 1] {
                first_changes_after_a_cut(direct, engine, start);
            }
        }
    }
}

/// The write's memory begins at `start`, which bounces it if it is odd and the I/O direct.
fn first_changes_after_a_cut(direct: bool, engine: &str, start: usize) {
    let case = format!("direct {direct}, {engine}, memory at {start}");
    let memory = Memory::new(3 * PAGE);
    let segments = [memory.segment(start, PAGE)];
    let write = |offset| crate::testing::transfer(POLLUX_BLOCK_WRITE, offset, &segments);
    let change = |operation| crate::testing::request(operation, MIB - 4096, 4096, 0);
    let firsts = [
        write(MIB - 4096),
        write(MIB / 2),
        change(POLLUX_BLOCK_WRITE_ZEROES),
        change(POLLUX_BLOCK_DISCARD),
        BlockRequest { flags: POLLUX_BLOCK_FUA, ..write(MIB / 2) },
    ];
    for first in firsts {
        let fixture = Fixture::new(MIB);
        let instance = fixture.open_with(direct, engine);
        let (mut queue, mut other) = (instance.queue(8), instance.open_queue(1, 8).expect("a queue"));
        other.start().expect("started");
        fill(&mut queue);
        resize(&fixture.path, MIB / 2);
        assert_eq!(queue.run(first), -libc::EIO, "{case}: {first:?}");
        assert_eq!(
            fixture.path.metadata().expect("metadata").len(),
            MIB / 2,
            "{case}: {first:?} has made the file longer"
        );
        for queue in [&mut queue, &mut other] {
            assert_eq!(queue.run(write(0)), 0, "{case}: what is there can be written");
            assert_eq!(read_result(queue, MIB / 2, PAGE, 0), -libc::EIO, "{case}");
            assert_eq!(queue.run(write(MIB / 2)), -libc::EIO, "{case}");
        }
        // It is cut again: what lies between must not become a hole either.
        resize(&fixture.path, MIB / 4);
        assert_eq!(queue.run(write(MIB / 2 - 4096)), -libc::EIO, "{case}: cut twice");
        assert_eq!(fixture.path.metadata().expect("metadata").len(), MIB / 4, "{case}: cut twice");
        let log = instance.log();
        assert_eq!(log.matches("but the guest was told").count(), 1, "{case}: {log}");
        assert!(log.contains(&format!("ends at byte {}, but the guest was told of {MIB} bytes", MIB / 2)), "{log}");
    }
}

#[test]
fn writes_that_wait_for_bounce_memory_do_not_make_a_file_that_was_cut_longer() {
    const COUNT: usize = 64;
    let fixture = Fixture::new(MIB);
    let instance = fixture.open_with(true, "io_uring");
    let mut queue = instance.queue(COUNT as u32);
    fill(&mut queue);
    let memory = Memory::holding(&vec![1; MIB as usize + 1]);
    // Four rounds for the chunks that there are.
    let segments: Vec<_> = (0..COUNT).map(|nth| [memory.segment(nth * 4 * PAGE + 1, 4 * PAGE)]).collect();
    let requests: Vec<_> = (0..COUNT)
        .map(|nth| BlockRequest {
            token: nth as u64,
            ..crate::testing::transfer(POLLUX_BLOCK_WRITE, (nth * 4 * PAGE) as u64, &segments[nth])
        })
        .collect();
    assert_eq!(queue.submit(&requests), COUNT);
    let length = MIB / 2;
    resize(&fixture.path, length);
    let first_beyond = COUNT / 2;
    let ended = queue.wait(COUNT);
    for end in &ended {
        if end.token < first_beyond as u64 {
            assert_eq!(end.result, 0, "{} lies below the end", end.token);
        }
    }
    // The first round was on its way when the file was cut, and lies below its end.
    assert!(ended.iter().filter(|end| end.result == -libc::EIO).count() == COUNT - first_beyond, "{ended:?}");
    assert_eq!(fixture.path.metadata().expect("metadata").len(), length, "nothing has made the file longer");
}

#[test]
fn what_is_measured_again_is_what_counts() {
    for (fixture, direct, engine) in ways() {
        let instance = fixture.open_with(direct, engine);
        let (mut queue, mut other) = (instance.queue(8), instance.open_queue(1, 8).expect("a queue"));
        other.start().expect("started");
        fill(&mut queue);
        resize(&fixture.path, MIB / 2);
        assert_eq!(read_result(&mut queue, MIB - 4096, PAGE, 0), -libc::EIO);
        assert_eq!(read_result(&mut other, MIB - 4096, PAGE, 0), -libc::EIO);
        assert_eq!(instance.info().capacity, MIB / 2);
        // A request from before: the guest has not yet been told.
        assert_eq!(read_result(&mut queue, MIB - 4096, PAGE, 0), -libc::EIO);
        // Longer, and the guest told of it: new blocks are zero. Longer still, and not told: nothing is asked of it.
        resize(&fixture.path, 2 * MIB);
        assert_eq!(instance.info().capacity, 2 * MIB);
        resize(&fixture.path, 3 * MIB);
        for queue in [&mut queue, &mut other] {
            assert!(is_zero(&queue.read(MIB, MIB as usize - PAGE)));
            assert_eq!(queue.write(2 * MIB - 4096, &[3; PAGE]), 0);
        }
        assert_eq!(instance.log().matches("but the guest was told").count(), 1, "{}", instance.log());
        // The next time is another episode.
        resize(&fixture.path, MIB);
        assert_eq!(read_result(&mut other, MIB, PAGE, 0), -libc::EIO);
        assert_eq!(instance.log().matches("but the guest was told").count(), 2, "{}", instance.log());
    }
}

#[test]
fn a_block_device_that_has_shrunk_fails_what_is_missing() {
    for (direct, engine) in [(true, "io_uring"), (false, "io_uring"), (true, "sync"), (false, "sync")] {
        let Some(device) = LoopDevice::new(MIB, 512) else { return };
        let instance = Instance::<Uring>::open(&with_engine(&device.path, direct, engine)).expect("it opens");
        let mut queue = instance.queue(8);
        fill(&mut queue);
        resize(device.backing(), MIB / 2);
        if system("losetup", &["--set-capacity", device.path.to_str().expect("UTF-8")]).is_none() {
            println!("SKIPPED: this losetup cannot make a device smaller");
            return;
        }
        for start in [0, 1] {
            assert_eq!(read_result(&mut queue, 3 * MIB / 4, PAGE, start), -libc::EIO, "direct {direct}, {engine}");
            assert_eq!(read_result(&mut queue, MIB / 2 - 4096, 2 * PAGE, start), -libc::EIO);
        }
        assert!(queue.read(0, MIB as usize / 2).iter().all(|&byte| byte == 0xa5));
        assert_eq!(instance.log().matches("but the guest was told").count(), 1, "{}", instance.log());
        assert_eq!(instance.info().capacity, MIB / 2);
    }
}

/// The host's workers hear of a new capacity a little later than it is told of.
#[test]
fn a_write_beyond_an_end_that_was_just_told_of_does_not_make_the_file_longer() {
    for engine in ["io_uring", "sync"] {
        let fixture = Fixture::filled(8 << 20);
        let instance = Instance::<Uring>::open(&with_engine(&fixture.path, false, engine)).expect("it opens");
        let mut queue = instance.queue(8);
        let cut = |length| {
            File::options().write(true).open(&fixture.path).expect("it opens").set_len(length).expect("resized")
        };
        cut(4 << 20);
        for _ in 0..2 {
            assert_eq!(instance.info().capacity, 4 << 20);
            assert_eq!(queue.write(6 << 20, &[1; 4096]), -libc::EIO, "{engine}");
            assert_eq!(queue.write(0, &[1; 4096]), 0);
        }
        assert_eq!(fixture.path.metadata().expect("metadata").len(), 4 << 20);
        cut(8 << 20);
        assert_eq!(instance.info().capacity, 8 << 20);
        assert_eq!(queue.write(6 << 20, &[1; 4096]), 0);
    }
}
