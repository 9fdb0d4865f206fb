//! A guest whose driver runs at privilege level 3 writes to a disk, reads back and compares: by both transports,
//! polling and with interrupts, starting and resetting the device in between, with as much as possible running
//! through KVM.

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_test_guest::{
    mailbox::{plan, report as r},
    outcome, report,
};
use pollux_vmm::{Exit, Shutdown, Transport};

const REQUESTS: u64 = 100;
const SESSIONS: u64 = 2;

/// Runs the guest to its end and returns how many interrupts it got.
fn verify(transport: Transport, idle: IdlePolicy, interrupts: u64, depth: u64) -> u64 {
    let mut words = vec![
        (plan::INTERRUPTS, interrupts),
        (plan::ACTION, plan::ACTION_VERIFY),
        (plan::DEPTH, depth),
        (plan::REQUESTS, REQUESTS),
        (plan::BYTES, 4096),
        (plan::SESSIONS, SESSIONS),
    ];
    words.extend(device(transport));
    let mut rig = rig(idle, &words);
    let exit = rig.machine.run(&Shutdown::new().expect("made")).expect("the machine runs");
    outcome(rig.machine.memory()).expect("an outcome");
    assert_eq!(exit, Exit::PowerOff);
    let memory = rig.machine.memory();
    assert_eq!(report(memory, r::CAPACITY), (8 << 20) / 512);
    assert_eq!(report(memory, r::COMPLETED), SESSIONS * 2 * REQUESTS);
    println!(
        "{transport:?}, {idle}, depth {depth}: {} kicks, {}",
        report(memory, r::KICKS),
        rig.machine.exit_counts()[0]
    );
    report(memory, r::INTERRUPTS)
}

#[test]
fn pci_polling() {
    if kvm_is_there() {
        assert_eq!(verify(Transport::Pci, IdlePolicy::Spin, 0, 8), 0);
    }
}

#[test]
fn pci_with_interrupts() {
    if kvm_is_there() {
        let interrupts = verify(Transport::Pci, IdlePolicy::Spin, 1, 1);
        assert!((1..=SESSIONS * 2 * REQUESTS).contains(&interrupts), "{interrupts} interrupts");
    }
}

#[test]
fn pci_with_a_worker_that_sleeps() {
    if kvm_is_there() {
        verify(Transport::Pci, IdlePolicy::Adaptive, 1, 4);
    }
}

#[test]
fn mmio_polling() {
    if kvm_is_there() {
        assert_eq!(verify(Transport::Mmio, IdlePolicy::Spin, 0, 8), 0);
    }
}

#[test]
fn mmio_with_interrupts() {
    if kvm_is_there() {
        let interrupts = verify(Transport::Mmio, IdlePolicy::Spin, 1, 1);
        assert!((1..=SESSIONS * 2 * REQUESTS).contains(&interrupts), "{interrupts} interrupts");
    }
}

#[test]
fn mmio_with_a_worker_that_sleeps() {
    if kvm_is_there() {
        verify(Transport::Mmio, IdlePolicy::Adaptive, 1, 4);
    }
}
