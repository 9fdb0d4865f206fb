//! In steady state a polled device costs its guest nothing but memory accesses: no exits and no notifications.

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_vmm::testing::mailbox::{plan, report as r};
use pollux_vmm::testing::{go, outcome, report, wait_for_phase};
use pollux_vmm::{Exit, ExitKind, Shutdown, Transport};

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
    let memory = rig.machine.memory().clone();
    let exit_counts = rig.machine.exit_counter();
    let observed = std::thread::scope(|scope| {
        let observer = scope.spawn(|| {
            wait_for_phase(&memory, 1)?;
            let before = (exit_counts()[0], report(&memory, r::KICKS));
            go(&memory, 1);
            wait_for_phase(&memory, 2)?;
            let after = (exit_counts()[0], report(&memory, r::KICKS));
            go(&memory, 2);
            Ok::<_, String>((after.0.since(&before.0), after.1 - before.1))
        });
        let exit = rig.machine.run(&Shutdown::new().unwrap()).expect("the machine runs");
        assert_eq!(exit, Exit::PowerOff);
        observer.join().unwrap()
    });
    outcome(&memory).unwrap();
    let (exits, kicks) = observed.unwrap();
    let ticks = report(&memory, r::TICKS) / REQUESTS;
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
