//! Requests with many segments have a room in common: more of them than fit wait in the ring, and each of them ends.
use pollux_core::memory::GuestMemory;
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{BlkDriver, Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour, ReleasedAtEnd},
    rig::Rig,
};

const SIZE: u16 = 16384;
const REQUESTS: usize = 800;
/// Most long chains that a queue has in flight.
const ROOMS: u64 = 320;
/// Of one request, in 16 segments.
const BYTES: usize = 8192;

fn sixteen_writes() -> Cut {
    Cut { readable: [vec![16], vec![512; 16]].concat(), writable: vec![1], indirect: false }
}

#[test]
fn more_long_chains_than_there_is_room_for_wait_in_the_ring_and_all_end() {
    for kind in RingKind::BOTH {
        for is_short_between in [false, true] {
            all_end(kind, is_short_between);
        }
    }
}

fn all_end(kind: RingKind, is_short_between: bool) {
    let name = format!("long-{kind:?}-{is_short_between}");
    let backend = disk::open(&name, (REQUESTS * BYTES) as u64, Behaviour::Metered).expect("disk");
    let memory = GuestMemory::create(&[(0, BlkDriver::bytes(SIZE, REQUESTS))], None).expect("guest memory");
    let driver = BlkDriver::new(kind, &memory, 0, SIZE, REQUESTS, true);
    let mut rig = Rig::with_driver(kind, backend, driver, true);
    let control = ReleasedAtEnd(disk::control(&name));
    for request in 0..REQUESTS {
        let data = pattern(request as u64, BYTES);
        let is_short = is_short_between && request % 2 == 1;
        let cut = if is_short { Cut::plain(BYTES as u32, 0) } else { sixteen_writes() };
        let sector = (request * BYTES / 512) as u64;
        rig.driver.submit(OUT, sector, &data, &cut).expect("room for a request");
    }
    while rig.queue.poll() > 0 {}
    let in_flight = rig.stats.snapshot().queues[0].in_flight.get();
    if is_short_between {
        assert!((ROOMS..=2 * ROOMS + 64).contains(&in_flight), "{name}: {in_flight} in flight");
    } else {
        assert_eq!(in_flight, ROOMS, "{name}");
        assert!(
            !rig.queue.arm(),
            "{name}: what the ring has left is no reason to stay awake: the backend wakes the queue"
        );
        rig.queue.disarm();
    }
    control.complete(10);
    let mut ended = 0;
    wait_for("the first ten", || {
        rig.queue.poll();
        while let Some(finished) = rig.driver.pop() {
            assert_eq!(finished.status, OK, "{name}");
            ended += 1;
        }
        (ended >= 10).then_some(())
    });
    control.release();
    while ended < REQUESTS {
        assert_eq!(rig.finish().status, OK, "{name}");
        ended += 1;
    }
    for request in [0, ROOMS as usize, REQUESTS - 1] {
        let read = rig.request(IN, (request * BYTES / 512) as u64, &[], &Cut::plain(0, BYTES as u32));
        assert!(read.status == OK && read.data == pattern(request as u64, BYTES), "{name}: request {request}");
    }
}
