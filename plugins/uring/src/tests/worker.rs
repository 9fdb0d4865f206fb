//! Workers: several threads, sleeping and waking, giving a queue up.
use super::*;
use crate::testing::{DEADLINE, Memory, Random, check_against_model, request, transfer};
use pollux_abi::block_v1::*;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

#[test]
fn two_queues_on_two_threads_share_the_medium() {
    let fixture = Fixture::new(16 << 20);
    let instance = fixture.open(true);
    let info = instance.info();
    let half = info.capacity / u64::from(info.logical_block_size) / 2;
    std::thread::scope(|scope| {
        for nth in 0..2_u32 {
            let mut queue = instance.open_queue(nth, 64).expect("a queue");
            let info = &info;
            scope.spawn(move || {
                queue.start().expect("started");
                check_against_model(&mut queue, info, u64::from(nth) * half, half, 64, 20 + u64::from(nth));
            });
        }
    });
}

/// Sleeps on the wake fd whenever `arm` allows it, with no time-out that could hide a lost wake-up.
fn check_wake_ups<const SET_UP: usize>() {
    let fixture = Fixture::filled(1 << 20);
    let instance = Instance::<Older<SET_UP>>::open(&fixture.options(true)).expect("it opens");
    let mut queue = instance.queue(16);
    assert!(queue.wake_fd() >= 0);
    let memory = Memory::new(16 * 4096);
    let segments: Vec<_> = (0..16).map(|nth| [memory.segment(nth * 4096, 4096)]).collect();
    let mut random = Random(1 + SET_UP as u64);
    let mut slept = 0;
    for round in 0..2000 {
        let count = 1 + random.below(4);
        let requests: Vec<_> = (0..count)
            .map(|token| match random.below(6) {
                0 => BlockRequest { token, ..request(POLLUX_BLOCK_FLUSH, 0, 0, 0) },
                _ => BlockRequest {
                    token,
                    ..transfer(POLLUX_BLOCK_READ, random.below(256) * 4096, &segments[token as usize])
                },
            })
            .collect();
        assert_eq!(queue.submit(&requests), requests.len());
        // Completions come before, while and after the queue is armed.
        let pause = Instant::now();
        let nanoseconds = u128::from(random.below(150_000));
        while pause.elapsed().as_nanos() < nanoseconds {
            std::hint::spin_loop();
        }
        while queue.done.len() < requests.len() {
            if !queue.arm(true) {
                assert!(queue.sleep(DEADLINE), "round {round}: the wake-up was lost");
                slept += 1;
            }
            queue.arm(false);
            queue.poll();
            assert!(pause.elapsed() < 2 * DEADLINE, "round {round}: woken again and again for nothing");
        }
        queue.done.clear();
    }
    assert!(slept > 0, "the worker never slept");
    // With nothing in flight nothing wakes the worker for long, not even what woke it last.
    let begin = Instant::now();
    while queue.arm(true) || queue.sleep(Duration::from_millis(20)) {
        queue.arm(false);
        queue.poll();
        assert!(begin.elapsed() < DEADLINE, "woken again and again for nothing");
    }
    println!("{:?}: slept {slept} times", SetUp::ALL[SET_UP]);
}

#[test]
fn no_wake_up_is_lost() {
    check_wake_ups::<0>();
    check_wake_ups::<1>();
    check_wake_ups::<2>();
}

#[test]
fn a_woken_worker_finds_the_completion_with_its_next_poll() {
    let fixture = Fixture::filled(1 << 20);
    let instance = fixture.open(true);
    let mut queue = instance.queue(4);
    let memory = Memory::new(4096);
    let segments = [memory.segment(0, 4096)];
    let (mut woken, mut needless) = (0, 0);
    let begin = Instant::now();
    // Where reads are fast, few of them leave the time to sleep.
    while woken < 200 && begin.elapsed() < DEADLINE / 6 {
        assert_eq!(queue.submit(&[transfer(POLLUX_BLOCK_READ, 0, &segments)]), 1);
        if queue.done.is_empty() && !queue.arm(true) {
            assert!(queue.sleep(DEADLINE));
            queue.arm(false);
            queue.poll();
            woken += 1;
            needless += 1 - queue.done.len();
        }
        queue.wait(1);
    }
    if woken < 20 {
        println!("SKIPPED: reads are so fast here that the worker slept only {woken} times");
        return;
    }
    // The kernel's signal for the completion before may come late, but that is rare.
    assert!(needless * 10 <= woken, "woken {woken} times, {needless} of them needlessly");
}

