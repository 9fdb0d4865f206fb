//! Two devices served over vhost-user by the same workers: one that is attacked, and its neighbour, which must not
//! notice.
use super::{
    blk::{Cut, IN, OK, OUT, pattern, wait_for},
    disk::{self, Behaviour},
    front_end::{self, FrontEnd},
    rig::options,
};
use pollux_core::{
    device::blk::Blk,
    stats::StatsSegment,
    transport::vhost_user::Server,
    worker::{IdlePolicy, Worker},
};
use std::{
    path::{Path, PathBuf},
    sync::mpsc::channel,
    thread,
    time::Duration,
};
use vhost::vhost_user::VhostUserFrontend;

/// Queues of each device: one on a worker that spins, one on a worker that sleeps.
pub const QUEUES: usize = 2;
/// How long a server may take to stop that has nothing in flight. Far more than it needs.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// The two devices.
#[expect(missing_debug_implementations, reason = "the crate's front end has none")]
pub struct Neighbours {
    /// Serves the device that is attacked.
    pub server: Option<Server>,
    /// Its socket.
    pub path: PathBuf,
    /// Its counters.
    pub stats: StatsSegment,
    honest: FrontEnd,
    seed: u64,
    // For their destructors, in this order.
    _neighbour: Server,
    _workers: Vec<Worker>,
}

impl Neighbours {
    /// Starts both in a folder, and an honest front end of the neighbour. `name` is that of the disk that is attacked.
    pub fn new(folder: &Path, name: &str, behaviour: Behaviour) -> Self {
        let worker = |name, policy| Worker::spawn(name, None, policy).expect("a worker");
        let workers = vec![worker("spin", IdlePolicy::Spin), worker("adaptive", IdlePolicy::Adaptive)];
        let handles: Vec<_> = workers.iter().map(Worker::handle).collect();
        let serve = |name: &str, behaviour| {
            let path = folder.join(format!("{name}.sock"));
            let stats = StatsSegment::anonymous(QUEUES).expect("statistics");
            let backend = disk::open(name, 1 << 20, behaviour).expect("a disk");
            let model = Blk::new(options(name, QUEUES, &handles), backend, &stats);
            (front_end::serve(model, &path), path, stats)
        };
        let (server, path, stats) = serve(name, behaviour);
        let (neighbour, its_path, _) = serve(&format!("{name}-neighbour"), Behaviour::Threaded);
        let mut honest = FrontEnd::new(&its_path, QUEUES);
        honest.start();
        let mut both =
            Neighbours { server: Some(server), path, stats, honest, seed: 0, _neighbour: neighbour, _workers: workers };
        both.neighbour_works();
        both
    }

    /// The neighbour's front end reads and writes on each worker.
    pub fn neighbour_works(&mut self) {
        self.seed += 1;
        (0..QUEUES).for_each(|queue| write_and_read(&mut self.honest, queue, self.seed));
    }

    /// The neighbour's front end reads and writes, and so does a new one of the device that was attacked, as soon as
    /// the attacker has given that up.
    pub fn all_work(&mut self) {
        self.neighbour_works();
        let mut front = FrontEnd::new(&self.path, QUEUES);
        front.send_memory();
        for queue in 0..QUEUES {
            front.set_up(queue, 0);
            wait_for("the device", || front.wire.set_vring_enable(queue, true).ok());
            write_and_read(&mut front, queue, self.seed);
        }
    }

    /// Stops the server of the device that was attacked, which must not take long; the neighbour works on.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("a server");
        let (done, is_done) = channel();
        let stopping = thread::spawn(move || {
            server.stop();
            done.send(()).expect("somebody waits");
        });
        is_done.recv_timeout(STOP_PATIENCE).expect("the server stops");
        stopping.join().expect("no panic");
        self.neighbour_works();
    }
}

/// Writes 4096 bytes and reads them back.
pub fn write_and_read(front: &mut FrontEnd, queue: usize, seed: u64) {
    let data = pattern(seed, 4096);
    let sector = 8 * (seed % 200);
    assert_eq!(front.request(queue, OUT, sector, &data, &Cut::plain(4096, 0)).status, OK);
    let read = front.request(queue, IN, sector, &[], &Cut::plain(0, 4096));
    assert_eq!((read.status, read.data == data), (OK, true), "what was written is read");
}
