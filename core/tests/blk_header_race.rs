//! A guest that changes headers and descriptors while the device looks at them gets one of the two versions, never a
//! mixture that was not checked, and harms nobody.
use pollux_driver::{Descriptor, NEXT, RingKind, WRITE};
use pollux_testing::{
    blk::{Cut, IN, IOERR, OK, OUT, UNSUPP, pattern},
    disk::{self, Behaviour},
    rig::Rig,
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Lets the device take requests while `spoil` rewrites guest memory as fast as it can.
fn race(spoil: impl Fn(*mut u8) + Sync, at: u64, rig: &mut Rig, mut each: impl FnMut(&mut Rig)) {
    let base = rig.driver.memory().translator().translate(at, 16).expect("guest memory") as usize;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                spoil(base as *mut u8);
            }
        });
        for _ in 0..20_000 {
            each(rig);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_header_that_changes_is_read_once() {
    let mut rig = Rig::new(RingKind::Split, disk::open("race", 1 << 20, Behaviour::Inline).expect("disk"), 256, true);
    // Sector 0 holds ones, all others zeroes; the header flips between a read of sector 0 and of one far beyond the
    // end.
    rig.request(OUT, 0, &[1; 512], &Cut::plain(512, 0));
    let (head, _) = rig.driver.submit(IN, 0, &[], &Cut::plain(0, 512)).expect("room");
    let at = rig.driver.header_address(head);
    rig.finish();
    let mut outcomes = [0; 3];
    let flip = |header: *mut u8| {
        let sector = header.wrapping_add(8).cast::<u64>();
        for value in [0, 1 << 40] {
            // SAFETY: the test's own guest memory; races are what it is about.
            unsafe { sector.write_volatile(value) };
        }
        // SAFETY: as above.
        unsafe { header.cast::<u32>().write_volatile([IN, OUT, 99][rand(header as u64)]) };
    };
    race(flip, at, &mut rig, |rig| {
        let finished = rig.request(IN, 0, &[], &Cut::plain(0, 512));
        match finished.status {
            OK => assert!(finished.data.iter().all(|&byte| byte == 1), "success is the read of sector 0"),
            IOERR | UNSUPP => assert!(finished.data.iter().all(|&byte| byte == 0xaa), "a refusal moves no data"),
            other => panic!("status {other}"),
        }
        outcomes[usize::from(finished.status)] += 1;
    });
    assert!(!rig.interrupts.has_failed());
    assert!(outcomes[0] > 0, "outcomes {outcomes:?}");
}

fn rand(seed: u64) -> usize {
    usize::from(pattern(seed ^ std::time::Instant::now().elapsed().as_nanos() as u64, 1)[0]) % 3
}

#[test]
fn descriptors_that_change_never_lead_outside_guest_memory() {
    for _ in 0..20 {
        let mut rig = Rig::new(
            RingKind::Split,
            disk::open("race-descriptors", 1 << 20, Behaviour::Inline).expect("disk"),
            256,
            true,
        );
        let at = rig.driver.ring.config().descriptors + 16;
        rig.driver.ring.write(0x10000, [0u8; 16]);
        let flip = |descriptor: *mut u8| {
            for (address, length, next) in
                [(0x11000u64, 512u32, 2u16), (u64::MAX - 7, u32::MAX, 2), (0x11000, 512, 300)]
            {
                // SAFETY: the test's own guest memory; races are what it is about.
                unsafe {
                    descriptor.cast::<u64>().write_volatile(address);
                    descriptor.wrapping_add(8).cast::<u32>().write_volatile(length);
                    descriptor.wrapping_add(14).cast::<u16>().write_volatile(next);
                }
            }
        };
        race(flip, at, &mut rig, |rig| {
            if rig.interrupts.has_failed() {
                return;
            }
            let ring = rig.driver.ring.split();
            ring.write_descriptor(0, Descriptor { address: 0x10000, length: 16, flags: NEXT, next: 1 });
            ring.write_descriptor(1, Descriptor { address: 0x11000, length: 512, flags: NEXT | WRITE, next: 2 });
            ring.write_descriptor(2, Descriptor { address: 0x12000, length: 1, flags: WRITE, next: 0 });
            ring.push_head(0);
            ring.publish();
            rig.queue.poll();
            let used = ring_used(rig);
            assert!(used <= 1);
        });
    }
}

fn ring_used(rig: &mut Rig) -> u16 {
    let used = rig.driver.ring.used_count();
    rig.driver.ring.split().skip_used(used);
    used
}
