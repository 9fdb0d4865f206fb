//! Whoever runs a machine pauses and resumes its devices, gives them other memory and has their media measured, while a
//! guest works with them.

mod common;

use common::{Rig, device, kvm_is_there, rig};
use pollux_core::{memory::GuestMemory, worker::IdlePolicy};
use pollux_test_guest::{
    PATIENCE,
    mailbox::{plan, report as r},
    outcome, report,
};
use pollux_vmm::{Devices, Exit, Shutdown, Transport};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

const ROUNDS: u64 = 10;
const DEPTH: u64 = 8;

/// Waits until the guest has completed more requests than `count`. Whether it has, before it came to its end.
fn completes_more_than(memory: &GuestMemory, count: u64) -> bool {
    let start = Instant::now();
    while report(memory, r::COMPLETED) <= count {
        if report(memory, r::DONE) + report(memory, r::ERROR) != 0 {
            return false;
        }
        assert!(start.elapsed() < PATIENCE, "the guest does not get on from {count} requests");
        std::thread::yield_now();
    }
    true
}

/// Has the guest write and read and compare, while another thread does `action` to the devices again and again. Returns
/// how often it did.
fn verify_under(transport: Transport, action: impl Fn(&GuestMemory, &Devices) + Sync) -> u64 {
    let mut words = vec![
        (plan::INTERRUPTS, 1),
        (plan::ACTION, plan::ACTION_VERIFY),
        (plan::DEPTH, DEPTH),
        (plan::REQUESTS, 400),
        (plan::BYTES, 4096),
        (plan::SESSIONS, 20),
    ];
    words.extend(device(transport));
    let Rig { mut machine, worker: _worker, .. } = rig(IdlePolicy::Adaptive, &words);
    let (memory, devices) = (machine.memory().clone(), machine.devices());
    let rounds = std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            (0..ROUNDS)
                .take_while(|round| {
                    let goes_on = completes_more_than(&memory, 20 * round);
                    action(&memory, &devices);
                    goes_on
                })
                .count() as u64
        });
        assert_eq!(machine.run(&Shutdown::new().expect("made")).expect("the machine runs"), Exit::PowerOff);
        rounds.join().expect("no panic")
    });
    outcome(&memory).expect("an outcome");
    rounds
}

#[test]
fn nothing_completes_while_devices_are_paused_and_nothing_is_lost() {
    if !kvm_is_there() {
        return;
    }
    for transport in [Transport::Pci, Transport::Mmio] {
        let rounds = verify_under(transport, |memory, devices| {
            devices.pause().expect("paused");
            let completed = report(memory, r::COMPLETED);
            std::thread::sleep(Duration::from_millis(10));
            // What was given back before the pause is counted later, and is no more than was in flight.
            let more = report(memory, r::COMPLETED) - completed;
            assert!(more <= DEPTH, "{more} requests were completed");
            devices.resume().expect("resumed");
        });
        assert_eq!(rounds, ROUNDS, "{transport:?}: the guest had come to its end before");
    }
}

#[test]
fn other_memory_is_taken_up_under_load() {
    if !kvm_is_there() {
        return;
    }
    for transport in [Transport::Pci, Transport::Mmio] {
        let rounds = verify_under(transport, |memory, devices| {
            let region = MmapRegion::new(1 << 20).expect("memory");
            let region = GuestRegionMmap::new(region, GuestAddress(1 << 40)).expect("a region");
            let map = memory.map().insert_region(Arc::new(region)).expect("another place");
            devices.set_memory(&GuestMemory::from_map(Arc::new(map))).expect("other memory");
            devices.refresh();
        });
        assert_eq!(rounds, ROUNDS, "{transport:?}: the guest had come to its end before");
    }
}
