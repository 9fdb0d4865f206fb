//! The end of a backend, or of its front end, at chosen moments: while it starts, with everything in flight, twice in a
//! row, in peace, for a long time.
mod common;

use common::{
    disk::{BUFFERED, DEPTH, Disk, Guest, IMAGE_BYTES, config},
    relay::relay,
    serving::{PATIENCE, Serving},
};
use pollux_loadgen::{Ended, Error, FrontEnd, FrontEndOptions, verify::MAGIC};
use pollux_testing::build;
use std::{
    fs,
    os::unix::net::UnixListener,
    process::Stdio,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Runs until `requests` were completed, then has `end` end the backend.
fn run_until(guest: &mut Guest, requests: u64, mut end: impl FnMut()) {
    let mut ended = false;
    let how = guest.run(DEPTH, None, &mut |progress| {
        if progress.requests >= requests && !ended {
            ended = true;
            end();
        }
    });
    assert_eq!(how, Ended::Lost);
}

/// A backend that dies at a request of one's choice.
struct Dying {
    disk: Disk,
    file: String,
}

impl Dying {
    fn new(queues: u16) -> Self {
        let disk = Disk::new("mem", "path = \"disk.img\"", queues);
        let source = include_str!("../../../core/tests/fixtures/disk.c");
        let table = "static const PolluxBlockV1 block =";
        for part in ["(1u << 20)", "calloc(1, SIZE)", "free(instance)", ".submit = disk_submit", table] {
            assert!(source.contains(part), "{part} in disk.c");
        }
        let source = source
            .replace("(1u << 20)", &format!("{IMAGE_BYTES}u"))
            .replace("calloc(1, SIZE)", "image()")
            .replace("free(instance)", "unmap(instance)")
            .replace(".submit = disk_submit", ".submit = dying_submit")
            .replace(
                "static int32_t disk_open",
                "static void *image(void);\nstatic void unmap(void *medium);\nstatic int32_t disk_open",
            )
            .replace(table, &format!("{}{table}", include_str!("fixtures/dying.c")));
        let file = build::c_plugin("dying", &source);
        let file = file.to_str().expect("a path of text").to_owned();
        disk.folder.write("disks.toml", config(&file, "", queues, "blk0.sock"));
        Dying { disk, file }
    }

    /// Starts it. It dies at that request, before which nothing completes if it is `holding`.
    fn serve(&self, die_at: u64, holding: bool) -> Serving {
        let mut command = self.disk.folder.command(&["serve", "disks.toml"]);
        command.env("DIE_AT", die_at.to_string());
        if holding {
            command.env("DIE_HOLDING", "1");
        }
        Serving::start(&self.disk.folder, command)
    }
}

/// SPDK loses the request at index 0 (spdk#3766). Here that one, and every other, is in flight for certain.
#[test]
fn what_was_taken_and_never_finished_is_done_by_the_next_one_head_0_included() {
    for queues in [1, 4] {
        let dying = Dying::new(queues);
        let all = u64::from(queues * DEPTH);
        let mut server = dying.serve(all, true);
        let mut guest = Guest::new(&dying.disk, FrontEndOptions::default());
        assert_eq!(guest.run(DEPTH, None, &mut |_| {}), Ended::Lost);
        let everything: Vec<Vec<u16>> = vec![(0..DEPTH).collect(); queues.into()];
        // Twice more before anything completes: the next ones take all of it again, and die of the last request.
        for _ in 0..2 {
            assert_eq!(guest.taken(), everything, "{queues} queues");
            assert_eq!((guest.front_end.in_flight(), guest.completed), (all, 0));
            server.kill();
            server = dying.serve(all, true);
            match guest.front_end.reconnect(&dying.disk.socket()) {
                Ok(()) => assert_eq!(guest.run(DEPTH, None, &mut |_| {}), Ended::Lost),
                // It had taken all before it was told of everything.
                Err(error) => assert!(matches!(error, Error::Closed { .. } | Error::Message { .. }), "{error}"),
            }
        }
        server.kill();
        server = dying.disk.serve();
        guest.front_end.reconnect(&dying.disk.socket()).expect("the backend is back");
        guest.check_all();
        assert_eq!(dying.disk.stop(server), guest.completed, "each request was done once: {}", dying.file);
        guest.check_no_duplicate();
    }
}

#[test]
fn any_request_of_a_batch_may_be_the_last() {
    let dying = Dying::new(1);
    let mut server = dying.disk.serve();
    let mut guest = Guest::new(&dying.disk, FrontEndOptions::default());
    run_until(&mut guest, 100, || server.kill());
    let mut replayed = 0;
    for die_at in 1..=40 {
        let holding = die_at % 2 == 0;
        // Holding, it takes no more than are in flight at a time.
        let mut server = dying.serve(if holding { die_at.min(DEPTH.into()) } else { die_at }, holding);
        match guest.front_end.reconnect(&dying.disk.socket()) {
            Ok(()) => assert_eq!(guest.run(DEPTH, None, &mut |_| {}), Ended::Lost),
            Err(error) => assert!(matches!(error, Error::Closed { .. } | Error::Message { .. }), "{error}"),
        }
        server.kill();
        replayed += guest.taken().iter().map(Vec::len).sum::<usize>();
    }
    println!("any_request_of_a_batch_may_be_the_last: 40 crashes, {} requests, {replayed} replayed", guest.completed);
    server = dying.disk.serve();
    guest.front_end.reconnect(&dying.disk.socket()).expect("the backend is back");
    guest.check_all();
    dying.disk.stop(server);
    guest.check_no_duplicate();
}

/// Kills the backend at each message of the negotiation in turn, those that start the queues included.
#[test]
fn any_message_of_a_start_may_be_the_last() {
    let disk = Disk::new("uring", BUFFERED, 2);
    let between = disk.folder.path().join("between.sock");
    let listener = UnixListener::bind(&between).expect("a socket");
    let mut server = Mutex::new(disk.serve());
    let mut guest = Guest::new(&disk, FrontEndOptions::default());
    let kill = |server: &Mutex<Serving>| server.lock().unwrap_or_else(PoisonError::into_inner).kill();
    let mut last = 0;
    loop {
        // Something is in flight at each.
        run_until(&mut guest, 50, || kill(&server));
        server = Mutex::new(disk.serve());
        let whole = thread::scope(|scope| {
            scope.spawn(|| {
                relay(&listener, &disk.socket(), |count| {
                    if count == last {
                        kill(&server);
                    }
                });
            });
            let result = guest.front_end.reconnect(&between);
            let whole = result.is_ok();
            kill(&server);
            whole
        });
        server = Mutex::new(disk.serve());
        guest.front_end.reconnect(&disk.socket()).expect("the backend is back");
        if whole {
            break;
        }
        last += 1;
    }
    println!("any_message_of_a_start_may_be_the_last: {last} messages, {} requests", guest.completed);
    assert!(last > 20, "a start takes more messages than {last}");
    guest.check_all();
    disk.stop(server.into_inner().expect("no thread panicked"));
    guest.check_no_duplicate();
}

#[test]
fn a_backend_that_is_told_to_end_finishes_what_it_has_taken() {
    let disk = Disk::new("uring", BUFFERED, 4);
    let mut server = disk.serve();
    let mut guest = Guest::new(&disk, FrontEndOptions::default());
    let mut counted = 0;
    for round in 0..8 {
        run_until(&mut guest, 300, || server.signal(libc::SIGTERM));
        let ran = server.wait();
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "round {round}");
        assert!(guest.taken().iter().all(Vec::is_empty), "round {round}: it has left something in flight");
        counted += disk.counted();
        server = disk.serve();
        guest.front_end.reconnect(&disk.socket()).expect("the backend is back");
    }
    guest.check_all();
    counted += disk.stop(server);
    assert_eq!(counted, guest.completed, "each request was done once");
    guest.check_no_duplicate();
}

