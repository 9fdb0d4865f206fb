//! What is written comes back, what is damaged is found, and nothing is lost when a backend is killed.
mod common;

use common::{Place, limits, options};
use pollux_loadgen::{
    Ended, FrontEnd, FrontEndOptions, Indirect, Load, LoadLimits, Workload, verify::Finding, workload::Order,
};
use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const IMAGE_BYTES: u64 = 4 << 20;

fn mixed() -> Workload {
    Workload { read_share: 50, ..Workload::default() }
}

#[test]
fn data_comes_back_over_every_kind_of_ring() {
    let Some(place) = Place::new("data_comes_back_over_every_kind_of_ring") else { return };
    let image = place.image("disk.img", IMAGE_BYTES);
    let backend = place.file("s", &image, "writable=on");
    for (indirect, event_idx) in
        [(Indirect::Always, true), (Indirect::Always, false), (Indirect::Never, true), (Indirect::Never, false)]
    {
        for (batch, interrupts) in [(false, false), (true, false), (false, true)] {
            let case = format!("{indirect:?}, EVENT_IDX {event_idx}, batch {batch}, interrupts {interrupts}");
            let options = FrontEndOptions { indirect, event_idx, queues: 2, ..options() };
            let mut front_end = FrontEnd::connect(&backend.socket, &options).expect(&case);
            let facts = *front_end.facts();
            assert_eq!((facts.indirect, facts.event_idx), (indirect == Indirect::Always, event_idx), "{case}");
            let mut load = Load::new(&mixed(), &mut front_end, true).expect(&case);
            let limits = LoadLimits { batch, interrupts, ..limits(3000) };
            let outcome = load.run(&mut front_end, &limits, &mut |_| {}).expect(&case);
            let total = outcome.total();
            assert_eq!((total.requests, total.errors, outcome.ended), (3000, 0, Ended::Complete), "{case}");
            assert_eq!((total.reads + total.writes, total.latencies.count()), (3000, 3000), "{case}");
            assert_eq!(outcome.queues.iter().map(|queue| queue.requests).collect::<Vec<_>>(), [1500, 1500], "{case}");
            // With EVENT_IDX this backend signals the first completion of a queue whatever the driver says.
            let first = if event_idx { 2 } else { 0 };
            let counted = total.counters.interrupts;
            assert!(if interrupts { counted > 2 } else { counted <= first }, "{case}: {:?}", total.counters);
            let before = load.blocks_checked();
            let back = load.read_back(&mut front_end, &limits).expect(&case).total();
            assert!(back.requests > 500, "{case}: {} blocks were written", back.requests);
            assert_eq!(load.blocks_checked() - before, back.requests, "{case}");
            assert_eq!(load.faults(), [], "{case}");
        }
    }
}

#[test]
fn sequential_writes_with_flushes_reach_the_image() {
    let Some(place) = Place::new("sequential_writes_with_flushes_reach_the_image") else { return };
    let image = place.image("disk.img", IMAGE_BYTES);
    let backend = place.file("s", &image, "writable=on");
    let workload = Workload {
        order: Order::Sequential,
        read_share: 0,
        block_bytes: 65536,
        offset: 1 << 20,
        size: Some(2 << 20),
        flush_every: Some(8),
        ..Workload::default()
    };
    let mut front_end =
        FrontEnd::connect(&backend.socket, &FrontEndOptions { block_bytes: 65536, ..options() }).expect("a front end");
    let mut load = Load::new(&workload, &mut front_end, true).expect("a load");
    let total = load.run(&mut front_end, &limits(36), &mut |_| {}).expect("a run").total();
    assert_eq!((total.writes, total.flushes, total.errors), (32, 4, 0));
    // From the image itself: the range is full of records, and nothing outside was touched.
    let bytes = std::fs::read(&image).expect("the image");
    for (sector, record) in bytes.chunks_exact(512).enumerate() {
        let inside = (2048..6144).contains(&sector);
        let magic = pollux_loadgen::verify::MAGIC.to_le_bytes();
        assert_eq!(record[..8] == magic, inside, "sector {sector}");
        if inside {
            assert_eq!(record[8..16], (sector as u64).to_le_bytes(), "sector {sector}");
        }
    }
}

#[test]
fn a_change_behind_the_backs_of_all_is_found() {
    let Some(place) = Place::new("a_change_behind_the_backs_of_all_is_found") else { return };
    let image = place.image("disk.img", IMAGE_BYTES);
    let backend = place.file("s", &image, "writable=on");
    let mut front_end = FrontEnd::connect(&backend.socket, &options()).expect("a front end");
    let writes = Workload { read_share: 0, order: Order::Sequential, ..Workload::default() };
    let mut load = Load::new(&writes, &mut front_end, true).expect("a load");
    let all = IMAGE_BYTES / 4096;
    load.run(&mut front_end, &limits(all), &mut |_| {}).expect("a run");
    let file = OpenOptions::new().write(true).read(true).open(&image).expect("the image");
    file.write_all_at(&[0; 512], 77 * 512).expect("a lost sector");
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 100 * 512).expect("a sector");
    file.write_all_at(&sector, 200 * 512).expect("a write that went astray");
    load.read_back(&mut front_end, &limits(all)).expect("a run");
    let faults: Vec<_> = load.faults().iter().map(|fault| (fault.sector, fault.expected, fault.finding)).collect();
    assert_eq!(faults, [(77, 1, Finding::NoRecord), (200, 1, Finding::OtherSector { sector: 100 })]);
    assert_eq!(load.fault_count(), 2);
}

/// Kills the backend in the middle, several times; the front end comes back with its requests in flight.
#[test]
fn nothing_is_lost_when_the_backend_is_killed() {
    let Some(place) = Place::new("nothing_is_lost_when_the_backend_is_killed") else { return };
    let image = place.image("disk.img", IMAGE_BYTES);
    let mut backend = place.file("s", &image, "writable=on");
    let options = FrontEndOptions { queues: 2, ..options() };
    let mut front_end = FrontEnd::connect(&backend.socket, &options).expect("a front end");
    let mut load = Load::new(&mixed(), &mut front_end, true).expect("a load");
    let endless = LoadLimits { requests: None, ..limits(0) };
    let mut cut_off = 0;
    for round in 0..4 {
        let some = AtomicBool::new(false);
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                while !some.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
                backend.kill();
            });
            let mut observe = |progress: pollux_loadgen::load::Progress| {
                if progress.requests > 2000 {
                    some.store(true, Ordering::Relaxed);
                }
            };
            load.run(&mut front_end, &endless, &mut observe).expect("a run")
        });
        assert_eq!(outcome.ended, Ended::Lost, "round {round}");
        cut_off += front_end.in_flight();
        let before = front_end.in_flight();
        backend = place.file("s", &image, "writable=on");
        front_end.reconnect(&backend.socket).expect("the backend is back");
        assert_eq!(front_end.in_flight(), before, "round {round}: requests in flight stay so");
    }
    assert!(cut_off > 0, "requests were in flight");
    let outcome = load.run(&mut front_end, &limits(2000), &mut |_| {}).expect("a run");
    assert_eq!((outcome.ended, outcome.total().errors, front_end.in_flight()), (Ended::Complete, 0, 0));
    load.read_back(&mut front_end, &limits(0)).expect("a run");
    assert_eq!(load.faults(), []);
}
