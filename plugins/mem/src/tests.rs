//! What a host sees of the backend, through its `block/1` table.
use crate::{
    Mem,
    testing::{
        Instance, Memory, Queue, check_against_model, check_segment_splits, copies_of_descriptors, request, transfer,
    },
};
use pollux_abi::block_v1::*;
use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const MIB: u64 = 1 << 20;

fn open(options: &str) -> Instance<Mem> {
    Instance::open(options).expect("it opens")
}

fn refusal(options: &str, flags: u32) -> String {
    match Instance::<Mem>::open_with(options, flags) {
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

fn image(folder: &tempfile::TempDir, name: &str, data: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, data).expect("written");
    path
}

fn allocated(path: &Path) -> u64 {
    path.metadata().expect("metadata").blocks() * 512
}

fn checked(queue: &mut Queue, request: BlockRequest) {
    assert_eq!(queue.run(request), 0, "{request:?}");
}

/// A disk of each kind, with the folder that it lies in.
fn each_kind(size: u64) -> Vec<(Instance<Mem>, tempfile::TempDir)> {
    let options = |path: PathBuf, sparse| format!(r#"{{"path": {path:?}, "size": {size}, "sparse": {sparse}}}"#);
    let folder = || tempfile::tempdir().expect("a folder");
    let (first, second, third) = (folder(), folder(), tempfile::tempdir_in("/dev/shm").expect("a folder"));
    vec![
        (open(&format!(r#"{{"size": {size}}}"#)), folder()),
        (open(&options(first.path().join("a"), false)), first),
        (open(&options(second.path().join("b"), true)), second),
        (open(&options(third.path().join("c"), true)), third),
    ]
}

#[test]
fn every_segment_split_is_written_and_read_back() {
    for (instance, _folder) in each_kind(4 * MIB) {
        check_segment_splits(&mut instance.queue(4), 512);
    }
}

#[test]
fn random_requests_agree_with_a_model_on_two_threads() {
    for (instance, _folder) in each_kind(8 * MIB) {
        println!("{}", instance.log());
        let info = instance.info();
        let half = info.capacity / u64::from(info.logical_block_size) / 2;
        std::thread::scope(|scope| {
            for nth in 0..2_u32 {
                let mut queue = instance.open_queue(nth, 128).expect("a queue");
                let info = &info;
                scope.spawn(move || {
                    queue.start().expect("started");
                    check_against_model(&mut queue, info, u64::from(nth) * half, half, 128, 40 + u64::from(nth));
                });
            }
        });
    }
}

#[test]
fn requests_complete_in_submit() {
    let instance = open(r#"{"size": "1M"}"#);
    let mut queue = instance.queue(4);
    let memory = Memory::new(4096);
    let segments = [memory.segment(0, 4096)];
    assert_eq!(queue.submit(&[transfer(POLLUX_BLOCK_READ, 0, &segments)]), 1);
    assert_eq!(queue.done.len(), 1);
    assert_eq!(queue.wake_fd(), -1);
}

#[test]
fn sizes_and_blocks_are_as_written() {
    let info = open(r#"{"size": "3M", "block_size": "4K"}"#).info();
    assert_eq!((info.capacity, info.logical_block_size), (3 * MIB, 4096));
    assert_eq!((info.identity_device, info.identity_object, info.flags), (0, 0, 0));
    assert_says(&refusal(r#"{"size": "1000"}"#, 0), &["1000 bytes", "512-byte blocks", "size = \"1K\""]);
    assert_says(&refusal(r#"{"size": 0}"#, 0), &["0 bytes", "512-byte blocks"]);
    assert_says(&refusal(r#"{"size": "5X"}"#, 0), &["`5X` is no size", "\"512M\""]);
    assert_says(&refusal(r#"{"size": "1M", "block_size": 100}"#, 0), &["100", "power of two from 512 to 65536"]);
    assert_says(&refusal("{}", 0), &["size = \"1G\"", "path ="]);
    assert_says(&refusal(r#"{"size": "16777215T"}"#, 0), &["cannot map 16777215T bytes"]);
}

#[test]
fn requests_beyond_the_end_are_refused_and_touch_nothing() {
    let instance = open(r#"{"size": "1M"}"#);
    let mut queue = instance.queue(4);
    let memory = Memory::holding(&[5; 4096]);
    let segments = [memory.segment(0, 4096)];
    for offset in [MIB - 512, MIB, u64::MAX - 511] {
        assert_eq!(queue.run(transfer(POLLUX_BLOCK_READ, offset, &segments)), -libc::EINVAL);
        assert_eq!(queue.run(transfer(POLLUX_BLOCK_WRITE, offset, &segments)), -libc::EINVAL);
    }
    // Segments that hold more than the request says are not read beyond it.
    let short = BlockRequest { length: 512, ..transfer(POLLUX_BLOCK_WRITE, MIB - 512, &segments) };
    checked(&mut queue, short);
    assert_eq!(queue.read(MIB - 512, 512), [5; 512]);
    assert_eq!(queue.run(request(77, 0, 512, 0)), -libc::ENOTSUP);
}

#[test]
fn a_file_is_created_extended_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    let options = |size: &str| format!(r#"{{"path": {path:?}, "size": "{size}"}}"#);
    {
        let instance = open(&options("1M"));
        let metadata = path.metadata().expect("metadata");
        assert!(allocated(&path) >= MIB, "a file that is not sparse has all its blocks");
        let info = instance.info();
        assert_eq!((info.identity_device, info.identity_object), (metadata.dev(), metadata.ino()));
        assert_eq!(info.flags, POLLUX_BLOCK_INFO_VOLATILE_CACHE);
        assert!(!info.offers(POLLUX_BLOCK_DISCARD));
        let mut queue = instance.queue(4);
        assert_eq!(queue.write(4096, &[6; 4096]), 0);
        checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
        let memory = Memory::holding(&[7; 512]);
        let segments = [memory.segment(0, 512)];
        checked(&mut queue, BlockRequest { flags: POLLUX_BLOCK_FUA, ..transfer(POLLUX_BLOCK_WRITE, 512, &segments) });
    }
    let instance = open(&options("2M"));
    assert_eq!(instance.info().capacity, 2 * MIB);
    let mut queue = instance.queue(4);
    assert_eq!(queue.read(4096, 4096), [6; 4096]);
    assert_eq!(queue.read(512, 512), [7; 512]);
    assert_eq!(queue.read(MIB, 4096), [0; 4096]);
    drop((queue, instance));
    assert_says(&refusal(&options("1M"), 0), &["has 2097152 bytes", "size = \"1M\"", "leave size out"]);
    let without_size = format!(r#"{{"path": {path:?}}}"#);
    assert_eq!(open(&without_size).info().capacity, 2 * MIB);
}

#[test]
fn a_read_only_file_is_read_and_not_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder, "disk.img", &[8; 8192]);
    let options = format!(r#"{{"path": {path:?}}}"#);
    let instance = Instance::<Mem>::open_with(&options, POLLUX_BLOCK_OPEN_READ_ONLY).expect("it opens");
    assert!(instance.info().is_read_only() && !instance.info().offers(POLLUX_BLOCK_WRITE));
    let mut queue = instance.queue(4);
    assert_eq!(queue.write(0, &[1; 512]), -libc::EROFS);
    for operation in [POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_WRITE_ZEROES] {
        assert_eq!(queue.run(request(operation, 0, 4096, 0)), -libc::EROFS);
    }
    checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
    assert_eq!(queue.read(0, 4096), [8; 4096]);
    let larger = format!(r#"{{"path": {path:?}, "size": "1M"}}"#);
    assert_says(&refusal(&larger, POLLUX_BLOCK_OPEN_READ_ONLY), &["8192 bytes", "read-only"]);
}

#[test]
fn discard_gives_space_back_and_zeroes_read_as_zeroes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    let mapped = open(&format!(r#"{{"path": {path:?}, "size": "4M", "sparse": true}}"#));
    let memory = open(r#"{"size": "4M"}"#);
    for instance in [&mapped, &memory] {
        let mut queue = instance.queue(4);
        assert_eq!(queue.write(0, &vec![0xee; 4 * MIB as usize]), 0);
        checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
        let full = allocated(&path);
        checked(&mut queue, request(POLLUX_BLOCK_DISCARD, MIB, MIB, 0));
        assert_eq!(queue.read(MIB, MIB as usize), vec![0; MIB as usize]);
        assert!(queue.read(2 * MIB, 4096).iter().all(|&byte| byte == 0xee));
        assert!(allocated(&path) < full || std::ptr::eq(instance, &memory));
        // Ranges that begin and end within pages.
        for flags in [0, POLLUX_BLOCK_UNMAP, POLLUX_BLOCK_UNMAP | POLLUX_BLOCK_FUA] {
            for (offset, length) in [(512, 512), (512, 8192), (4096, 4096), (3584, 1024), (0, 12800)] {
                assert_eq!(queue.write(0, &[0xee; 32768]), 0);
                checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, offset, length, flags));
                let mut expected = [0xee; 32768];
                expected[offset as usize..(offset + length) as usize].fill(0);
                assert!(queue.read(0, 32768) == expected, "{offset} + {length}, flags {flags}");
            }
        }
    }
}

#[test]
fn what_cannot_be_mapped_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = |path: &Path| format!(r#"{{"path": {path:?}}}"#);
    assert_says(&refusal(&options(&folder.path().join("gone")), 0), &["gone does not exist", "size = \"1G\""]);
    assert_says(&refusal(&options(folder.path()), 0), &["is no file"]);
    assert_says(&refusal(&options(Path::new("/dev/full")), 0), &["/dev/full is no file"]);
    assert_says(&refusal(&options(&image(&folder, "empty", b"")), 0), &["empty is empty", "size = \"1G\""]);
    let message = refusal(&options(&image(&folder, "odd", &[0; 1000])), 0);
    assert_says(&message, &["the size of ", "odd, 1000 bytes", "size = \"1K\""]);
    let path = image(&folder, "small", &[0; 512]);
    let larger_than_any = format!(r#"{{"path": {path:?}, "size": "8000000T"}}"#);
    assert_says(&refusal(&larger_than_any, 0), &["cannot extend", "small"]);
}

#[test]
fn a_file_in_use_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder, "disk.img", &[0; 4096]);
    let options = format!(r#"{{"path": {path:?}}}"#);
    let first = open(&options);
    assert_says(&refusal(&options, 0), &["is in use by another disk of this process", "lock = false"]);
    assert!(Instance::<Mem>::open_with(&options, POLLUX_BLOCK_OPEN_PROBE).is_ok());
    open(&format!(r#"{{"path": {path:?}, "lock": false}}"#));
    drop(first);
    open(&options);
}

#[test]
fn a_copy_of_its_descriptors_in_a_forked_child_does_not_keep_a_closed_file_locked() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder, "disk.img", &[0; 4096]);
    let options = format!(r#"{{"path": {path:?}}}"#);
    let first = open(&options);
    let copies = copies_of_descriptors(&path);
    assert!(!copies.is_empty());
    drop(first);
    open(&options);
}

#[test]
fn a_probe_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    let options = format!(r#"{{"path": {path:?}, "size": "1M"}}"#);
    let probe = Instance::<Mem>::open_with(&options, POLLUX_BLOCK_OPEN_PROBE).expect("it opens");
    assert_eq!(probe.info().capacity, MIB);
    assert!(!path.exists());
    File::create(&path).expect("created");
    let probe = Instance::<Mem>::open_with(&options, POLLUX_BLOCK_OPEN_PROBE).expect("it opens");
    assert_eq!((probe.info().capacity, path.metadata().expect("metadata").len()), (MIB, 0));
}

#[test]
fn a_file_that_is_no_raw_image_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = image(&folder, "d.img", &[b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 4088]].concat());
    let before = std::fs::read(&path).expect("readable");
    let options = |more: &str| format!(r#"{{"path": {path:?}, "size": 8192{more}}}"#);
    for flags in [0, POLLUX_BLOCK_OPEN_PROBE] {
        assert_says(&refusal(&options(""), flags), &["QCOW2", "qemu-img convert -f qcow2 -O raw", "format = \"raw\""]);
    }
    assert_eq!(std::fs::read(&path).expect("readable"), before);
    assert_eq!(open(&options(r#", "format": "raw""#)).info().capacity, 8192);
}
