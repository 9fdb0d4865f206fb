//! Which way requests go, and the way by system calls.
use super::*;
use crate::testing::{Memory, check_against_model, check_segment_splits, request, transfer};
use pollux_abi::block_v1::*;

const MIB: u64 = 1 << 20;

#[test]
fn the_way_suits_the_medium_and_is_logged() {
    let on_disk = Fixture::new(MIB);
    let in_memory = Fixture::on_tmpfs(MIB);
    let log = |fixture: &Fixture, engine| fixture.open_with(false, engine).log();
    // The medium of the temporary folder may be anything.
    let chosen = log(&on_disk, "auto");
    assert!(["by io_uring", "by system calls (the"].iter().any(|way| chosen.contains(way)), "{chosen}");
    assert!(log(&on_disk, "io_uring").contains("by io_uring"));
    assert!(log(&on_disk, "sync").contains("by system calls"));
    assert!(log(&in_memory, "sync").contains("by system calls (the medium is memory)"));
    let chosen = log(&in_memory, "auto");
    if log(&in_memory, "io_uring").contains("kernel threads") {
        assert!(chosen.contains("by system calls (the medium is memory)"), "{chosen}");
    } else {
        println!("SKIPPED: this kernel's tmpfs knows RWF_NOWAIT, and io_uring needs no threads for it");
        assert!(chosen.contains("by io_uring"), "{chosen}");
    }
    let message = Instance::<Uring>::open(&with_engine(&on_disk.path, false, "threads")).err().expect("no such engine");
    assert!(message.contains("options.engine") && message.contains("`io_uring`"), "{message}");
}

#[test]
fn by_system_calls_everything_ends_within_submit() {
    let fixture = Fixture::on_tmpfs(MIB);
    let instance = fixture.open_with(false, "sync");
    let mut queue = instance.queue(4);
    assert_eq!(queue.wake_fd(), -1, "there is never anything to wait for");
    let memory = Memory::holding(&[5; 8192]);
    let (one, two) = ([memory.segment(0, 4096)], [memory.segment(0, 512), memory.segment(4096, 512)]);
    let requests = [
        BlockRequest { token: 1, ..transfer(POLLUX_BLOCK_WRITE, 4096, &one) },
        BlockRequest { token: 2, ..transfer(POLLUX_BLOCK_READ, 4096, &two) },
        BlockRequest { token: 3, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) },
        BlockRequest { token: 4, ..request(77, 0, 4096, 0) },
    ];
    assert_eq!(queue.submit(&requests), requests.len());
    let results: Vec<_> = queue.done.iter().map(|completion| (completion.token, completion.result)).collect();
    assert_eq!(results, [(1, 0), (2, 0), (3, 0), (4, -libc::ENOTSUP)]);
    assert!(std::fs::read(&fixture.path).expect("readable")[4096..8192].iter().all(|&byte| byte == 5));
}

/// A zram disk of its own, taken away when dropped.
struct CompressedDisk(String);

impl CompressedDisk {
    fn new(size: u64) -> Option<Self> {
        let number = is_root().then(|| std::fs::read_to_string("/sys/class/zram-control/hot_add").ok()).flatten();
        let Some(number) = number else {
            println!("SKIPPED: a zram disk needs the root user and the zram module");
            return None;
        };
        let disk = CompressedDisk(number.trim().to_owned());
        std::fs::write(format!("/sys/block/zram{}/disksize", disk.0), size.to_string()).expect("written");
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.0).into()
    }
}

impl Drop for CompressedDisk {
    fn drop(&mut self) {
        // The kernel may hold a closed device for a moment longer.
        let begin = std::time::Instant::now();
        while let Err(error) = std::fs::write("/sys/class/zram-control/hot_remove", &self.0) {
            if begin.elapsed() > crate::testing::DEADLINE {
                println!("zram{} is left behind: {error}", self.0);
                return;
            }
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_disk_in_memory_is_served_by_system_calls() {
    let Some(disk) = CompressedDisk::new(8 * MIB) else { return };
    for direct in [true, false] {
        let instance = Instance::<Uring>::open(&options(&disk.path(), direct)).expect("it opens");
        println!("{}", instance.log());
        assert!(instance.log().contains("by system calls (the medium is memory)"), "{}", instance.log());
        let info = instance.info();
        assert!(info.offers(POLLUX_BLOCK_DISCARD));
        let mut queue = instance.queue(64);
        check_segment_splits(&mut queue, info.logical_block_size as usize);
        check_against_model(&mut queue, &info, 0, info.capacity / u64::from(info.logical_block_size), 64, 41);
    }
}

#[test]
fn what_the_page_cache_has_is_read_at_once_and_what_it_has_not_is_read_too() {
    let fixture = Fixture::filled(4 * MIB as usize);
    let instance = fixture.open_with(false, "io_uring");
    if instance.log().contains("kernel threads") {
        println!("SKIPPED: the file system of the temporary folder does not know RWF_NOWAIT");
        return;
    }
    let mut queue = instance.queue(4);
    let missed = || instance.statistics()["not_cached"].as_u64().expect("a number");
    assert_eq!(queue.write(0, &vec![5; MIB as usize]), 0);
    for block in 0..64 {
        assert_eq!(queue.read(block * 4096, 4096), [5; 4096]);
    }
    assert_eq!(missed(), 0, "what was just written is in the page cache");
    checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
    let file = File::open(&fixture.path).expect("it opens");
    for _ in 0..64 {
        // SAFETY: no memory is passed.
        unsafe { libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, libc::POSIX_FADV_DONTNEED) };
        assert_eq!(queue.read(0, 4096), [5; 4096]);
        assert_eq!(queue.read(2 * MIB, 8192), [3; 8192]);
    }
    let missed = missed();
    assert!((1..=64).contains(&missed), "tried {missed} times without success in 128");
    // A file that has become shorter.
    File::options().write(true).open(&fixture.path).expect("it opens").set_len(4096 + 100).expect("resized");
    let memory = Memory::new(4096);
    let segments = [memory.segment(0, 4096)];
    assert_eq!(queue.read(0, 4096), [5; 4096]);
    assert_eq!(queue.run(transfer(POLLUX_BLOCK_READ, 4096, &segments)), -libc::EIO);
}
