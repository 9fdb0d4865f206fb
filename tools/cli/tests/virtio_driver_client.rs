//! A front end that is not ours: `virtio-driver`, the crate that libblkio is built on, with its own protocol, rings and
//! requests.
mod common;

use common::{
    disk::{BUFFERED, Disk, FILE, IMAGE_BYTES},
    serving::PATIENCE,
};
use pollux_core::memory::GuestMemory;
use std::{fs, io, os::fd::AsRawFd, sync::Arc, time::Instant};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

const QUEUE_SIZE: u16 = 128;
const BLOCK: usize = 4096;
/// Blocks of memory for data, of each queue.
const BLOCKS: usize = 32;
/// The range that each queue works on.
const SPAN: u64 = (BLOCKS * BLOCK) as u64;

/// One queue, and where its data is.
struct Lane {
    queue: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    completion: Arc<EventFd>,
    data: *mut u8,
    /// Whether it waits at the descriptor, instead of polling.
    sleeps: bool,
}

impl Lane {
    /// The memory of a block.
    fn block(&mut self, index: usize) -> &mut [u8] {
        assert!(index < BLOCKS);
        // SAFETY: `Client::new` gives each lane so many blocks, and none of them is in flight when this is called.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(index * BLOCK), BLOCK) }
    }

    /// Kicks, and waits for so many requests. Returns what each came to, by its context.
    fn finish(&mut self, count: usize) -> Vec<i32> {
        // Always: without event indices the crate has no full fence before its look at whether a kick is wanted.
        self.notifier.notify().expect("a kick");
        let mut results = vec![None; count];
        let deadline = Instant::now() + PATIENCE;
        while results.iter().any(Option::is_none) {
            assert!(Instant::now() < deadline, "requests come back");
            if self.sleeps && !self.queue.completions().has_next() {
                // The server must signal. It makes the descriptor one that does not block, on both sides.
                assert!(is_signalled(&self.completion), "a signal");
                self.completion.read().expect("a signal");
            }
            for completion in self.queue.completions() {
                let before = results[completion.context].replace(completion.ret);
                assert_eq!(before, None, "request {} came back twice", completion.context);
            }
        }
        results.into_iter().flatten().collect()
    }
}

fn is_signalled(event: &EventFd) -> bool {
    let mut wait = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which is open.
    unsafe { libc::poll(&raw mut wait, 1, PATIENCE.as_millis() as i32) == 1 }
}

/// A connection with its queues.
struct Client {
    lanes: Vec<Lane>,
    // For their destructors, in this order.
    _transport: Box<VirtioBlkTransport>,
    _memory: GuestMemory,
}

impl Client {
    fn new(disk: &Disk, sleeps: bool, more: VirtioFeatureFlags) -> io::Result<Self> {
        let wanted = VirtioFeatureFlags::VERSION_1 | more;
        let blk = VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::MQ
            | VirtioBlkFeatureFlags::DISCARD
            | VirtioBlkFeatureFlags::WRITE_ZEROES;
        let socket = disk.socket();
        let path = socket.to_str().expect("a path of text");
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, wanted.bits() | blk.bits())?);
        assert_eq!(transport.get_features() & wanted.bits(), wanted.bits(), "the features of the rings");
        let config = transport.get_config()?;
        assert_eq!(u64::from(config.capacity) * 512, IMAGE_BYTES);
        assert_eq!(u16::from(config.num_queues), disk.queues);
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, disk.queues.into(), QUEUE_SIZE)?;
        // While the queues run.
        let memory = GuestMemory::create(&[(0, SPAN * u64::from(disk.queues))], None).expect("memory");
        let region = memory.regions()[0];
        transport.map_mem_region(region.base as usize, region.length, region.file, region.file_offset as i64)?;
        let lanes = queues.into_iter().enumerate().map(|(index, mut queue)| {
            queue.set_used_notif_enabled(sleeps);
            Lane {
                queue,
                notifier: transport.get_submission_notifier(index),
                completion: transport.get_completion_fd(index),
                data: region.base.wrapping_add(index * SPAN as usize),
                sleeps,
            }
        });
        Ok(Client { lanes: lanes.collect(), _transport: transport, _memory: memory })
    }
}

