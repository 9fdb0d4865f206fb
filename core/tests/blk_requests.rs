//! Every request type of a block device does what virtio 1.3, 5.2.6 says, however the driver cuts it into buffers.
use pollux_core::{device::DeviceModel, stats::BlkStats};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{self, Cut, GET_ID, IN, IOERR, OK, OUT, UNSUPP, pattern, range},
    disk::{self, Behaviour},
    rig::Rig,
};

const DISK_BYTES: u64 = 4 << 20;

pollux_testing::on_both_rings!(
    what_was_written_is_read_back,
    every_cut_of_header_data_and_status_gives_the_same_result,
    empty_buffers_in_a_chain_are_passed_over,
    the_longest_chain_that_was_offered_works_and_a_longer_one_fails_the_device,
    requests_beyond_the_end_or_off_the_block_fail_and_move_no_data,
    a_disk_with_large_blocks_takes_whole_blocks_alone,
    flush_reaches_the_backend,
    get_id_answers_the_serial_cut_to_twenty_bytes,
    discard_and_write_zeroes_clear_a_range,
    bad_ranges_are_refused,
    unknown_types_and_wrong_directions_are_refused,
    a_read_only_disk_refuses_every_change,
    the_backends_error_becomes_the_status,
    what_the_device_refuses_is_counted_apart_from_what_its_medium_fails,
    a_backend_that_fails_as_a_whole_has_moved_nothing,
    a_backend_that_takes_few_requests_at_a_time_gets_them_all,
    statistics_count_what_the_guest_did,
    what_is_too_much_for_the_backend_at_once_is_done_in_portions,
    a_portion_that_fails_fails_its_request_and_is_the_last,
    portions_of_many_requests_wait_for_a_backend_that_is_always_full,
    a_medium_opened_read_only_is_read_only_whatever_its_plugin_says,
    a_backend_that_takes_nothing_at_first_is_asked_again,
);

fn rig(kind: RingKind, name: &str) -> Rig {
    Rig::new(kind, disk::open(&format!("{name}-{kind:?}"), DISK_BYTES, Behaviour::Inline).expect("disk"), 256, true)
}

fn what_was_written_is_read_back(kind: RingKind) {
    let mut rig = rig(kind, "write-read");
    let data = pattern(1, 8192);
    let written = rig.request(OUT, 16, &data, &Cut::plain(8192, 0));
    assert_eq!((written.status, written.written), (OK, 1), "a write returns its status byte alone");
    let read = rig.request(IN, 16, &[], &Cut::plain(0, 8192));
    assert_eq!((read.status, read.written), (OK, 8193), "a read returns the data and its status byte");
    assert!(read.data == data);
    let before = rig.request(IN, 15, &[], &Cut::plain(0, 512));
    assert!(before.data.iter().all(|&byte| byte == 0), "the neighbouring sector is untouched");
}

/// All ways to cut `total` bytes into up to three buffers at the places that matter.
fn cuts(total: u32) -> Vec<Vec<u32>> {
    let places: Vec<u32> =
        [1, 7, 15, 16, 17, 500, 511, 512, 513, total - 1].into_iter().filter(|&at| at < total).collect();
    let mut all = vec![vec![total]];
    for &first in &places {
        all.push(vec![first, total - first]);
        all.extend(
            places.iter().filter(|&&second| second > first).map(|&second| vec![first, second - first, total - second]),
        );
    }
    all
}

