//! A machine with block devices for the test guest.
#![allow(dead_code)] // each test uses a part

use pollux_core::{
    device::blk::{Blk, BlkOptions},
    plugin::{BlockBackend, OpenOptions, Plugin},
    queue::QueueOptions,
    stats::StatsSegment,
    worker::{IdlePolicy, Worker},
};
use pollux_test_guest::{TestGuest, machine_spec};
use pollux_testing::build;
use pollux_vmm::{Machine, Transport};
use std::sync::Arc;

/// Whether a test can run here; if not, says so.
pub(crate) fn kvm_is_there() -> bool {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: cannot open /dev/kvm: {error}");
            false
        }
    }
}

/// A machine and what serves its devices.
pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) guest: Arc<TestGuest>,
    pub(crate) stats: StatsSegment,
    // Dropped after the machine, whose devices have queues on it.
    pub(crate) worker: Worker,
}

/// A machine with a block device on PCI (device 1) and one on MMIO (the first block), for a guest with this plan.
pub(crate) fn rig(idle: IdlePolicy, plan: &[(usize, u64)]) -> Rig {
    let guest = TestGuest::new(plan).expect("the test guest compiles");
    let worker = Worker::spawn("io0", None, idle).expect("a worker");
    let stats = StatsSegment::anonymous(2).expect("statistics");
    let mut machine = Machine::new(machine_spec(&guest)).expect("a machine");
    // The whole of Pollux: the disk is a real plugin in its own shared library.
    let plugin = Plugin::load(&build::plugin("pollux-mem")).expect("the plugin mem");
    let options = OpenOptions { json: r#"{"size": 8388608}"#.into(), ..OpenOptions::default() };
    for (name, transport) in [("blk0", Transport::Pci), ("blk1", Transport::Mmio)] {
        let backend = BlockBackend::open(&plugin, name, &options).expect("a disk");
        let options = BlkOptions {
            name: name.into(),
            serial: String::new(),
            workers: vec![worker.handle()],
            queues: QueueOptions { latency_sample: 0, ..QueueOptions::default() },
        };
        machine.attach(Box::new(Blk::new(options, backend, &stats)), transport).expect("room on the bus");
    }
    Rig { machine, guest, stats, worker }
}

/// The plan's words for a device of [`rig`].
pub(crate) fn device(transport: Transport) -> [(usize, u64); 3] {
    use pollux_test_guest::mailbox::plan;
    match transport {
        Transport::Pci => [(plan::TRANSPORT, 0), (plan::DEVICE, 1), (plan::LINE, 0)],
        Transport::Mmio => [(plan::TRANSPORT, 1), (plan::DEVICE, 0xd000_0000), (plan::LINE, 5)],
    }
}
