//! A front end that holds up a worker and goes at once, the last one of the process.
//!
//! Alone in its file: any other front end would have the watchdog look, and free the worker.
use pollux_core::{
    device::blk::Blk,
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::wait_for,
    disk::{self, Behaviour},
    front_end::serve,
    raw_front_end::{RawGuest, block},
    rig::options,
};
use std::{sync::mpsc::channel, thread, time::Duration};

/// Its ring is drained when nobody hears it any more: the worker signals its event for the last time then.
#[test]
fn a_server_stops_whose_last_front_end_held_up_a_worker_and_has_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("last.sock");
    let worker = Worker::spawn("last", None, IdlePolicy::Spin).expect("a worker");
    let stats = StatsSegment::anonymous(1).expect("statistics");
    let backend = disk::open("last-front-end", 1 << 20, Behaviour::Inline).expect("a disk");
    let mut server = serve(Blk::new(options("last", 1, &[worker.handle()]), backend, &stats), &path);
    let (raw, mut guest) = RawGuest::started(&path, 0);
    block(&guest.call);
    guest.read_first_sector();
    // It is in the used ring before the worker signals it.
    wait_for("a request", || guest.driver.pop());
    drop(raw);
    let (done, is_done) = channel();
    let stopping = thread::spawn(move || {
        server.stop();
        done.send(()).expect("somebody waits");
    });
    let end = is_done.recv_timeout(Duration::from_secs(20));
    // Frees the worker, if nobody else has, so that a failure ends too.
    let _ = guest.call.read();
    end.expect("the server stops");
    stopping.join().expect("no panic");
}