fn every_cut_of_header_data_and_status_gives_the_same_result(kind: RingKind) {
    let mut rig = rig(kind, "cuts");
    for indirect in [false, true] {
        for (seed, readable) in cuts(16 + 1024).into_iter().enumerate() {
            let data = pattern(seed as u64, 1024);
            let cut = Cut { readable: readable.clone(), writable: vec![1], indirect };
            assert_eq!(rig.request(OUT, 8, &data, &cut).status, OK, "write cut {readable:?}");
            for writable in cuts(1024 + 1) {
                let cut = Cut { readable: vec![16], writable: writable.clone(), indirect };
                let read = rig.request(IN, 8, &[], &cut);
                assert_eq!(read.status, OK, "read cut {writable:?}");
                assert!(read.data == data, "read cut {writable:?} of write cut {readable:?}");
            }
        }
        for readable in cuts(16) {
            let cut = Cut { readable: readable.clone(), writable: vec![512, 1], indirect };
            assert_eq!(rig.request(IN, 0, &[], &cut).status, OK, "header cut {readable:?}");
        }
    }
}

fn empty_buffers_in_a_chain_are_passed_over(kind: RingKind) {
    let mut rig = rig(kind, "empty-buffers");
    let data = pattern(3, 512);
    let cut = Cut { readable: vec![16, 0, 256, 0, 256, 0], writable: vec![0, 1], indirect: false };
    assert_eq!(rig.request(OUT, 4, &data, &cut).status, OK);
    let cut = Cut { readable: vec![0, 16], writable: vec![512, 0, 1], indirect: true };
    let read = rig.request(IN, 4, &[], &cut);
    assert!(read.status == OK && read.data == data);
}

fn the_longest_chain_that_was_offered_works_and_a_longer_one_fails_the_device(kind: RingKind) {
    let mut rig = rig(kind, "longest");
    let mut config = [0; 4];
    rig.device.read_config(12, &mut config);
    let seg_max = u32::from_le_bytes(config) as usize;
    assert_eq!(seg_max, 254, "header and status are not data segments, and the queue has 256 entries");
    let data = pattern(4, seg_max * 512);
    let cut = Cut { readable: [vec![16], vec![512; seg_max]].concat(), writable: vec![1], indirect: true };
    assert_eq!(rig.request(OUT, 0, &data, &cut).status, OK);
    let cut = Cut { readable: vec![16], writable: [vec![512; seg_max], vec![1]].concat(), indirect: false };
    let read = rig.request(IN, 0, &[], &cut);
    assert!(read.status == OK && read.data == data);
    let cut = Cut { readable: vec![16], writable: [vec![512; 600], vec![1]].concat(), indirect: true };
    rig.driver.submit(IN, 0, &[], &cut).expect("room");
    rig.wait_for_failure();
}

fn requests_beyond_the_end_or_off_the_block_fail_and_move_no_data(kind: RingKind) {
    let mut rig = rig(kind, "past-end");
    let sectors = DISK_BYTES / 512;
    let cases = [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (0, 100),
        (0, 513),
    ];
    for (sector, length) in cases {
        let read = rig.request(IN, sector, &[], &Cut::plain(0, length));
        assert_eq!(read.status, IOERR, "read of {length} at sector {sector}");
        assert!(read.data.iter().all(|&byte| byte == blk::UNTOUCHED));
        let write = rig.request(OUT, sector, &pattern(5, length as usize), &Cut::plain(length, 0));
        assert_eq!(write.status, IOERR, "write of {length} at sector {sector}");
    }
    assert_eq!(rig.request(IN, sectors - 1, &[], &Cut::plain(0, 512)).status, OK, "the last sector");
    assert!(!rig.interrupts.has_failed(), "the backend has seen none of them");
}

