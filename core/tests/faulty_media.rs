//! What a guest sees of media that fail, delay, hang, refuse, shrink and come back: each request ends once, with the
//! medium's own result, and neither a neighbour nor the other sectors notice.
use pollux_core::{
    plugin::BlockBackend,
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, FLUSH, IN, IOERR, OK, OUT, UNTOUCHED, pattern, wait_for},
    disk::{self, Behaviour},
    media,
    rig::Guest,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const SECTOR: usize = 512;

pollux_testing::on_both_rings!(
    errors_come_for_the_requests_that_the_script_names_and_for_no_others,
    a_bad_sector_fails_whatever_touches_it_and_spares_the_rest,
    a_write_that_fails_in_its_middle_has_changed_what_came_before,
    what_is_delayed_completes_after_what_came_later,
    a_medium_that_hangs_holds_its_own_device_alone_and_goes_on_when_it_comes_back,
    a_medium_that_refuses_gets_every_request_later,
    a_medium_that_went_away_is_good_again_after_it_came_back,
);

/// A medium of 64 KiB, a guest of its own for it, and the worker that serves both.
struct Bench {
    guest: Guest,
    worker: Worker,
    folder: tempfile::TempDir,
}

impl Bench {
    /// `script` is JSON; `FOLDER` in it is a folder of this test.
    fn new(kind: RingKind, script: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().display().to_string();
        let json = format!(r#"{{"size": "64K", "script": [{}]}}"#, script.replace("FOLDER", &place));
        let backend = media::open("disk0", &json).expect("a medium");
        // It sleeps as soon as it can, so that each wake-up counts.
        let worker = Worker::spawn("media", None, IdlePolicy::Interrupt).expect("worker");
        let mut guest = Guest::with_rings(kind, "disk0", backend, 1, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
        Bench { guest, worker, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.guest.request(0, OUT, sector, data, &Cut::plain(data.len() as u32, 0)).status
    }

    fn read(&mut self, sector: u64, bytes: usize) -> (u8, Vec<u8>) {
        let end = self.guest.request(0, IN, sector, &[], &Cut::plain(0, bytes as u32));
        (end.status, end.data)
    }

    /// Submits a read of one sector. Returns its head.
    fn submit_read(&mut self, sector: u64) -> u16 {
        self.guest.submit(0, IN, sector, &[], &Cut::plain(0, SECTOR as u32))
    }
}

impl Drop for Bench {
    /// A test that fails does not wait for a medium that hangs.
    fn drop(&mut self) {
        ["back", "room"].iter().for_each(|name| touch(&self.file(name)));
    }
}

fn touch(file: &Path) {
    fs::write(file, "").expect("a file of the script");
}

fn errors_come_for_the_requests_that_the_script_names_and_for_no_others(kind: RingKind) {
    let script = r#"
        {"operation": "write", "after": 2, "count": 3, "error": "ENOSPC"},
        {"operation": "flush", "count": 1, "error": "EIO"}
    "#;
    let mut bench = Bench::new(kind, script);
    let statuses: Vec<u8> = (0..7).map(|sector| bench.write(sector, &pattern(sector, SECTOR))).collect();
    assert_eq!(statuses, [OK, OK, IOERR, IOERR, IOERR, OK, OK]);
    for sector in 0..7 {
        let expected = if (2..5).contains(&sector) { vec![0; SECTOR] } else { pattern(sector, SECTOR) };
        assert!(bench.read(sector, SECTOR) == (OK, expected), "sector {sector}");
    }
    let mut flush = || bench.guest.request(0, FLUSH, 0, &[], &Cut::plain(0, 0)).status;
    assert_eq!([flush(), flush()], [IOERR, OK]);
}

fn a_bad_sector_fails_whatever_touches_it_and_spares_the_rest(kind: RingKind) {
    let mut bench = Bench::new(kind, r#"{"from": 4096, "to": 4608, "error": "ENODATA"}"#);
    for (sector, count, expected) in [(0, 8, OK), (8, 1, IOERR), (9, 8, OK), (0, 128, IOERR), (7, 2, IOERR)] {
        assert_eq!(bench.read(sector, count * SECTOR).0, expected, "{count} sectors at {sector}");
        assert_eq!(bench.write(sector, &pattern(sector, count * SECTOR)), expected, "{count} sectors at {sector}");
    }
    assert_eq!(bench.guest.request(0, FLUSH, 0, &[], &Cut::plain(0, 0)).status, OK, "a flush touches no sector");
}

fn a_write_that_fails_in_its_middle_has_changed_what_came_before(kind: RingKind) {
    let mut bench =
        Bench::new(kind, r#"{"operation": "write", "after": 1, "count": 1, "error": "EIO", "partial": 1024}"#);
    assert_eq!(bench.write(0, &pattern(1, 4 * SECTOR)), OK);
    assert_eq!(bench.write(0, &pattern(2, 4 * SECTOR)), IOERR);
    let (status, data) = bench.read(0, 4 * SECTOR);
    assert_eq!(status, OK);
    assert!(data[..1024] == pattern(2, 4 * SECTOR)[..1024], "what was written before it failed");
    assert!(data[1024..] == pattern(1, 4 * SECTOR)[1024..], "what was not");
}

fn what_is_delayed_completes_after_what_came_later(kind: RingKind) {
    const DELAY: Duration = Duration::from_millis(100);
    let mut bench = Bench::new(kind, r#"{"operation": "read", "to": 512, "delay_ms": 100}"#);
    let start = Instant::now();
    let delayed = bench.submit_read(0);
    let later = bench.submit_read(1);
    assert_eq!([bench.guest.finish(0).head, bench.guest.finish(0).head], [later, delayed]);
    assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
}

fn a_medium_that_hangs_holds_its_own_device_alone_and_goes_on_when_it_comes_back(kind: RingKind) {
    let mut bench = Bench::new(kind, r#"{"hang": true, "until": "FOLDER/back"}"#);
    let neighbour = disk::open(&format!("beside-{kind:?}"), 1 << 16, Behaviour::Inline).expect("disk");
    let mut neighbour = Guest::with_rings(kind, "beside", neighbour, 1, &[bench.worker.handle()]);
    assert_eq!(neighbour.start() & STATUS_NEEDS_RESET, 0);
    let heads: Vec<u16> = (0..8).map(|sector| bench.submit_read(sector)).collect();
    for sector in 0..50 {
        let end = neighbour.request(0, OUT, sector, &pattern(sector, SECTOR), &Cut::plain(SECTOR as u32, 0));
        assert_eq!(end.status, OK, "the neighbour, sector {sector}");
    }
    assert!(heads.iter().all(|&head| bench.guest.drivers[0].peek_status(head) == UNTOUCHED), "they hang");
    touch(&bench.file("back"));
    assert!((0..8).all(|_| bench.guest.finish(0).status == OK));
    assert_eq!(bench.read(3, SECTOR).0, OK);
}

fn a_medium_that_refuses_gets_every_request_later(kind: RingKind) {
    let script = r#"
        {"operation": "read", "hang": true, "until": "FOLDER/back"},
        {"operation": "write", "refuse": true, "until": "FOLDER/room"}
    "#;
    let mut bench = Bench::new(kind, script);
    bench.submit_read(100);
    let write = |bench: &mut Bench, sector| {
        bench.guest.submit(0, OUT, sector, &pattern(sector, SECTOR), &Cut::plain(SECTOR as u32, 0))
    };
    let mut heads: Vec<u16> = (0..8).map(|sector| write(&mut bench, sector)).collect();
    touch(&bench.file("room"));
    // With the read still in flight.
    let mut ends: Vec<u16> = (0..8).map(|_| bench.guest.finish(0).head).collect();
    ends.sort_unstable();
    heads.sort_unstable();
    assert_eq!(ends, heads);
    touch(&bench.file("back"));
    assert_eq!(bench.guest.finish(0).status, OK);
    assert!((0..8).all(|sector| bench.read(sector, SECTOR) == (OK, pattern(sector, SECTOR))));
}

fn a_medium_that_went_away_is_good_again_after_it_came_back(kind: RingKind) {
    let mut bench = Bench::new(kind, r#"{"error": "ENODEV", "since": "FOLDER/gone", "until": "FOLDER/back"}"#);
    assert_eq!(bench.write(5, &pattern(5, SECTOR)), OK);
    touch(&bench.file("gone"));
    assert_eq!([bench.write(5, &[0; SECTOR]), bench.read(5, SECTOR).0], [IOERR; 2]);
    touch(&bench.file("back"));
    assert!(bench.read(5, SECTOR) == (OK, pattern(5, SECTOR)));
}

fn with_file(folder: &Path, bytes: u64) -> (PathBuf, std::sync::Arc<BlockBackend>) {
    let file = folder.join("disk.img");
    let json = format!(r#"{{"path": {file:?}, "size": {bytes}}}"#);
    let backend = media::open("disk0", &json).expect("a medium");
    (file, backend)
}

#[test]
fn a_medium_that_shrinks_fails_what_lies_beyond_its_end_and_keeps_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, backend) = with_file(folder.path(), 1 << 16);
    let worker = Worker::spawn("shrinks", None, IdlePolicy::Adaptive).expect("worker");
    let mut guest = Guest::new("disk0", backend.clone(), 1, &[worker.handle()]);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let mut request = |kind, sector, data: &[u8], into| {
        guest.request(0, kind, sector, data, &Cut::plain(data.len() as u32, into)).status
    };
    assert_eq!(request(OUT, 0, &pattern(0, 1 << 16), 0), OK);
    let image = fs::OpenOptions::new().write(true).open(&file).expect("the image");
    image.set_len(1 << 15).expect("it is cut");
    assert_eq!(backend.describe().expect("a description").capacity, 1 << 15);
    assert_eq!(request(IN, 0, &[], 1 << 15), OK);
    assert_eq!(request(IN, 63, &[], 1024), IOERR, "over the end");
    assert_eq!(request(OUT, 64, &[1; SECTOR], 0), IOERR, "beyond the end");
    assert_eq!(fs::metadata(&file).expect("the image").len(), 1 << 15, "and it stays as it is");
    image.set_len(1 << 16).expect("it grows");
    assert_eq!(request(OUT, 64, &[1; SECTOR], 0), OK);
}

#[test]
fn a_script_that_cannot_be_says_why() {
    let refusal = |json: &str| media::open("disk0", json).expect_err("a refusal").to_string();
    let message = refusal(r#"{"size": 4096, "script": [{"error": "EWRONG"}]}"#);
    assert!(message.starts_with("disk0: options.script: `EWRONG` is no error of a medium"), "{message}");
    let message = refusal(r#"{"size": 4096, "script": [{"fail": true}]}"#);
    assert!(message.contains("options.script[0]") && message.contains("unknown field `fail`"), "{message}");
}

#[test]
fn a_guest_that_goes_while_its_medium_hangs_is_gone_when_the_medium_is_back() {
    let mut bench = Bench::new(RingKind::Split, r#"{"hang": true, "until": "FOLDER/back"}"#);
    bench.submit_read(0);
    let (back, device) = (bench.file("back"), &mut bench.guest.device);
    std::thread::scope(|scope| {
        let reset = scope.spawn(move || device.set_status(0));
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        assert!(!reset.is_finished(), "the reset waits, since the request cannot be cancelled");
        touch(&back);
        wait_for("the reset", || reset.is_finished().then_some(()));
    });
    assert_eq!(bench.guest.device.status(), 0);
}
