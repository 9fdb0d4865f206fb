//! A disk that is served, a guest's driver for it, and a load that checks every byte.
use super::{
    Folder,
    serving::{PATIENCE, Serving},
};
use pollux_loadgen::{Ended, FrontEnd, FrontEndOptions, Load, LoadLimits, Workload, load::Progress};
use std::{
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Bytes of the image.
pub(crate) const IMAGE_BYTES: u64 = 4 << 20;
/// Requests in flight on each queue.
pub(crate) const DEPTH: u16 = 32;

/// Options of `uring` for `disk.img`.
pub(crate) const BUFFERED: &str = "path = \"disk.img\", direct = false";
/// The same, past the page cache.
pub(crate) const DIRECT: &str = "path = \"disk.img\", direct = true";
/// Options of `mem` for `disk.img`.
pub(crate) const FILE: &str = "path = \"disk.img\"";

/// `disk.img`, through a plugin, as device `blk0` on `blk0.sock`.
pub(crate) struct Disk {
    pub(crate) folder: Folder,
    pub(crate) queues: u16,
    /// Tests of one file have the machine to themselves, one after the other.
    _turn: MutexGuard<'static, ()>,
}

impl Disk {
    /// The queues are dealt out to two workers.
    pub(crate) fn new(plugin: &str, options: &str, queues: u16) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = Folder::new();
        folder.write("disk.img", vec![0; IMAGE_BYTES as usize]);
        folder.write("disks.toml", config(plugin, options, queues, "blk0.sock"));
        Disk { folder, queues, _turn: turn }
    }

    /// As [`new`](Self::new), and requests may be had back in their order.
    pub(crate) fn in_order(plugin: &str, options: &str, queues: u16) -> Self {
        let disk = Disk::new(plugin, options, queues);
        // The device's table is the last one.
        let text = config(plugin, options, queues, "blk0.sock") + "in_order = true\n";
        disk.folder.write("disks.toml", text);
        disk
    }

    /// Whether the file system of these tests takes direct I/O. If not, that is said.
    pub(crate) fn takes_direct(&self, test: &str) -> bool {
        let image = self.folder.path().join("disk.img");
        let takes = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(image).is_ok();
        if !takes {
            println!("SKIPPED: {test}: the file system of {} takes no O_DIRECT", self.folder.path().display());
        }
        takes
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("blk0.sock")
    }

    /// Starts the backend.
    pub(crate) fn serve(&self) -> Serving {
        Serving::start(&self.folder, self.folder.command(&["serve", "disks.toml", "--stats-json", "stats.json"]))
    }

    /// Stops the backend, and returns how many requests it has completed, as it says.
    pub(crate) fn stop(&self, server: Serving) -> u64 {
        let ran = server.stop();
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "the end of the backend");
        self.counted()
    }

    /// How many requests the backend that has just stopped completed, as it says.
    pub(crate) fn counted(&self) -> u64 {
        let text = std::fs::read(self.folder.path().join("stats.json")).expect("statistics");
        let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let queues = json["queues"].as_array().expect("queues");
        queues.iter().map(|queue| queue["requests"].as_u64().expect("a number")).sum()
    }
}

/// A configuration that serves `disk.img` on `socket`, by two workers if there are several queues.
pub(crate) fn config(plugin: &str, options: &str, queues: u16, socket: &str) -> String {
    let names = if queues == 1 { &["io0"][..] } else { &["io0", "io1"] };
    let tables: String = names.iter().map(|name| format!("[worker.{name}]\nidle = \"adaptive\"\n")).collect();
    format!(
        "{tables}[block.disk]\nplugin = \"{plugin}\"\noptions = {{ {options} }}\n\
         [device.blk0]\ntype = \"blk\"\nblock = \"disk\"\nworkers = {names:?}\nqueues = {queues}\n\
         transport = \"vhost-user\"\nsocket = \"{socket}\"\n"
    )
}

/// A guest: its driver, its memory, what it has written, and what came back.
pub(crate) struct Guest {
    pub(crate) front_end: FrontEnd,
    pub(crate) load: Load,
    /// Requests completed since the start.
    pub(crate) completed: u64,
}

impl Guest {
    pub(crate) fn new(disk: &Disk, options: FrontEndOptions) -> Self {
        let options = FrontEndOptions { queues: disk.queues, depth: DEPTH, patience: PATIENCE, ..options };
        let mut front_end = FrontEnd::connect(&disk.socket(), &options).expect("a backend");
        let workload = Workload { read_share: 30, flush_every: Some(16), ..Workload::default() };
        let load = Load::new(&workload, &mut front_end, true).expect("a load");
        Guest { front_end, load, completed: 0 }
    }

    /// Keeps `depth` requests in flight on each queue, until as many were completed or the backend is lost.
    pub(crate) fn run(&mut self, depth: u16, requests: Option<u64>, observe: &mut dyn FnMut(Progress)) -> Ended {
        let limits = LoadLimits { depth, requests, patience: PATIENCE, ..LoadLimits::default() };
        let outcome = self.load.run(&mut self.front_end, &limits, observe).expect("the rings are in order");
        let total = outcome.total();
        assert_eq!(total.errors, 0, "requests failed");
        assert_eq!(self.load.faults(), [], "data is not as it was written");
        self.completed += total.requests;
        outcome.ended
    }

    /// Heads that the record says are in flight.
    pub(crate) fn taken(&self) -> Vec<Vec<u16>> {
        self.front_end.taken().expect("the record of requests in flight")
    }

    /// Checks that everything that was submitted came back once, and that everything written is there.
    pub(crate) fn check_all(&mut self) {
        assert_eq!(self.run(DEPTH, Some(1000), &mut |_| {}), Ended::Complete);
        assert_eq!(self.front_end.in_flight(), 0, "requests are lost");
        assert!(self.taken().iter().all(Vec::is_empty), "the record says that something is in flight");
        let limits = LoadLimits { depth: DEPTH, patience: PATIENCE, ..LoadLimits::default() };
        let back = self.load.read_back(&mut self.front_end, &limits).expect("a run");
        assert_eq!((back.ended, back.total().errors), (Ended::Complete, 0));
        assert!(back.total().requests > IMAGE_BYTES / 4096 / 4, "blocks were written");
        assert_eq!(self.load.faults(), [], "data is not as it was written");
        self.completed += back.total().requests;
    }

    /// Checks that the used rings hold nothing more, once nobody writes to them any more.
    pub(crate) fn check_no_duplicate(&mut self) {
        for (index, queue) in self.front_end.queues_mut().iter_mut().enumerate() {
            assert_eq!(queue.pop(), Ok(None), "queue {index}: a request came back twice");
        }
    }
}
