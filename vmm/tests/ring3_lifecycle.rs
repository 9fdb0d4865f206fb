//! A machine ends as its guest or its user wants: power-off, reset, and a stop while the guest does not cooperate.

mod common;

use common::{Rig, device, kvm_is_there, rig};
use pollux_core::worker::IdlePolicy;
use pollux_test_guest::{
    PATIENCE,
    mailbox::{plan, report as r},
    outcome, report,
};
use pollux_vmm::{Exit, Machine, Reboot, Shutdown, Transport};
use std::time::Instant;

const POWER_OFF: u64 = 0;
const RESET: u64 = 1;
const SPIN: u64 = 2;

fn rig_that_ends(end: u64) -> Rig {
    let mut words = vec![
        (plan::INTERRUPTS, 1),
        (plan::DEPTH, 4),
        (plan::REQUESTS, 20),
        (plan::BYTES, 512),
        (plan::SESSIONS, 1),
        (plan::END, end),
    ];
    words.extend(device(Transport::Pci));
    rig(IdlePolicy::Adaptive, &words)
}

/// Asks for a stop as soon as `condition` holds, while the machine runs.
fn run_until(machine: &mut Machine, condition: impl Fn() -> bool + Send + Sync) -> Exit {
    let shutdown = Shutdown::new().expect("made");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !condition() && start.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            shutdown.request();
        });
        machine.run(&shutdown).expect("the machine runs")
    })
}

#[test]
fn a_machine_can_run_again_after_power_off() {
    if !kvm_is_there() {
        return;
    }
    let mut rig = rig_that_ends(POWER_OFF);
    for loads in 1..=3 {
        assert_eq!(rig.machine.run(&Shutdown::new().expect("made")).expect("the machine runs"), Exit::PowerOff);
        outcome(rig.machine.memory()).expect("an outcome");
        assert_eq!(rig.guest.loads(), loads);
    }
}

#[test]
fn a_reset_ends_the_run_if_it_is_to() {
    if !kvm_is_there() {
        return;
    }
    let mut rig = rig_that_ends(RESET);
    assert_eq!(rig.machine.run(&Shutdown::new().expect("made")).expect("the machine runs"), Exit::Reboot);
    outcome(rig.machine.memory()).expect("an outcome");
}

#[test]
fn a_reset_starts_the_machine_again() {
    if !kvm_is_there() {
        return;
    }
    let Rig { machine, guest, stats: _stats, worker: _worker } = rig_that_ends(RESET);
    let mut machine = machine.with_reboot(Reboot::Restart);
    let exit = run_until(&mut machine, || guest.loads() > 5);
    assert_eq!(exit, Exit::Stopped(None));
    assert!(guest.loads() > 5, "{} starts", guest.loads());
}

#[test]
fn a_stop_does_not_need_the_guest() {
    if !kvm_is_there() {
        return;
    }
    let mut rig = rig_that_ends(SPIN);
    let memory = rig.machine.memory().clone();
    let exit = run_until(&mut rig.machine, || report(&memory, r::DONE) == 1);
    assert_eq!(exit, Exit::Stopped(None));
    outcome(&memory).expect("an outcome");
}

#[test]
fn a_stop_asked_for_before_the_start_is_heard() {
    if !kvm_is_there() {
        return;
    }
    let mut rig = rig_that_ends(SPIN);
    let shutdown = Shutdown::new().expect("made");
    shutdown.request();
    assert_eq!(rig.machine.run(&shutdown).expect("the machine runs"), Exit::Stopped(None));
}
