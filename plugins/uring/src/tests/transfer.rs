//! Data that goes through the backend comes back as it was.
use super::*;
use crate::testing::{Memory, Random, check_against_model, check_segment_splits, request, transfer};
use pollux_abi::block_v1::*;

const MIB: u64 = 1 << 20;

#[test]
fn every_segment_split_is_written_and_read_back() {
    for (direct, engine) in [(true, "io_uring"), (false, "io_uring"), (true, "sync"), (false, "sync")] {
        let fixture = Fixture::new(4 * MIB);
        let instance = fixture.open_with(direct, engine);
        let block = instance.info().logical_block_size as usize;
        check_segment_splits(&mut instance.queue(4), block);
        let bounced = instance.statistics()["bounced"].as_u64().expect("a number");
        assert_eq!(bounced > 0, direct, "only direct I/O needs a bounce buffer: {bounced}");
    }
}

#[test]
fn random_requests_at_depth_128_agree_with_a_model() {
    for (name, fixture, direct, engine) in [
        ("direct", Fixture::new(8 * MIB), true, "io_uring"),
        ("cached", Fixture::new(8 * MIB), false, "io_uring"),
        ("tmpfs", Fixture::on_tmpfs(8 * MIB), false, "io_uring"),
        ("direct, sync", Fixture::new(8 * MIB), true, "sync"),
        ("cached, sync", Fixture::new(8 * MIB), false, "sync"),
        ("tmpfs, sync", Fixture::on_tmpfs(8 * MIB), false, "auto"),
    ] {
        println!("{name}");
        let instance = fixture.open_with(direct, engine);
        let info = instance.info();
        let blocks = info.capacity / u64::from(info.logical_block_size);
        check_against_model(&mut instance.queue(128), &info, 0, blocks, 128, 11);
    }
}

#[test]
fn each_way_to_set_up_the_ring_agrees_with_the_model() {
    fn check<const SET_UP: usize>(direct: bool) {
        let fixture = Fixture::new(8 * MIB);
        let instance = Instance::<Older<SET_UP>>::open(&fixture.options(direct)).expect("it opens");
        let info = instance.info();
        let blocks = info.capacity / u64::from(info.logical_block_size);
        check_against_model(&mut instance.queue(32), &info, 0, blocks, 32, 5);
    }
    check::<0>(true);
    check::<1>(true);
    check::<1>(false);
    check::<2>(true);
    check::<2>(false);
}

#[test]
fn more_bounced_requests_than_chunks_wait_their_turn() {
    let fixture = Fixture::new(64 * MIB);
    let instance = fixture.open(true);
    let mut queue = instance.queue(128);
    let length = MIB as usize / 2;
    let mut random = Random(3);
    let memories: Vec<Memory> = (0..100).map(|_| Memory::holding(&random.bytes(length + 3))).collect();
    let segments: Vec<_> = memories.iter().map(|memory| [memory.segment(3, length)]).collect();
    for operation in [POLLUX_BLOCK_WRITE, POLLUX_BLOCK_READ] {
        let requests: Vec<_> = (0..100)
            .map(|nth| BlockRequest { token: nth, ..transfer(operation, nth * length as u64, &segments[nth as usize]) })
            .collect();
        assert_eq!(queue.submit(&requests), 100);
        let mut tokens: Vec<u64> = queue
            .wait(100)
            .iter()
            .map(|completion| {
                assert_eq!(completion.result, 0);
                completion.token
            })
            .collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..100), "each completes once");
    }
    for (nth, memory) in memories.iter().enumerate() {
        assert!(queue.read((nth * length) as u64, length) == memory.bytes()[3..3 + length], "request {nth}");
    }
}

#[test]
fn a_queue_takes_no_more_than_its_depth() {
    let fixture = Fixture::new(MIB);
    let options = format!(r#"{{"path": {:?}, "queue_depth": 5}}"#, fixture.path);
    let instance = Instance::<Uring>::open(&options).expect("it opens");
    let mut queue = instance.queue(64);
    let requests: Vec<_> = (0..8).map(|token| BlockRequest { token, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) }).collect();
    assert_eq!(queue.submit(&requests), 5);
    queue.wait(5);
    assert_eq!(queue.submit(&requests[5..]), 3);
    queue.wait(3);
}

