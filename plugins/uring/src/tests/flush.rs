//! A flush that has failed stays failed.
use super::{
    device::{LoopDevice, Mount},
    *,
};
use crate::testing::{Memory, request, transfer};
use pollux_abi::block_v1::*;

const MIB: u64 = 1 << 20;

/// A disk whose space runs out when the kernel writes back what it took: a file with holes on a full file system.
fn disk_that_loses_data() -> Option<(LoopDevice, Mount)> {
    let mount = Mount::tmpfs("1m")?;
    let path = mount.path().join("disk.img");
    File::create(&path).expect("created").set_len(8 * MIB).expect("resized");
    let folder = tempfile::tempdir().expect("a folder");
    LoopDevice::over(Fixture { folder, path }, 512).map(|device| (device, mount))
}

fn durable(operation: u32, offset: u64, segments: &[Segment]) -> BlockRequest {
    BlockRequest { flags: POLLUX_BLOCK_FUA, ..transfer(operation, offset, segments) }
}

#[test]
fn after_a_flush_has_failed_no_queue_promises_anything_until_the_image_is_opened_again() {
    for engine in ["io_uring", "sync"] {
        let Some((device, _mount)) = disk_that_loses_data() else { return };
        let instance = Instance::<Uring>::open(&with_engine(&device.path, false, engine)).expect("it opens");
        let mut queue = instance.queue(8);
        let mut other = instance.open_queue(1, 8).expect("a queue");
        other.start().expect("started");
        let flush = request(POLLUX_BLOCK_FLUSH, 0, 0, 0);
        checked(&mut other, flush);
        assert_eq!(queue.write(0, &vec![7; 4 * MIB as usize]), 0, "the page cache has room");
        assert_eq!(queue.run(flush), -libc::EIO, "{engine}");
        // The kernel takes the pages for clean now.
        let memory = Memory::holding(&[9; 4096]);
        let segments = [memory.segment(0, 4096)];
        for queue in [&mut queue, &mut other] {
            assert_eq!(queue.run(flush), -libc::EIO, "{engine}");
            assert_eq!(queue.run(durable(POLLUX_BLOCK_WRITE, 0, &segments)), -libc::EIO, "{engine}");
            let zeroes = request(POLLUX_BLOCK_WRITE_ZEROES, 0, 4096, POLLUX_BLOCK_FUA);
            assert_eq!(queue.run(zeroes), -libc::EIO, "{engine}");
            assert_eq!(queue.write(4096, &[8; 4096]), 0, "it makes no promise");
            assert_eq!(queue.read(4096, 4096), [8; 4096]);
        }
        let log = instance.log();
        assert_eq!(log.matches("a flush failed").count(), 1, "{log}");
        drop((queue, other, instance));
        let instance = Instance::<Uring>::open(&with_engine(&device.path, false, engine)).expect("it opens");
        checked(&mut instance.queue(8), flush);
    }
}

/// The kernel reports a loss once to each open file. The queue that asks second hears of it all the same.
#[test]
fn a_loss_that_a_durable_write_hears_of_fails_the_flushes_of_all_queues() {
    let Some((device, _mount)) = disk_that_loses_data() else { return };
    let instance = Instance::<Uring>::open(&with_engine(&device.path, false, "io_uring")).expect("it opens");
    let mut queues = [0, 1].map(|index| {
        let mut queue = instance.open_queue(index, 8).expect("a queue");
        queue.start().expect("started");
        queue
    });
    assert_eq!(queues[0].write(0, &vec![7; 4 * MIB as usize]), 0);
    let memory = Memory::holding(&[9; 4096]);
    let segments = [memory.segment(0, 4096)];
    assert_eq!(queues[0].run(durable(POLLUX_BLOCK_WRITE, 0, &segments)), -libc::EIO);
    assert_eq!(queues[1].run(request(POLLUX_BLOCK_FLUSH, 0, 0, 0)), -libc::EIO);
}

#[test]
fn many_flushes_at_once_all_end_with_what_was_written_before_them_durable() {
    let fixture = Fixture::new(MIB);
    for direct in [true, false] {
        let instance = fixture.open_with(direct, "io_uring");
        let mut queue = instance.queue(32);
        let memory = Memory::holding(&[5; 4096]);
        let segments = [memory.segment(0, 4096)];
        let requests: Vec<_> = (0..32)
            .map(|token| match token % 4 {
                0 => BlockRequest { token, ..durable(POLLUX_BLOCK_WRITE, token * 4096, &segments) },
                1 => BlockRequest { token, ..request(POLLUX_BLOCK_WRITE_ZEROES, 0, 4096, POLLUX_BLOCK_FUA) },
                _ => BlockRequest { token, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) },
            })
            .collect();
        assert_eq!(queue.submit(&requests), requests.len());
        let mut done = queue.wait(requests.len());
        done.sort_by_key(|completion| completion.token);
        let found: Vec<_> = done.iter().map(|completion| (completion.token, completion.result)).collect();
        assert_eq!(found, (0..32).map(|token| (token, 0)).collect::<Vec<_>>());
    }
}