fn pattern(queue: usize, block: usize, round: u8) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed((queue << 16 | block << 8 | usize::from(round)) as u64);
    (0..BLOCK).map(|_| random.u8(..)).collect()
}

/// Writes, flushes, reads, zeroes and discards on one queue, in its own part of the disk.
fn work(lane: &mut Lane, queue: usize, round: u8) {
    let at = |block: usize| queue as u64 * SPAN + (block * BLOCK) as u64;
    for block in 0..BLOCKS {
        lane.block(block).copy_from_slice(&pattern(queue, block, round));
        let data = lane.block(block).as_ptr();
        // SAFETY: the block stays until `finish` has seen the request come back.
        unsafe { lane.queue.write_raw(at(block), data, BLOCK, block) }.expect("room");
    }
    assert_eq!(lane.finish(BLOCKS), [0; BLOCKS], "writes");
    lane.queue.flush(0).expect("room");
    assert_eq!(lane.finish(1), [0], "a flush");
    lane.queue.write_zeroes(at(3), 2 * BLOCK as u64, false, 0).expect("room");
    lane.queue.write_zeroes(at(9), BLOCK as u64, true, 1).expect("room");
    lane.queue.discard(at(20), 4 * BLOCK as u64, 2).expect("room");
    lane.queue.write_zeroes(IMAGE_BYTES, BLOCK as u64, false, 3).expect("room");
    assert_eq!(lane.finish(4), [0, 0, 0, -libc::EIO], "zeroes, a discard, and zeroes beyond the end");
    for block in 0..BLOCKS {
        lane.block(block).fill(0xee);
        let data = lane.block(block).as_mut_ptr();
        // SAFETY: as above.
        unsafe { lane.queue.read_raw(at(block), data, BLOCK, block) }.expect("room");
    }
    assert_eq!(lane.finish(BLOCKS), [0; BLOCKS], "reads");
    for block in (0..BLOCKS).filter(|block| !(20..24).contains(block)) {
        let zeroed = [3, 4, 9].contains(&block);
        let expected = if zeroed { vec![0; BLOCK] } else { pattern(queue, block, round) };
        assert!(lane.block(block) == expected, "queue {queue}, block {block}, round {round}");
    }
}

/// Everything, on all queues in turn, and what is in the image afterwards.
fn serve_to_it(plugin: &str, options: &str, queues: u16, sleeps: bool, more: VirtioFeatureFlags) {
    let disk = Disk::new(plugin, options, queues);
    let server = disk.serve();
    // One client after the other.
    for round in 0..3 {
        let mut client = Client::new(&disk, sleeps, more).expect("a connection");
        for _ in 0..20 {
            client.lanes.iter_mut().enumerate().for_each(|(queue, lane)| work(lane, queue, round));
        }
        drop(client);
    }
    let requests = 3 * 20 * u64::from(queues) * (2 * BLOCKS as u64 + 5);
    assert_eq!(disk.stop(server), requests, "as many as there were");
    let image = fs::read(disk.folder.path().join("disk.img")).expect("the image");
    for queue in 0..usize::from(queues) {
        let start = queue * SPAN as usize;
        assert!(image[start..][..BLOCK] == pattern(queue, 0, 2), "queue {queue}: the last round is in the image");
        assert_eq!(image[start + 3 * BLOCK..][..BLOCK], [0; BLOCK], "queue {queue}: zeroes are in the image");
    }
}

#[test]
fn one_queue_that_polls() {
    serve_to_it("uring", BUFFERED, 1, false, VirtioFeatureFlags::empty());
}

#[test]
fn one_queue_that_sleeps() {
    serve_to_it("uring", BUFFERED, 1, true, VirtioFeatureFlags::empty());
}

#[test]
fn four_queues_that_sleep_with_event_indices() {
    serve_to_it("uring", BUFFERED, 4, true, VirtioFeatureFlags::RING_EVENT_IDX);
}

#[test]
fn four_queues_of_memory_that_poll() {
    serve_to_it("mem", &format!("{FILE}, sparse = true"), 4, false, VirtioFeatureFlags::RING_EVENT_IDX);
}