#[test]
fn writes_with_force_unit_access_are_written() {
    for (direct, engine) in [(true, "io_uring"), (false, "io_uring"), (true, "sync"), (false, "sync")] {
        let fixture = Fixture::new(MIB);
        let instance = fixture.open_with(direct, engine);
        let mut queue = instance.queue(8);
        let memory = Memory::holding(&[7; 8193]);
        for start in [0, 1] {
            let segments = [memory.segment(start, 8192)];
            let write = BlockRequest { flags: POLLUX_BLOCK_FUA, ..transfer(POLLUX_BLOCK_WRITE, 4096, &segments) };
            checked(&mut queue, write);
            assert!(queue.read(4096, 8192).iter().all(|&byte| byte == 7));
        }
        for flags in [POLLUX_BLOCK_FUA, POLLUX_BLOCK_FUA | POLLUX_BLOCK_UNMAP] {
            checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 4096, 4096, flags));
        }
        assert!(is_zero(&queue.read(4096, 4096)));
    }
}

#[test]
fn discard_gives_the_space_back_and_zeroes_read_as_zeroes() {
    for (fixture, direct, engine) in [
        (Fixture::new(4 * MIB), true, "io_uring"),
        (Fixture::new(4 * MIB), false, "io_uring"),
        (Fixture::new(4 * MIB), true, "sync"),
        (Fixture::on_tmpfs(4 * MIB), false, "io_uring"),
        (Fixture::on_tmpfs(4 * MIB), false, "auto"),
    ] {
        let instance = fixture.open_with(direct, engine);
        assert!(instance.info().offers(POLLUX_BLOCK_DISCARD) && instance.info().offers(POLLUX_BLOCK_WRITE_ZEROES));
        let mut queue = instance.queue(8);
        let filled = |queue: &mut Queue| {
            assert_eq!(queue.write(0, &vec![0xee; 4 * MIB as usize]), 0);
            checked(queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
            allocated(&fixture.path)
        };
        let full = filled(&mut queue);
        assert!(full >= 4 * MIB);
        checked(&mut queue, request(POLLUX_BLOCK_DISCARD, MIB, MIB, 0));
        assert!(allocated(&fixture.path) <= full - MIB, "discard gives space back");
        assert!(is_zero(&queue.read(MIB, MIB as usize)));
        assert!(queue.read(2 * MIB, 4096).iter().all(|&byte| byte == 0xee));

        let full = filled(&mut queue);
        checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 512, 2 * MIB + 512, 0));
        assert_eq!(allocated(&fixture.path), full, "zeroes that may not unmap keep their blocks");
        assert!(is_zero(&queue.read(512, 2 * MIB as usize + 512)));
        assert_eq!(queue.read(0, 512), [0xee; 512]);
        assert_eq!(queue.read(2 * MIB + 1024, 512), [0xee; 512]);

        let full = filled(&mut queue);
        checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, MIB, MIB, POLLUX_BLOCK_UNMAP));
        assert!(allocated(&fixture.path) <= full - MIB, "zeroes that may unmap give space back");
        assert!(is_zero(&queue.read(MIB, MIB as usize)));
    }
}

#[test]
fn zeroes_are_written_where_the_file_system_has_no_shortcut() {
    for engine in ["io_uring", "sync"] {
        let fixture = Fixture::on_tmpfs(4 * MIB);
        let instance = fixture.open_with(false, engine);
        let mut queue = instance.queue(8);
        assert_eq!(queue.write(0, &vec![1; 4 * MIB as usize]), 0);
        checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 0, 3 * MIB + 512, POLLUX_BLOCK_FUA));
        assert!(is_zero(&queue.read(0, 3 * MIB as usize + 512)));
        assert_eq!(queue.read(3 * MIB + 512, 512), [1; 512]);
        assert_eq!(instance.statistics()["zeroes_written"], 1, "tmpfs has no FALLOC_FL_ZERO_RANGE");
    }
}

#[test]
fn a_read_only_medium_is_read_and_not_written() {
    let fixture = Fixture::new(MIB);
    std::fs::write(&fixture.path, vec![9; MIB as usize]).expect("written");
    let instance = Instance::<Uring>::open_with(&fixture.options(true), POLLUX_BLOCK_OPEN_READ_ONLY).expect("it opens");
    let info = instance.info();
    assert!(info.is_read_only() && !info.offers(POLLUX_BLOCK_WRITE) && !info.offers(POLLUX_BLOCK_DISCARD));
    let mut queue = instance.queue(8);
    assert_eq!(queue.write(0, &[1; 4096]), -libc::EROFS);
    for operation in [POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_WRITE_ZEROES] {
        assert_eq!(queue.run(request(operation, 0, 4096, 0)), -libc::EROFS);
    }
    assert_eq!(queue.run(request(POLLUX_BLOCK_FLUSH, 0, 0, 0)), 0);
    assert_eq!(queue.read(0, 4096), [9; 4096]);
}

#[test]
fn an_operation_of_the_future_is_not_supported() {
    let fixture = Fixture::new(MIB);
    let instance = fixture.open(true);
    assert_eq!(instance.queue(8).run(request(77, 0, 4096, 0)), -libc::ENOTSUP);
}