fn a_disk_with_large_blocks_takes_whole_blocks_alone(kind: RingKind) {
    let disk = disk::open_with("large-blocks", r#"{"size": 65536, "block_size": 4096}"#, false).expect("disk");
    let mut rig = Rig::new(kind, disk, 256, true);
    let mut size = [0; 4];
    rig.device.read_config(20, &mut size);
    assert_eq!(u32::from_le_bytes(size), 4096);
    assert_eq!(rig.request(IN, 8, &[], &Cut::plain(0, 4096)).status, OK);
    assert_eq!(rig.request(IN, 1, &[], &Cut::plain(0, 4096)).status, IOERR);
    assert_eq!(rig.request(IN, 8, &[], &Cut::plain(0, 512)).status, IOERR);
}

fn flush_reaches_the_backend(kind: RingKind) {
    let mut rig = rig(kind, "flush");
    let flush = rig.request(blk::FLUSH, 0, &[], &Cut::plain(0, 0));
    assert_eq!((flush.status, flush.written), (OK, 1));
    assert_eq!(disk::control(&format!("flush-{kind:?}")).flushes.load(std::sync::atomic::Ordering::Relaxed), 1);
}

fn get_id_answers_the_serial_cut_to_twenty_bytes(kind: RingKind) {
    let mut rig = rig(kind, "id");
    let id = rig.request(GET_ID, 0, &[], &Cut::plain(0, 20));
    assert_eq!(id.status, OK);
    assert_eq!(id.data, b"serial-of-this-disk-");
    let cut = Cut { readable: vec![16], writable: vec![3, 10, 7, 1], indirect: false };
    assert_eq!(rig.request(GET_ID, 0, &[], &cut).data, b"serial-of-this-disk-");
    assert_eq!(rig.request(GET_ID, 0, &[], &Cut::plain(0, 5)).data, b"seria", "as much as there is room for");
    assert_eq!(rig.request(GET_ID, 0, &[], &Cut::plain(0, 0)).status, IOERR, "no room at all");
}

fn discard_and_write_zeroes_clear_a_range(kind: RingKind) {
    for operation in [blk::DISCARD, blk::WRITE_ZEROES] {
        let mut rig = rig(kind, "zeroes");
        let data = pattern(6, 4096);
        rig.request(OUT, 0, &data, &Cut::plain(4096, 0));
        let done = rig.request(operation, 0, &range(2, 4, 0), &Cut::plain(16, 0));
        assert_eq!((done.status, done.written), (OK, 1));
        let mut expected = data.clone();
        expected[1024..3072].fill(0);
        assert!(rig.request(IN, 0, &[], &Cut::plain(0, 4096)).data == expected);
        let scattered = Cut { readable: vec![10, 9, 13], writable: vec![1], indirect: false };
        assert_eq!(rig.request(operation, 0, &range(0, 8, 0), &scattered).status, OK, "header and range in pieces");
        assert!(rig.request(IN, 0, &[], &Cut::plain(0, 4096)).data.iter().all(|&byte| byte == 0));
    }
}

fn bad_ranges_are_refused(kind: RingKind) {
    let mut rig = rig(kind, "bad-ranges");
    let sectors = DISK_BYTES / 512;
    let one = Cut::plain(16, 0);
    let both = [blk::DISCARD, blk::WRITE_ZEROES];
    for operation in both {
        assert_eq!(rig.request(operation, 0, &range(sectors, 1, 0), &one).status, IOERR, "beyond the end");
        assert_eq!(rig.request(operation, 0, &range(u64::MAX, u32::MAX, 0), &one).status, IOERR, "far beyond the end");
        assert_eq!(rig.request(operation, 0, &range(0, 1, 2), &one).status, UNSUPP, "a reserved flag");
        let two = [range(0, 1, 0), range(4, 1, 0)].concat();
        assert_eq!(rig.request(operation, 0, &two, &Cut::plain(32, 0)).status, IOERR, "more ranges than offered");
        assert_eq!(rig.request(operation, 0, &range(0, 1, 0)[..8], &Cut::plain(8, 0)).status, IOERR, "half a range");
        assert_eq!(rig.request(operation, 0, &range(0, 0, 0), &one).status, OK, "nothing to do");
    }
    // A discard with the unmap flag must be refused as unsupported (virtio 1.3, 5.2.6.2).
    assert_eq!(rig.request(blk::DISCARD, 0, &range(0, 1, 1), &one).status, UNSUPP);
    assert_eq!(rig.request(blk::WRITE_ZEROES, 0, &range(0, 1, 1), &one).status, OK);
    assert!(!rig.interrupts.has_failed(), "the backend has seen none of those that were refused");
}

fn unknown_types_and_wrong_directions_are_refused(kind: RingKind) {
    let mut rig = rig(kind, "unknown");
    for operation in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(rig.request(operation, 0, &[], &Cut::plain(0, 512)).status, UNSUPP, "type {operation}");
    }
    let both_ways = Cut { readable: vec![16, 512], writable: vec![512, 1], indirect: false };
    assert_eq!(rig.request(IN, 0, &[0; 512], &both_ways).status, IOERR, "a read with data to write");
    assert_eq!(rig.request(OUT, 0, &[0; 512], &both_ways).status, IOERR, "a write with data to read");
    assert_eq!(rig.request(OUT, 0, &[], &Cut::plain(0, 512)).status, IOERR, "a write without data to write");
}

