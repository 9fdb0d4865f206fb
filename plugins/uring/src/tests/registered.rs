//! Guest memory that is registered with the kernel, and what a ring permits.
use super::*;
use crate::{
    protocol::Protocol,
    ring::{Purpose, Ring},
    testing::{Memory, check_against_model, transfer},
};
use io_uring::{opcode, types::Fixed};
use pollux_abi::block_v1::*;
use std::{mem::MaybeUninit, os::fd::AsFd};

const MIB: u64 = 1 << 20;

fn open_registering(fixture: &Fixture) -> Instance<Uring> {
    Instance::open(&format!(r#"{{"path": {:?}, "engine": "io_uring", "register_memory": true}}"#, fixture.path))
        .expect("it opens")
}

/// Reads the first block into the memory at `at`, with a queue that may have it registered.
fn check_read(queue: &mut Queue, memory: &mut Memory, at: usize) {
    memory.bytes_mut().fill(0);
    let segments = [memory.segment(at, 4096)];
    checked(queue, transfer(POLLUX_BLOCK_READ, 0, &segments));
    assert!(memory.bytes()[at..at + 4096].iter().all(|&byte| byte == 3));
    assert!(is_zero(&memory.bytes()[..at]) && is_zero(&memory.bytes()[at + 4096..]), "nothing else is written");
}

#[test]
fn memory_comes_and_goes_while_a_queue_runs() {
    let fixture = Fixture::filled(MIB as usize);
    let instance = open_registering(&fixture);
    let mut early = Memory::new(8 * 4096);
    instance.add_memory(&early);
    let mut queue = instance.queue(8);
    check_read(&mut queue, &mut early, 4096);
    let mut late = Memory::new(4 * 4096);
    check_read(&mut queue, &mut late, 0);
    instance.add_memory(&late);
    check_read(&mut queue, &mut late, 3 * 4096);
    check_read(&mut queue, &mut early, 7 * 4096);
    instance.remove_memory(&early);
    check_read(&mut queue, &mut early, 0);
    check_read(&mut queue, &mut late, 0);
    // Written through what is registered, from several pieces, and by a bounce chunk.
    late.bytes_mut().fill(9);
    for (start, lengths) in [(0, vec![8192]), (0, vec![4096, 4096]), (1, vec![4096])] {
        let segments = late.segments(start, 0, &lengths);
        checked(&mut queue, transfer(POLLUX_BLOCK_WRITE, 65536, &segments));
    }
    assert_eq!(queue.read(65536, 8192), [9; 8192]);
    println!("{}", instance.log());
}

/// The kernel registers pages, not addresses: what is mapped again at the same place must be registered again.
#[test]
fn other_memory_at_the_same_address_is_not_taken_for_the_old() {
    let fixture = Fixture::filled(MIB as usize);
    let instance = open_registering(&fixture);
    let mut memory = Memory::new(16 * 4096);
    instance.add_memory(&memory);
    let mut queue = instance.queue(8);
    check_read(&mut queue, &mut memory, 4096);
    for readd in [true, false] {
        instance.remove_memory(&memory);
        memory.replace_pages();
        if readd {
            instance.add_memory(&memory);
        }
        check_read(&mut queue, &mut memory, 4096);
        if !readd {
            instance.add_memory(&memory);
        }
    }
}

#[test]
fn registered_memory_agrees_with_the_model() {
    let fixture = Fixture::new(8 * MIB);
    let instance = open_registering(&fixture);
    let info = instance.info();
    let blocks = info.capacity / u64::from(info.logical_block_size);
    check_against_model(&mut instance.queue(32), &info, 0, blocks, 32, 5);
}

#[test]
fn without_leave_to_lock_memory_requests_go_without() {
    if !is_root() {
        println!("SKIPPED: only root's other tests are left alone by a lower limit on locked memory");
        return;
    }
    let fixture = Fixture::filled(MIB as usize);
    let instance = std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            // Root is above the limit, so this thread gives that up before its rings are made.
            drop_capability_to_lock();
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: one limit is written, then read.
            unsafe {
                assert_eq!(libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit), 0);
                limit.rlim_cur = limit.rlim_max.min(65536);
                assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
            }
            let instance = open_registering(&fixture);
            let mut memory = Memory::new(MIB as usize);
            instance.add_memory(&memory);
            instance.add_memory(&memory);
            check_read(&mut instance.queue(4), &mut memory, 4096);
            let log = instance.log();
            assert_eq!(log.matches("does not register guest memory").count(), 1, "{log}");
            assert!(log.contains("ulimit -l"), "{log}");
        });
        opening.join()
    });
    if let Err(panic) = instance {
        std::panic::resume_unwind(panic);
    }
}

/// Takes CAP_IPC_LOCK off the calling thread.
fn drop_capability_to_lock() {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_IPC_LOCK: u32 = 14;
    let header = [VERSION_3, 0];
    let mut data = [0_u32; 6];
    // SAFETY: the header and the two triples are as capget(2) wants them.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()), 0);
        data[0] &= !(1 << CAP_IPC_LOCK);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()), 0);
    }
}

#[test]
fn a_ring_permits_nothing_but_its_use() {
    let fixture = Fixture::filled(4096);
    let file = File::open(&fixture.path).expect("it opens");
    for set_up in SetUp::ALL {
        let purpose =
            Purpose { set_up, depth: 4, polls_device: false, operations: Files::OPERATIONS, may_clone_buffers: false };
        let mut ring: Ring = Ring::build(purpose, &[file.as_fd()]).expect("a ring");
        ring.enable().expect("enabled");
        let mut memory = Memory::new(4096);
        let path = c"/dev/null";
        let entries = [
            opcode::Nop::new().build(),
            opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            // The descriptor itself, and not the registered file.
            opcode::Read::new(io_uring::types::Fd(0), memory.bytes_mut().as_mut_ptr(), 4096).build(),
            opcode::Read::new(Fixed(0), memory.bytes_mut().as_mut_ptr(), 4096).build(),
        ];
        let results = entries.map(|entry| {
            // SAFETY: memory and path outlive the ring.
            unsafe { ring.push(&entry) };
            let begin = std::time::Instant::now();
            let mut room = [const { MaybeUninit::uninit() }; 4];
            loop {
                ring.enter();
                if let [completion] = ring.pop(&mut room) {
                    return completion.result();
                }
                assert!(begin.elapsed() < crate::testing::DEADLINE);
            }
        });
        assert_eq!(results, [-libc::EACCES, -libc::EACCES, -libc::EACCES, 4096], "{set_up:?}");
        let refused = ring.inner().submitter().register_files(&[0]).expect_err("it fails");
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES), "{set_up:?}");
    }
}
