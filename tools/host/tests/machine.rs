//! The machine of a host ends with the host, whoever runs it.
mod common;

use common::{PATIENCE, block, device, host};
use pollux_core::memory::GuestMemory;
use pollux_host::description::MachineDescription;
use pollux_testing::blk::wait_for;
use pollux_vmm::{
    Boot, ConsoleSpec, Exit, MachineSpec, RawGuest, Reboot, Shutdown, Transport, VcpuSpec, kvm_regs, kvm_sregs,
};
use std::{fs::File, io, sync::Arc, thread};
use vm_memory::{Bytes, GuestAddress};

/// A guest that runs for ever.
struct Spins;

impl RawGuest for Spins {
    fn load(&self, memory: &GuestMemory) -> io::Result<()> {
        // jmp $
        memory.map().write_slice(&[0xeb, 0xfe], GuestAddress(0x1000)).map_err(io::Error::other)
    }

    fn registers(&self, _vcpu: usize, registers: &mut kvm_regs, system: &mut kvm_sregs) {
        (system.cs.base, system.cs.selector, registers.rip) = (0, 0, 0x1000);
    }
}

#[test]
fn a_machine_that_another_thread_runs_ends_before_the_devices_and_workers_of_a_host_that_is_stopped() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("SKIPPED: cannot open /dev/kvm: {error}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let host = host(folder.path());
    let spec = MachineSpec {
        name: "vm".into(),
        vcpus: vec![VcpuSpec::default()],
        memory_bytes: 64 << 20,
        hugepages: None,
        boot: Boot::Raw(Arc::new(Spins)),
        console: ConsoleSpec::Null,
        reboot: Reboot::Restart,
    };
    host.make_machine(spec).expect("a machine");
    host.add_backend(block("disk")).expect("a backend");
    host.add_device(device("blk0", "disk"), PATIENCE).expect("a device");
    host.attach("blk0", Transport::Pci).expect("attached");
    let runs = |machine: Option<MachineDescription>| machine.is_some_and(|machine| machine.running);
    thread::scope(|scope| {
        let run = scope.spawn(|| host.run_machine(&Shutdown::new().expect("a shutdown")));
        wait_for("the machine", || runs(host.describe().machine).then_some(()));
        host.stop();
        assert!(!runs(host.describe().machine));
        assert_eq!(run.join().expect("no panic").expect("it ran"), Exit::Stopped(None));
    });
    let left = host.describe();
    assert!(left.devices.is_empty() && left.workers.is_empty(), "{left:?}");
}