fn a_read_only_disk_refuses_every_change(kind: RingKind) {
    let disk = disk::open_with("read-only", r#"{"size": 65536}"#, true).expect("disk");
    let mut rig = Rig::new(kind, disk, 256, true);
    assert_eq!(rig.device.features() & 1 << 5, 1 << 5, "VIRTIO_BLK_F_RO");
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    assert_eq!(rig.request(OUT, 0, &[0; 512], &Cut::plain(512, 0)).status, IOERR);
    for operation in [blk::DISCARD, blk::WRITE_ZEROES] {
        assert_eq!(rig.request(operation, 0, &range(0, 1, 0), &Cut::plain(16, 0)).status, IOERR);
    }
}

fn the_backends_error_becomes_the_status(kind: RingKind) {
    let disk = disk::open("failing", 65536, Behaviour::Failing).expect("disk");
    let mut rig = Rig::new(kind, disk, 256, true);
    assert_eq!(rig.request(OUT, 0, &[0; 512], &Cut::plain(512, 0)).status, IOERR);
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 512)).status, IOERR);
    assert!(!rig.interrupts.has_failed(), "a failed request is no failed device");
    let stats = rig.stats.blk_queues().next().expect("stats");
    assert_eq!((stats.errors.get(), stats.requests.get()), (2, 2));
    assert_eq!((stats.block.bytes_read.get(), stats.block.bytes_written.get()), (0, 0), "nothing was moved");
    assert_eq!(stats.block.errors_by_number().collect::<Vec<_>>(), [(libc::ENOSPC as u16, 2)]);
}

fn what_the_device_refuses_is_counted_apart_from_what_its_medium_fails(kind: RingKind) {
    let mut rig = rig(kind, "refused");
    let end = DISK_BYTES / 512;
    assert_eq!(rig.request(OUT, end, &[0; 512], &Cut::plain(512, 0)).status, IOERR);
    assert_eq!(rig.request(77, 0, &[], &Cut::plain(0, 0)).status, UNSUPP);
    assert_eq!(rig.request(GET_ID, 0, &[], &Cut::plain(0, 0)).status, IOERR);
    let stats = rig.stats.blk_queues().next().expect("stats");
    assert_eq!((stats.errors.get(), stats.block.bytes_written.get()), (3, 0));
    assert_eq!(stats.block.errors_by_number().collect::<Vec<_>>(), [(BlkStats::REFUSED, 3)]);
}

fn a_backend_that_fails_as_a_whole_has_moved_nothing(kind: RingKind) {
    let disk = disk::open("moved-nothing", 65536, Behaviour::PanicPoll).expect("disk");
    let mut rig = Rig::new(kind, disk, 256, true);
    rig.driver.submit(OUT, 0, &[0; 512], &Cut::plain(512, 0)).expect("room");
    rig.wait_for_failure();
    let stats = rig.stats.blk_queues().next().expect("stats");
    assert_eq!((stats.block.writes.get(), stats.errors.get(), stats.block.bytes_written.get()), (1, 1, 0));
}

