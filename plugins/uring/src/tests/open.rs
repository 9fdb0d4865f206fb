//! Opening: what a medium is said to be like, and the message for each that cannot be used.
use super::*;
use crate::testing::copies_of_descriptors;
use pollux_abi::block_v1::*;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

fn refusal(options: &str, flags: u32) -> String {
    match Instance::<Uring>::open_with(options, flags) {
        Ok(_) => panic!("{options} was opened"),
        Err(message) => message,
    }
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn a_file_is_described() {
    let fixture = Fixture::new(1 << 20);
    let instance = fixture.open(true);
    let (info, metadata) = (instance.info(), fixture.path.metadata().expect("metadata"));
    assert_eq!(info.capacity, 1 << 20);
    assert_eq!((info.identity_device, info.identity_object), (metadata.dev(), metadata.ino()));
    assert!(info.logical_block_size.is_power_of_two() && info.logical_block_size >= 512);
    assert!(info.physical_block_size >= info.logical_block_size);
    assert_eq!(info.flags, POLLUX_BLOCK_INFO_VOLATILE_CACHE);
    assert_eq!(info.maximum_segments, 1024);
    assert_says(&instance.log(), &["3 ", "disk.img", "1M bytes", "-byte blocks", "direct", "writable", "locked"]);
    instance.open_queue(0, 8).expect("a queue");
    assert_says(&instance.log(), &["io_uring with SINGLE_ISSUER, DEFER_TASKRUN"]);
    instance.open_queue(0, 8).expect("a queue");
    assert_eq!(instance.log().matches("io_uring with").count(), 1, "once is enough");
    assert_eq!((info.maximum_write_zeroes, info.maximum_discard), (256 << 20, 1 << 30));
}

#[test]
fn what_cannot_be_opened_is_named_with_what_to_do() {
    let fixture = Fixture::new(1 << 20);
    let folder = fixture.folder.path();
    let write = |name: &str, size: u64| {
        let path = folder.join(name);
        File::create(&path).expect("created").set_len(size).expect("resized");
        options(&path, true)
    };
    assert_says(&refusal(&options(&folder.join("gone"), true), 0), &["gone", "No such file", "truncate -s"]);
    assert_says(&refusal(&options(folder, true), 0), &["is a folder", "image file, a block device"]);
    assert_says(&refusal(&options(Path::new("/dev/full"), true), 0), &["/dev/full is a character device"]);
    assert_says(&refusal(&write("empty", 0), 0), &["empty is empty", "truncate -s"]);
    let message = refusal(&write("odd", 1000), 0);
    assert_says(&message, &["odd, 1000 bytes", "blocks", "truncate -s 1024"]);
    // A file of /proc does not take O_DIRECT.
    let message = refusal(&options(Path::new("/proc/version"), true), POLLUX_BLOCK_OPEN_READ_ONLY);
    assert_says(&message, &["/proc/version", "direct I/O", "write direct = false"]);
    let queue_depth = format!(r#"{{"path": {:?}, "queue_depth": 0}}"#, fixture.path);
    assert_says(&refusal(&queue_depth, 0), &["queue_depth = 0", "32768"]);
    assert_says(&refusal("{}", 0), &["missing field `path`"]);
    assert_says(&refusal(r#"{"path": "x", "pth": 1}"#, 0), &["unknown field `pth`"]);
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let fixture = Fixture::new(1 << 20);
    let path = fixture.folder.path().join("pipe");
    if system("mkfifo", &[path.to_str().expect("UTF-8")]).is_none() {
        println!("SKIPPED: mkfifo did not work");
        return;
    }
    assert_says(&refusal(&options(&path, true), POLLUX_BLOCK_OPEN_READ_ONLY), &["is a pipe"]);
}

#[test]
fn a_file_that_may_not_be_written_is_named() {
    let fixture = Fixture::new(1 << 20);
    if is_root() {
        // The root user may write to everything but a file that is marked immutable.
        if system("chattr", &["+i", fixture.path.to_str().expect("UTF-8")]).is_none() {
            println!("SKIPPED: chattr +i does not work here");
            return;
        }
    } else {
        std::fs::set_permissions(&fixture.path, std::os::unix::fs::PermissionsExt::from_mode(0o400))
            .expect("permitted");
    }
    let message = refusal(&fixture.options(true), 0);
    let read_only = Instance::<Uring>::open_with(&fixture.options(true), POLLUX_BLOCK_OPEN_READ_ONLY);
    if is_root() {
        system("chattr", &["-i", fixture.path.to_str().expect("UTF-8")]);
    }
    assert_says(&message, &["disk.img for writing", "read-only"]);
    assert!(read_only.is_ok());
}

#[test]
fn a_locked_medium_is_refused_and_its_holder_named() {
    let fixture = Fixture::new(1 << 20);
    let writer = fixture.open(true);
    let message = refusal(&fixture.options(true), 0);
    assert_says(&message, &["disk.img is in use by another disk of this process", "lock = false"]);
    assert_says(&refusal(&fixture.options(true), POLLUX_BLOCK_OPEN_READ_ONLY), &["in use"]);

    // A look at a medium takes no lock, and neither does an instance that is told not to.
    let probe = Instance::<Uring>::open_with(&fixture.options(true), POLLUX_BLOCK_OPEN_PROBE).expect("it opens");
    assert_eq!(probe.info().capacity, 1 << 20);
    let unlocked = format!(r#"{{"path": {:?}, "lock": false}}"#, fixture.path);
    assert!(Instance::<Uring>::open(&unlocked).is_ok());

    drop(writer);
    let readers: Vec<_> = (0..2)
        .map(|_| Instance::<Uring>::open_with(&fixture.options(true), POLLUX_BLOCK_OPEN_READ_ONLY).expect("it opens"))
        .collect();
    assert_says(&refusal(&fixture.options(true), 0), &["in use"]);
    drop(readers);
    fixture.open(true);
}

#[test]
fn a_copy_of_its_descriptors_in_a_forked_child_does_not_keep_a_closed_medium_locked() {
    let fixture = Fixture::new(1 << 20);
    let writer = fixture.open(true);
    let copies = copies_of_descriptors(&fixture.path);
    assert!(copies.len() >= 2, "of the lock's and of that of the requests: {copies:?}");
    drop(writer);
    fixture.open(true);
}

#[test]
fn the_process_that_holds_the_lock_is_named() {
    let fixture = Fixture::new(1 << 20);
    let script = "import fcntl, struct, sys\n\
                  f = open(sys.argv[1], 'r+b')\n\
                  fcntl.fcntl(f, 37, struct.pack('hhqqi4x', 1, 0, 0, 0, 0))\n\
                  print('locked', flush=True)\n\
                  sys.stdin.read()";
    let child = Command::new("python3")
        .args(["-c", script, fixture.path.to_str().expect("UTF-8")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("SKIPPED: there is no python3 to hold a lock in another process");
        return;
    };
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().expect("it is there")), &mut line)
        .expect("a line");
    assert_eq!(line, "locked\n");
    assert_says(&refusal(&fixture.options(true), 0), &[&format!("in use by process {} (python3", child.id())]);
    drop(child.stdin.take());
    child.wait().expect("it ended");
    fixture.open(true);
}

#[test]
fn a_probe_changes_nothing() {
    let fixture = Fixture::new(1 << 20);
    let before = fixture.path.metadata().expect("metadata");
    let probe = Instance::<Uring>::open_with(&fixture.options(true), POLLUX_BLOCK_OPEN_PROBE).expect("it opens");
    let after = fixture.path.metadata().expect("metadata");
    assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()));
    assert_eq!(probe.info().operations, fixture.open(true).info().operations);
}

#[test]
fn a_medium_is_free_again_as_soon_as_it_is_closed() {
    let fixture = Fixture::new(1 << 20);
    for _ in 0..100 {
        let instance = fixture.open(true);
        let mut queue = instance.queue(8);
        assert_eq!(queue.write(0, &[1; 4096]), 0);
        let requests = vec![crate::testing::request(POLLUX_BLOCK_FLUSH, 0, 0, 0)];
        assert_eq!(queue.submit(&requests), 1);
        // The queue is given up with a request in flight.
        drop(queue);
    }
    let exclusive = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&fixture.path);
    assert!(exclusive.is_ok());
}
