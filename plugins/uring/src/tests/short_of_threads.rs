//! The process may have no more threads, and io_uring gets none for what it cannot do without.
use super::*;
use crate::testing::{DEADLINE, Memory, request, transfer};
use pollux_abi::block_v1::*;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

const NOBODY: libc::uid_t = 65534;

/// Runs `test` on a thread whose user may have no further thread. Root may have as many as it likes: the limit of the
/// process, which is changed meanwhile, concerns this thread alone.
fn without_threads(test: impl FnOnce() + Send) {
    if !is_root() {
        println!("SKIPPED: only root's other tests are left alone by a lower limit on threads");
        return;
    }
    let limit = |current: Option<libc::rlim_t>| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: one limit is written, then read.
        unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit), 0);
            let before = limit.rlim_cur;
            limit.rlim_cur = current.unwrap_or(before);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit), 0);
            before
        }
    };
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = limit(Some(0));
    let outcome = std::thread::scope(|scope| {
        let limited = scope.spawn(|| {
            // Not by the library's function, which changes all threads.
            // SAFETY: no memory is passed.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
            test();
        });
        limited.join()
    });
    limit(Some(before));
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn without_a_thread_for_io_uring_everything_is_done_all_the_same() {
    for direct in [false, true] {
        let fixture = Fixture::filled(1 << 20);
        let instance = fixture.open_with(direct, "io_uring");
        let mut queue = instance.open_queue(0, 8).expect("a queue");
        without_threads(|| {
            queue.start().expect("started");
            let memory = Memory::holding(&[9; 8192]);
            for segments in [vec![memory.segment(0, 8192)], vec![memory.segment(1, 4096)]] {
                for flags in [0, POLLUX_BLOCK_FUA] {
                    let write = BlockRequest { flags, ..transfer(POLLUX_BLOCK_WRITE, 16384, &segments) };
                    checked(&mut queue, write);
                }
            }
            checked(&mut queue, request(POLLUX_BLOCK_FLUSH, 0, 0, 0));
            for flags in [0, POLLUX_BLOCK_UNMAP, POLLUX_BLOCK_FUA] {
                checked(&mut queue, request(POLLUX_BLOCK_WRITE_ZEROES, 0, 65536, flags));
            }
            checked(&mut queue, request(POLLUX_BLOCK_DISCARD, 65536, 65536, 0));
            assert!(is_zero(&queue.read(0, 16384)));
            let deferred = instance.statistics()["deferred"].as_u64().expect("a number");
            assert!(deferred > 0, "threads were to be had");
            println!("direct = {direct}: {deferred} calls by the thread of the image");
        });
        if is_root() {
            let rest = &std::fs::read(&fixture.path).expect("readable")[128 << 10..];
            assert!(rest.iter().all(|&byte| byte == 3), "the rest is as it was");
        }
    }
}

#[test]
fn a_sleeping_worker_is_woken_by_the_thread_of_the_image() {
    let fixture = Fixture::filled(1 << 20);
    let instance = fixture.open_with(false, "io_uring");
    let mut queue = instance.open_queue(0, 8).expect("a queue");
    without_threads(|| {
        queue.start().expect("started");
        for token in 0..50 {
            assert_eq!(queue.submit(&[BlockRequest { token, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) }]), 1);
            while queue.done.is_empty() {
                if !queue.arm(true) {
                    assert!(queue.sleep(DEADLINE), "flush {token}: the wake-up was lost");
                }
                queue.arm(false);
                queue.poll();
            }
            assert_eq!(queue.wait(1)[0].result, 0);
        }
        while queue.arm(true) || queue.sleep(Duration::from_millis(20)) {
            queue.arm(false);
            queue.poll();
        }
    });
}

#[test]
fn a_queue_that_is_given_up_leaves_the_thread_of_the_image_nothing_to_write_to() {
    let fixture = Fixture::filled(1 << 20);
    let instance = fixture.open_with(false, "io_uring");
    let mut queue = instance.open_queue(0, 64).expect("a queue");
    without_threads(|| {
        queue.start().expect("started");
        let memory = Memory::holding(&[9; 64 * 4096]);
        let segments: Vec<_> = (0..64).map(|nth| [memory.segment(nth * 4096, 4096)]).collect();
        let requests: Vec<_> = (0..64)
            .map(|token| match token % 8 {
                7 => BlockRequest { token, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) },
                _ => BlockRequest { token, ..transfer(POLLUX_BLOCK_WRITE, token * 4096, &segments[token as usize]) },
            })
            .collect();
        assert_eq!(queue.submit(&requests), 64);
        queue.poll();
        assert_eq!(queue.stop(), 0, "nothing touches the memory any more");
    });
}