fn a_backend_that_takes_few_requests_at_a_time_gets_them_all(kind: RingKind) {
    for behaviour in [Behaviour::Slow, Behaviour::Deferred, Behaviour::Reversed, Behaviour::Threaded] {
        let disk = disk::open("slow", DISK_BYTES, behaviour).expect("disk");
        let mut rig = Rig::new(kind, disk, 256, true);
        for index in 0..60 {
            let data = pattern(index, 512);
            rig.driver.submit(OUT, index, &data, &Cut::plain(512, 0)).expect("room");
        }
        for _ in 0..60 {
            assert_eq!(rig.finish().status, OK, "{behaviour:?}");
        }
        for index in 0..60 {
            assert!(rig.request(IN, index, &[], &Cut::plain(0, 512)).data == pattern(index, 512), "{behaviour:?}");
        }
    }
}

fn statistics_count_what_the_guest_did(kind: RingKind) {
    let mut rig = rig(kind, "statistics");
    for index in 0..10 {
        rig.request(OUT, index, &[1; 512], &Cut::plain(512, 0));
    }
    rig.request(IN, 0, &[], &Cut::plain(0, 4096));
    rig.request(blk::FLUSH, 0, &[], &Cut::plain(0, 0));
    rig.request(GET_ID, 0, &[], &Cut::plain(0, 20));
    let stats = rig.stats.blk_queues().next().expect("stats");
    let counts = (
        stats.block.writes.get(),
        stats.block.reads.get(),
        stats.block.flushes.get(),
        stats.block.others(&stats.common),
        stats.requests.get(),
    );
    assert_eq!(counts, (10, 1, 1, 1, 13));
    assert_eq!((stats.block.bytes_written.get(), stats.block.bytes_read.get()), (5120, 4096));
    assert_eq!(stats.batches.get(), 13);
    assert_eq!(stats.block.latency.count(), 13, "each batch was sampled");
    assert!(stats.block.latency.quantile(0.5).is_some_and(|median| median > 0));
}

/// The model disk checks that it gets no more than it takes.
fn what_is_too_much_for_the_backend_at_once_is_done_in_portions(kind: RingKind) {
    let limits = [
        (r#""maximum_segments": 2"#, 512),
        (r#""maximum_transfer": 8192"#, 512),
        (r#""maximum_transfer": 12288, "maximum_segments": 3, "block_size": 4096"#, 4096),
    ];
    let mut seed = 0;
    for behaviour in ["inline", "deferred", "reversed", "slow", "threaded"] {
        for (limit, block) in limits {
            let json = format!(r#"{{"size": {DISK_BYTES}, "behaviour": "{behaviour}", {limit}}}"#);
            let mut rig = Rig::new(kind, disk::open_with("portions", &json, false).expect("disk"), 256, true);
            // In one piece; in pieces that are cut in the middle of a portion; in many small ones.
            for pieces in [vec![65536], vec![block + 256, 30000, 2 * block - 256, 35536 - 3 * block], vec![256; 240]] {
                let length: u32 = pieces.iter().sum();
                assert!(length.is_multiple_of(block));
                seed += 1;
                let data = pattern(seed, length as usize);
                let cut = Cut { readable: [vec![16], pieces.clone()].concat(), writable: vec![1], indirect: true };
                let write = rig.request(OUT, 8, &data, &cut);
                // Three small segments are less than a block.
                let is_possible = pieces.len() < 100 || block == 512;
                assert_eq!(write.status == OK, is_possible, "{behaviour}, {limit}, {pieces:?}");
                if is_possible {
                    let cut = Cut { readable: vec![16], writable: [pieces, vec![1]].concat(), indirect: true };
                    let read = rig.request(IN, 8, &[], &cut);
                    assert!(read.status == OK && read.data == data, "{behaviour}, {limit}, in pieces");
                    assert_eq!(read.written, length + 1);
                    let whole = rig.request(IN, 8, &[], &Cut::plain(0, length));
                    assert!(whole.status == OK && whole.data == data, "{behaviour}, {limit}, in one piece");
                }
            }
        }
    }
}

fn a_portion_that_fails_fails_its_request_and_is_the_last(kind: RingKind) {
    let json = format!(r#"{{"size": {DISK_BYTES}, "behaviour": "failing", "maximum_transfer": 4096}}"#);
    let mut rig = Rig::new(kind, disk::open_with("portions-failing", &json, false).expect("disk"), 256, true);
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 65536)).status, IOERR);
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 65536)).status, IOERR);
    let stats = rig.stats.blk_queues().next().expect("stats");
    assert_eq!((stats.block.reads.get(), stats.errors.get(), stats.in_flight.get()), (2, 2, 0));
}

