//! While an MSI-X vector is masked its interrupt stays pending, shows in the pending bits, and arrives when the
//! vector is unmasked (PCI 3.0, 6.8.2.2).

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_test_guest::{
    mailbox::{plan, report as r},
    outcome, report,
};
use pollux_vmm::{Exit, Shutdown, Transport};

#[test]
fn a_masked_interrupt_is_pending_and_arrives_later() {
    if !kvm_is_there() {
        return;
    }
    let mut words = vec![
        (plan::INTERRUPTS, 1),
        (plan::ACTION, plan::ACTION_MASK),
        (plan::DEPTH, 1),
        (plan::REQUESTS, 1),
        (plan::BYTES, 512),
        (plan::SESSIONS, 2),
    ];
    words.extend(device(Transport::Pci));
    let mut rig = rig(IdlePolicy::Spin, &words);
    assert_eq!(rig.machine.run(&Shutdown::new().expect("made")).expect("the machine runs"), Exit::PowerOff);
    outcome(rig.machine.memory()).expect("an outcome");
    assert_eq!(report(rig.machine.memory(), r::PENDING), 1);
    assert_eq!(report(rig.machine.memory(), r::INTERRUPTS), 2);
}
