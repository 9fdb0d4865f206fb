//! A guest that accesses every register with every size and all kinds of values harms nobody: the machine lives, and
//! the device works after a reset.

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_test_guest::{
    mailbox::{plan, report as r},
    outcome, report,
};
use pollux_vmm::{Exit, Shutdown, Transport};

const ACCESSES: u64 = 3000;

fn abuse(transport: Transport) {
    let mut words = vec![
        (plan::INTERRUPTS, 0),
        (plan::ACTION, plan::ACTION_ABUSE),
        (plan::DEPTH, 4),
        (plan::REQUESTS, ACCESSES),
        (plan::BYTES, 512),
        (plan::SESSIONS, 1),
    ];
    words.extend(device(transport));
    let mut rig = rig(IdlePolicy::Adaptive, &words);
    assert_eq!(rig.machine.run(&Shutdown::new().expect("made")).expect("the machine lives"), Exit::PowerOff);
    outcome(rig.machine.memory()).expect("an outcome");
    assert_eq!(report(rig.machine.memory(), r::COMPLETED), 2 * ACCESSES);
    println!("{transport:?}: {}", rig.machine.exit_counts()[0]);
}

#[test]
fn random_accesses_are_harmless() {
    if kvm_is_there() {
        abuse(Transport::Pci);
        abuse(Transport::Mmio);
    }
}