/// 768 portions pass the list of those that wait, which the device checks the length of.
fn portions_of_many_requests_wait_for_a_backend_that_is_always_full(kind: RingKind) {
    const LENGTH: u32 = 1 << 17;
    let json = format!(r#"{{"size": {DISK_BYTES}, "behaviour": "slow", "maximum_transfer": 4096}}"#);
    let mut rig = Rig::new(kind, disk::open_with("portions-full", &json, false).expect("disk"), 256, true);
    let (data, count) = (pattern(77, LENGTH as usize), 24);
    for index in 0..count {
        let sector = index * u64::from(LENGTH) / 512;
        rig.driver.submit(OUT, sector, &data, &Cut::plain(LENGTH, 0)).expect("room");
    }
    (0..count).for_each(|_| assert_eq!(rig.finish().status, OK));
    for index in 0..count {
        let read = rig.request(IN, index * u64::from(LENGTH) / 512, &[], &Cut::plain(0, LENGTH));
        assert!(read.status == OK && read.data == data, "request {index}");
    }
}

#[test]
fn a_driver_is_told_of_segments_of_a_mebibyte_at_least() {
    for (limit, size_max, seg_max) in [("0", 4 << 20, 254), ("131072", 1 << 20, 32), ("2097152", 2 << 20, 254)] {
        let json = format!(r#"{{"size": {DISK_BYTES}, "maximum_transfer": {limit}}}"#);
        let rig = Rig::new(RingKind::Split, disk::open_with("told", &json, false).expect("disk"), 256, true);
        let mut config = [0; 8];
        rig.device.read_config(8, &mut config);
        let words = [size_max, seg_max].map(u32::to_le_bytes).concat();
        assert_eq!(config[..], words, "maximum_transfer = {limit}");
    }
}

#[test]
fn limits_that_no_driver_can_work_with_are_refused() {
    for (limit, expected) in [
        (r#""maximum_transfer": 512"#, "transfers of at most 512 bytes"),
        (r#""maximum_transfer": 4096, "block_size": 8192"#, "transfers of at most 4096 bytes"),
        (r#""maximum_discard": 100"#, "discards of at most 100 bytes"),
    ] {
        let error =
            disk::open_with("limits", &format!(r#"{{"size": 1048576, {limit}}}"#), false).expect_err("a refusal");
        assert!(error.to_string().ends_with(expected), "{error}");
    }
}

fn a_medium_opened_read_only_is_read_only_whatever_its_plugin_says(kind: RingKind) {
    let disk = disk::open_with("hidden", r#"{"size": 65536, "hides_read_only": true}"#, true).expect("disk");
    let mut rig = Rig::new(kind, disk, 256, true);
    assert_eq!(rig.device.features() & 1 << 5, 1 << 5, "VIRTIO_BLK_F_RO");
    assert_eq!(rig.request(OUT, 0, &[0; 512], &Cut::plain(512, 0)).status, IOERR);
}

fn a_backend_that_takes_nothing_at_first_is_asked_again(kind: RingKind) {
    let mut rig = Rig::new(kind, disk::open("hesitant", DISK_BYTES, Behaviour::Hesitant).expect("disk"), 256, true);
    assert_eq!(rig.request(IN, 0, &[], &Cut::plain(0, 512)).status, OK);
}
