//! A PCI function whose Bus Master Enable bit is clear accesses no memory and sends no message (PCI 3.0, 6.2.2).

mod common;

use common::{device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_test_guest::{mailbox::plan, outcome};
use pollux_vmm::{Exit, Shutdown, Transport};

#[test]
fn a_read_without_bus_mastering_does_not_complete_and_completes_with_it() {
    if !kvm_is_there() {
        return;
    }
    for policy in [IdlePolicy::Spin, IdlePolicy::Interrupt] {
        let mut words = vec![
            (plan::INTERRUPTS, 1),
            (plan::ACTION, plan::ACTION_BUS_MASTER),
            (plan::DEPTH, 4),
            (plan::REQUESTS, 20),
            (plan::BYTES, 512),
            (plan::SESSIONS, 2),
        ];
        words.extend(device(Transport::Pci));
        let mut rig = rig(policy, &words);
        assert_eq!(rig.machine.run(&Shutdown::new().expect("made")).expect("the machine runs"), Exit::PowerOff);
        outcome(rig.machine.memory()).expect("an outcome");
    }
}