#[test]
fn a_queue_that_is_given_up_leaves_the_kernel_nothing_to_write_to() {
    let fixture = Fixture::filled(8 << 20);
    let instance = fixture.open(true);
    for start in [0, 1] {
        let mut queue = instance.queue(64);
        let mut memory = Memory::new(64 * 65536 + 1);
        let segments: Vec<_> = (0..64).map(|nth| [memory.segment(start + nth * 65536, 65536)]).collect();
        let requests: Vec<_> = (0..64)
            .map(|token| BlockRequest {
                token,
                ..transfer(POLLUX_BLOCK_READ, token * 65536, &segments[token as usize])
            })
            .collect();
        assert_eq!(queue.submit(&requests), 64);
        assert_eq!(queue.stop(), 0);
        memory.bytes_mut().fill(0xdd);
        std::thread::sleep(Duration::from_millis(50));
        assert!(memory.bytes().iter().all(|&byte| byte == 0xdd), "nothing is written after queue_stop");
    }
}

#[test]
fn a_queue_that_has_failed_submits_nothing_more() {
    let fixture = Fixture::new(1 << 20);
    let instance = fixture.open(false);
    let mut queue = instance.queue(4);
    // A ring has one thread that may enter it. From another one the write gets as far as the submission queue.
    let accepted = std::thread::scope(|scope| {
        let submission = scope.spawn(|| {
            let memory = Box::leak(Box::new(Memory::holding(&[7; 4096])));
            queue.submit(&[transfer(POLLUX_BLOCK_WRITE, 0, &[memory.segment(0, 4096)])])
        });
        submission.join()
    });
    if accepted.is_ok() {
        println!("SKIPPED: this kernel's rings have no single issuer");
        return;
    }
    let begin = Instant::now();
    assert_eq!(queue.stop(), 0, "the kernel holds nothing");
    assert!(begin.elapsed() < Duration::from_secs(5), "there is nothing to wait for");
    assert!(is_zero(&std::fs::read(&fixture.path).expect("readable")), "the guest has had its memory back");
}

#[test]
fn one_thread_serves_more_queues_than_it_can_register_rings() {
    let fixture = Fixture::new(1 << 20);
    let instance = fixture.open(true);
    for _ in 0..2 {
        let mut queues: Vec<_> = (0..40)
            .map(|index| {
                let mut queue = instance.open_queue(index, 4).expect("a queue");
                queue.start().expect("started");
                queue
            })
            .collect();
        for queue in &mut queues {
            assert_eq!(queue.read(0, 4096).len(), 4096);
        }
    }
}

#[test]
fn a_queue_starts_only_once() {
    let fixture = Fixture::new(1 << 20);
    let instance = fixture.open(true);
    let mut queue = instance.queue(4);
    let message = queue.start().expect_err("it fails");
    assert!(message.contains("cannot start the io_uring"), "{message}");
    assert_eq!(queue.read(0, 4096).len(), 4096);
}

/// Signals interrupt system calls; requests must not notice.
#[test]
fn requests_survive_signals() {
    extern "C" fn ignore(_signal: libc::c_int) {}
    // SAFETY: the handler does nothing; without SA_RESTART, system calls are interrupted.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let fixture = Fixture::new(8 << 20);
    let instance = fixture.open(true);
    let info = instance.info();
    let over = AtomicBool::new(false);
    // SAFETY: no memory is passed.
    let worker = unsafe { libc::pthread_self() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // SAFETY: the worker outlives the scope.
                unsafe { libc::pthread_kill(worker, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let blocks = info.capacity / u64::from(info.logical_block_size);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check_against_model(&mut instance.queue(32), &info, 0, blocks, 32, 9);
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}
