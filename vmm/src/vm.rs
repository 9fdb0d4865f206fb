//! One KVM virtual machine, from power-on to power-off or reset; after a reset there is a new one.
use crate::layout::{IDENTITY_MAP_START, TSS_START};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VmFd};
use pollux_core::memory::GuestMemory;
use std::sync::Arc;
use vmm_sys_util::errno::Error as Errno;

/// The capabilities that KVM must have, and what each is needed for.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "guest memory"),
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::IrqRouting, "message-signalled interrupts"),
    (Cap::Ioeventfd, "notifications by eventfd"),
    (Cap::ImmediateExit, "stopping a vCPU without a race"),
    (Cap::ExtCpuid, "processor identification"),
];

/// The first thing that this host's KVM cannot do.
pub(crate) fn missing_capability(kvm: &Kvm) -> Option<&'static str> {
    NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)).map(|(_, use_)| *use_)
}

/// A KVM virtual machine with memory and interrupt controllers, without vCPUs.
pub struct Vm {
    fd: Arc<VmFd>,
    /// Kept for as long as KVM maps it into the guest.
    _memory: GuestMemory,
}

impl Vm {
    /// A virtual machine with this memory.
    ///
    /// # Errors
    /// KVM cannot make it.
    pub fn new(kvm: &Kvm, memory: &GuestMemory) -> Result<Vm, Errno> {
        // The kernel gives up with EINTR if anything, a timer of the process included, interrupts it while it takes all
        // locks of the address space (mm/mmap.c, mm_take_all_locks). Nothing has been made then.
        let fd = loop {
            match kvm.create_vm() {
                Err(error) if error.errno() == libc::EINTR => continue,
                made => break made?,
            }
        };
        // Both are wanted before the first vCPU on Intel processors and do no harm elsewhere.
        fd.set_identity_map_address(IDENTITY_MAP_START)?;
        fd.set_tss_address(TSS_START)?;
        fd.create_irq_chip()?;
        for (slot, region) in memory.regions().into_iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.guest_address,
                memory_size: region.length as u64,
                userspace_addr: region.base as u64,
            };
            // SAFETY: the range is mapped for as long as `memory` lives, which this structure keeps, and regions
            // do not overlap. vCPUs are gone before the structure is (see `Cycle`).
            unsafe { fd.set_user_memory_region(region)? };
        }
        Ok(Vm { fd: Arc::new(fd), _memory: memory.clone() })
    }

    /// The file descriptor, for registering events and interrupts.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }
}