#[test]
fn a_backend_may_be_away_for_a_while_and_fail_to_start() {
    let disk = Disk::new("uring", BUFFERED, 1);
    let mut server = disk.serve();
    let mut guest = Guest::new(&disk, FrontEndOptions::default());
    run_until(&mut guest, 200, || server.kill());
    let in_flight = guest.front_end.in_flight();
    for attempt in 0..8 {
        let error = guest.front_end.reconnect(&disk.socket()).expect_err("nobody is there");
        assert!(matches!(error, Error::NobodyListens { .. } | Error::NoSocket { .. }), "{error}");
        // One that is killed on its way, each a little later.
        let mut started = disk.folder.command(&["serve", "disks.toml"]).spawn().expect("starts");
        thread::sleep(Duration::from_millis(4 * attempt));
        started.kill().and_then(|()| started.wait()).expect("it ends");
    }
    assert_eq!(guest.front_end.in_flight(), in_flight, "nothing comes back from nobody");
    server = disk.serve();
    guest.front_end.reconnect(&disk.socket()).expect("the backend is back");
    guest.check_all();
    disk.stop(server);
    guest.check_no_duplicate();
}

#[test]
fn a_front_end_that_is_killed_leaves_the_backend_to_the_next() {
    let disk = Disk::new("uring", BUFFERED, 2);
    let image = disk.folder.path().join("disk.img");
    let server = disk.serve();
    for round in 0..5 {
        fs::write(&image, vec![0; IMAGE_BYTES as usize]).expect("an empty image");
        let arguments =
            ["bench", "blk0.sock", "--queues", "2", "--rw", "randwrite", "--verify", "-t", "1000", "-d", "32"];
        let mut bench = disk.folder.command(&arguments).stdout(Stdio::null()).spawn().expect("starts");
        let deadline = Instant::now() + PATIENCE;
        let written = |image: Vec<u8>| image.chunks_exact(512).any(|sector| sector[..8] == MAGIC.to_le_bytes());
        while !written(fs::read(&image).expect("the image")) {
            assert!(Instant::now() < deadline, "round {round}: it writes");
        }
        bench.kill().and_then(|()| bench.wait()).expect("it ends");
        // Its connection is given up when what it had in flight is done; until then the device is refused to others.
        while let Err(error) = FrontEnd::connect(&disk.socket(), &FrontEndOptions::default()) {
            assert!(Instant::now() < deadline, "round {round}: {error}");
        }
        let mut guest = Guest::new(&disk, FrontEndOptions::default());
        guest.check_all();
        guest.check_no_duplicate();
    }
    // All the while the image is this backend's, and nobody else's.
    disk.folder.write("other.toml", config("uring", BUFFERED, 1, "other.sock"));
    let ran = disk.folder.run(&["serve", "other.toml"]);
    let words = format!("{} is in use by process {}", "disk.img", server.id());
    assert!(ran.status == Some(1) && ran.stderr.contains(&words), "{words}: {}", ran.stderr);
    disk.stop(server);
    assert!(matches!(FrontEnd::connect(&disk.socket(), &FrontEndOptions::default()), Err(Error::NoSocket { .. })));
}
