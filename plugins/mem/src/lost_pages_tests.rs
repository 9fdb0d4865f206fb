//! Files that cannot give every page that was mapped: cut short by somebody, or on a file system that is full.
use crate::{
    Mem,
    testing::{Instance, Memory, Queue, request, transfer},
};
use pollux_abi::block_v1::*;
use std::{
    fs::{self, File, OpenOptions},
    path::Path,
    process::Command,
};

const MIB: u64 = 1 << 20;
/// Where the disk of `child` is to lie, if this process was started to be it.
const FOLDER: &str = "POLLUX_TEST_FULL_FOLDER";

fn open(path: &Path, size: u64, sparse: bool) -> Instance<Mem> {
    Instance::open(&format!(r#"{{"path": {path:?}, "size": {size}, "sparse": {sparse}}}"#)).expect("it opens")
}

fn cut(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).expect("it opens").set_len(length).expect("resized");
}

fn read(queue: &mut Queue, offset: u64, length: usize) -> i32 {
    let memory = Memory::new(length);
    // Three of them, to see that none is mistaken for another.
    let segments = memory.segments(0, 0, &[512, length - 1024, 512]);
    queue.run(transfer(POLLUX_BLOCK_READ, offset, &segments))
}

fn lines_about(instance: &Instance<Mem>, word: &str) -> usize {
    instance.log().lines().filter(|line| line.contains(word)).count()
}

#[test]
fn what_a_cut_file_has_lost_is_an_error_and_the_rest_is_served() {
    let (disk, memory) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir_in("/dev/shm").expect("a folder"));
    for folder in [&disk, &memory] {
        let path = folder.path().join("disk.img");
        let instance = open(&path, 8 * MIB, false);
        let (mut queue, mut other) = (instance.queue(4), instance.open_queue(1, 4).expect("a queue"));
        other.start().expect("started");
        assert_eq!(queue.write(0, &vec![0xa5; 8 * MIB as usize]), 0);
        cut(&path, 2 * MIB);
        for queue in [&mut queue, &mut other] {
            assert_eq!(read(queue, 4 * MIB, 8192), -libc::EIO);
            assert_eq!(read(queue, 2 * MIB - 4096, 8192), -libc::EIO, "half of it");
            assert_eq!(queue.write(8 * MIB - 4096, &[1; 4096]), -libc::EIO);
            assert_eq!(queue.run(request(POLLUX_BLOCK_WRITE_ZEROES, 4 * MIB, 4096, 0)), -libc::EIO);
            assert_eq!(queue.run(request(POLLUX_BLOCK_FLUSH, 0, 0, 0)), -libc::EIO, "what was written is gone");
            assert!(queue.read(MIB, 65536).iter().all(|&byte| byte == 0xa5), "before the cut");
        }
        assert_eq!(queue.write(MIB, &[0x5a; 4096]), 0);
        assert_eq!(other.run(request(POLLUX_BLOCK_WRITE_ZEROES, MIB + 8192, 100 << 10, 0)), 0);
        let file = fs::read(&path).expect("readable");
        assert_eq!(file.len() as u64, 2 * MIB, "no request makes it longer");
        assert!(
            file[MIB as usize..][..4096] == [0x5a; 4096] && file[MIB as usize + 8192..][..100 << 10] == [0; 100 << 10]
        );
        assert_eq!(queue.read(MIB, 4096), [0x5a; 4096]);
        assert_eq!(lines_about(&instance, "has been cut to 2097152 bytes"), 1, "{}", instance.log());
        assert!(instance.statistics()["served_by_calls"].as_u64().is_some_and(|count| count >= 10));
    }
}

#[test]
fn a_file_that_is_cut_within_a_page_is_noticed_by_a_flush_and_by_a_look_at_the_medium() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, looks) in [("flushed", false), ("looked-at", true)] {
        let path = folder.path().join(name);
        let instance = open(&path, MIB, true);
        let mut queue = instance.queue(4);
        assert_eq!(queue.write(0, &[1; 8192]), 0);
        cut(&path, 4096 + 1024);
        if looks {
            assert_eq!(instance.info().capacity, MIB, "what was told");
        } else {
            assert_eq!(queue.run(request(POLLUX_BLOCK_FLUSH, 0, 0, 0)), -libc::EIO);
        }
        assert_eq!(read(&mut queue, 4096 + 1024, 1536), -libc::EIO);
        assert_eq!(read(&mut queue, 0, 4096), 0);
    }
}

#[test]
fn a_read_only_file_that_is_cut_is_read_as_far_as_it_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    fs::write(&path, vec![7; MIB as usize]).expect("written");
    let options = format!(r#"{{"path": {path:?}}}"#);
    let instance = Instance::<Mem>::open_with(&options, POLLUX_BLOCK_OPEN_READ_ONLY).expect("it opens");
    let mut queue = instance.queue(4);
    cut(&path, MIB / 2);
    assert_eq!(read(&mut queue, MIB - 4096, 4096), -libc::EIO);
    assert_eq!(queue.read(0, 4096), [7; 4096]);
    assert_eq!(queue.write(0, &[1; 512]), -libc::EROFS);
}

#[test]
fn a_full_file_system_ends_the_request_that_needs_room_and_no_other() {
    let test = "lost_pages_tests::child";
    let folder = tempfile::tempdir().expect("a folder");
    let script =
        format!("mount -t tmpfs -o size=2m none {0:?} && exec \"$0\" --exact {test} --nocapture", folder.path());
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().expect("this program"));
    let output = command.env(FOLDER, folder.path()).output().expect("it ran");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if said.contains("unshare") || said.contains("mount:") {
        println!("SKIPPED: no file system can be mounted here: {said}");
        return;
    }
    assert!(output.status.success() && said.contains("all was as it should be"), "{said}");
}

/// Not a test of its own: what the one above runs where a small tmpfs is mounted.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let path = Path::new(&folder).join("disk.img");
    let instance = open(&path, 8 * MIB, true);
    let (mut queue, mut other) = (instance.queue(4), instance.open_queue(1, 4).expect("a queue"));
    other.start().expect("started");
    let mut results = Vec::new();
    for piece in 0..32 {
        results.push(queue.write(piece * MIB / 8, &[piece as u8 + 1; (MIB / 8) as usize]));
    }
    let full = results.iter().position(|&result| result != 0).expect("the file system is smaller than the disk");
    assert!(results[full..].iter().all(|&result| result == -libc::ENOSPC), "{results:?}");
    for piece in 0..full as u64 {
        assert_eq!(other.read(piece * MIB / 8, (MIB / 8) as usize), vec![piece as u8 + 1; (MIB / 8) as usize]);
    }
    assert_eq!(other.read(7 * MIB, 4096), [0; 4096], "a hole");
    assert_eq!(queue.run(request(POLLUX_BLOCK_FLUSH, 0, 0, 0)), 0);
    assert_eq!(queue.run(request(POLLUX_BLOCK_DISCARD, 0, MIB / 2, 0)), 0);
    assert_eq!(queue.write(4 * MIB, &[9; 65536]), 0, "there is room again");
    let file = File::open(&path).expect("it opens");
    assert_eq!(file.metadata().expect("metadata").len(), 8 * MIB);
    assert_eq!(other.read(4 * MIB, 65536), [9; 65536]);
    assert_eq!(lines_about(&instance, "could not give a page"), 1, "{}", instance.log());
    println!("all was as it should be");
}
