//! Pages that the device writes are logged for a migration, also when the memory table changes under its requests.
use pollux_core::{
    device::blk::Blk,
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, IN, OK, wait_for},
    disk::{self, Behaviour, control},
    front_end::{self, FrontEnd},
    rig::options,
};
use std::{
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, vhost_user::message::VhostUserVirtioFeatures};

pollux_testing::on_both_rings!(all_pages_are_logged_of_requests_that_end_in_memory_that_was_replaced);

/// Bytes of the log: a bit for each page of 2 GiB.
const LOG_BYTES: u64 = 1 << 16;

fn all_pages_are_logged_of_requests_that_end_in_memory_that_was_replaced(kind: RingKind) {
    let name = format!("dirty-{kind:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let worker = Worker::spawn("io0", None, IdlePolicy::Adaptive).expect("a worker");
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let backend = disk::open(&name, 1 << 20, Behaviour::Held).expect("a disk");
    let model = Blk::new(options(&name, 1, &[worker.handle()]), backend, &stats);
    let _server = front_end::serve(model, &path);
    let mut front = FrontEnd::with_rings(kind, &path, 1);
    front.start();
    // SAFETY: the name is a C string; the descriptor is new.
    let log = unsafe { File::from_raw_fd(libc::memfd_create(c"log".as_ptr(), 0)) };
    log.set_len(LOG_BYTES).expect("a length");
    let region = VhostUserDirtyLogRegion { mmap_size: LOG_BYTES, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    front.wire.set_log_base(0, Some(region)).expect("SET_LOG_BASE");
    front.wire.set_features(front.features() | VhostUserVirtioFeatures::LOG_ALL.bits()).expect("SET_FEATURES");
    let areas: Vec<u64> = (0..2)
        .map(|sector| {
            let area = front.drivers[0].area_address();
            front.submit(0, IN, sector, &[], &Cut::plain(0, 4096));
            area
        })
        .collect();
    let queue = stats.blk_queues().next().expect("a queue");
    wait_for("requests in the backend", || (queue.in_flight.get() == 2).then_some(()));
    // A region of another size is another mapping.
    let mut regions = front.regions();
    regions[0].memory_size += 4096;
    front.wire.set_mem_table(&regions).expect("SET_MEM_TABLE");
    control(&name).release();
    for _ in 0..2 {
        assert_eq!(front.finish(0).status, OK);
    }
    let mut bytes = vec![0; LOG_BYTES as usize];
    log.read_exact_at(&mut bytes, 0).expect("the log");
    // Data and status, behind the header of 16 bytes.
    for page in areas.iter().flat_map(|area| area / 4096..=(area + 16 + 4096) / 4096) {
        assert!(bytes[page as usize / 8] & 1 << (page % 8) != 0, "page {page} of the areas at {areas:x?}");
    }
}
