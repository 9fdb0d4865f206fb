//! A front end has one ring start over, as the reset of a queue does (virtio 1.3, 2.6.1): it stops the ring, and starts
//! it from its beginning with another size, while the other queues go on. The feature RING_RESET itself is not offered
//! to front ends, which would pass it on without telling us of a reset.
use pollux_core::{
    device::blk::Blk,
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, OUT, pattern},
    disk::{self, Behaviour},
    front_end::{self, FrontEnd, QUEUE_SIZE},
    rig::options,
};
use vhost::VhostBackend;
use virtio_bindings::{virtio_config::VIRTIO_F_RING_RESET, virtio_ring::VIRTIO_RING_F_EVENT_IDX};

/// Requests of a driver in flight.
const DEPTH: usize = 8;

pollux_testing::on_both_rings!(a_ring_starts_over_with_another_size_while_another_one_goes_on);

fn a_ring_starts_over_with_another_size_while_another_one_goes_on(kind: RingKind) {
    let worker = Worker::spawn("queue-reset", None, IdlePolicy::Adaptive).expect("worker");
    let disk = disk::open(&format!("over-vhost-user-{kind:?}"), 1 << 20, Behaviour::Deferred).expect("disk");
    let stats = StatsSegment::anonymous(2).expect("statistics");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let _server = front_end::serve(Blk::new(options("blk0", 2, &[worker.handle()]), disk, &stats), &path);
    let mut front = FrontEnd::with_rings(kind, &path, 2);
    assert_eq!(front.features() & 1 << VIRTIO_F_RING_RESET, 0);
    front.start();
    for (round, size) in [16, QUEUE_SIZE, 4, 64].into_iter().cycle().take(12).enumerate() {
        let (sector, data) = (round as u64, pattern(round as u64, 512));
        assert_eq!(front.request(0, OUT, sector, &data, &Cut::plain(512, 0)).status, OK);
        (0..4).for_each(|sector| _ = front.submit(1, IN, sector, &[], &Cut::plain(0, 512)));
        // Requests in flight have completed when this has its answer.
        front.stop(0);
        let event_idx = front.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        front.drivers[0] = BlkDriver::new(kind, &front.memory, 0, size, DEPTH, event_idx);
        front.wire.set_vring_num(0, size).expect("SET_VRING_NUM");
        front.wire.set_vring_addr(0, &front.addresses(0, false)).expect("SET_VRING_ADDR");
        front.set_base(0, front.drivers[0].ring.base(false));
        front.send_kick(0);
        (0..4).for_each(|_| assert_eq!(front.finish(1).status, OK));
        let back = front.request(0, IN, sector, &[], &Cut { indirect: true, ..Cut::plain(0, 512) });
        assert!(back.data == data, "round {round}, {size} entries");
    }
}
