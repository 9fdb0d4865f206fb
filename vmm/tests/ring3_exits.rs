//! In steady state a polled device costs its guest nothing but memory accesses: no exits and no notifications.

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_test_guest::{
    mailbox::{plan, report as r},
    report, run_measured,
};
use pollux_vmm::{ExitKind, Transport};

const REQUESTS: u64 = 5000;

fn measure(transport: Transport, depth: u64) {
    let mut words = vec![
        (plan::INTERRUPTS, 0),
        (plan::ACTION, plan::ACTION_MEASURE),
        (plan::DEPTH, depth),
        (plan::REQUESTS, REQUESTS),
        (plan::BYTES, 512),
        (plan::SESSIONS, 1),
    ];
    words.extend(device(transport));
    let mut rig = rig(IdlePolicy::Spin, &words);
    let (exits, kicks) = run_measured(&mut rig.machine).expect("the machine and its guest run");
    let ticks = report(rig.machine.memory(), r::TICKS) / REQUESTS;
    println!("{transport:?}, depth {depth}: {ticks} ticks a request, {kicks} kicks, {exits}");
    assert_eq!(kicks, 0);
    for kind in [ExitKind::PortRead, ExitKind::PortWrite, ExitKind::MmioRead, ExitKind::MmioWrite, ExitKind::Halt] {
        assert_eq!(exits.of(kind), 0, "{exits}");
    }
}

#[test]
fn pci_needs_no_exits() {
    if kvm_is_there() {
        measure(Transport::Pci, 1);
        measure(Transport::Pci, 32);
    }
}

#[test]
fn mmio_needs_no_exits() {
    if kvm_is_there() {
        measure(Transport::Mmio, 32);
    }
}
