//! The registers with which the boot processor starts a kernel, and what all processors are given at start.
use super::kernel::Error;
use crate::layout::{BOOT_GDT, BOOT_PAGE_TABLES, BOOT_STACK};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestMemoryMmap};
use vmm_sys_util::errno::Error as Errno;

/// How the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// 64-bit mode with identity-mapped memory; rsi points to the zero page.
    LongMode { rip: u64, zero_page: u64 },
    /// 32-bit protected mode without paging; rbx points to the start info.
    Pvh { rip: u64, start_info: u64 },
}

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs on, and memory that none of them covers is write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets of the local vector table's pins in the local APIC's registers, and what to put there: the boot
/// processor's LINT0 takes the legacy interrupt controller, LINT1 of all processors the NMI.
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const DELIVERY_EXTERNAL: u32 = 0b111 << 8;
const DELIVERY_NMI: u32 = 0b100 << 8;

/// Index of each descriptor in the boot GDT.
const CODE: u16 = 1;
const DATA: u16 = 2;
const TASK: u16 = 3;

/// Descriptor types.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TASK_BUSY: u8 = 0xb;

/// Writes the boot GDT. Before the boot processor starts.
pub(crate) fn write_gdt(memory: &GuestMemoryMmap<()>, entry: Entry) -> Result<(), Error> {
    let long = matches!(entry, Entry::LongMode { .. });
    let table = [0, descriptor(&code(long)), descriptor(&data()), descriptor(&task())];
    for (index, descriptor) in table.into_iter().enumerate() {
        memory.write_obj(descriptor, BOOT_GDT.unchecked_add(index as u64 * 8))?;
    }
    Ok(())
}

/// Sets the boot processor to enter the kernel.
pub(crate) fn set_entry(vcpu: &VcpuFd, entry: Entry) -> Result<(), Errno> {
    let mut sregs = vcpu.get_sregs()?;
    let mut regs = vcpu.get_regs()?;
    sregs.gdt.base = BOOT_GDT.raw_value();
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.ds = data();
    sregs.es = data();
    sregs.fs = data();
    sregs.gs = data();
    sregs.ss = data();
    sregs.tr = task();
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    regs.rflags = RFLAGS_RESERVED;
    match entry {
        Entry::LongMode { rip, zero_page } => {
            sregs.cs = code(true);
            sregs.cr3 = BOOT_PAGE_TABLES.raw_value();
            sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
            sregs.cr0 |= CR0_PAGING;
            sregs.efer = EFER_LONG_MODE;
            regs.rip = rip;
            regs.rsi = zero_page;
            regs.rsp = BOOT_STACK;
            regs.rbp = BOOT_STACK;
        }
        Entry::Pvh { rip, start_info } => {
            sregs.cs = code(false);
            sregs.efer = 0;
            regs.rip = rip;
            regs.rbx = start_info;
        }
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)
}

/// What every processor gets, whatever it runs: memory types, fast string operations, APIC pins.
pub(crate) fn set_common(vcpu: &VcpuFd) -> Result<(), Errno> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    for msr in [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK)]
    {
        let msrs = Msrs::from_entries(&[msr]).expect("one entry fits");
        if vcpu.set_msrs(&msrs)? == 0 {
            tracing::debug!(msr = msr.index, "this KVM does not let us set an MSR");
        }
    }
    let mut lapic = vcpu.get_lapic()?;
    for (register, delivery) in [(LAPIC_LINT0, DELIVERY_EXTERNAL), (LAPIC_LINT1, DELIVERY_NMI)] {
        for (byte, value) in delivery.to_le_bytes().into_iter().enumerate() {
            lapic.regs[register + byte] = value as _;
        }
    }
    vcpu.set_lapic(&lapic)
}

/// Lets a processor run at once instead of waiting for another to start it.
pub(crate) fn set_runnable(vcpu: &VcpuFd) -> Result<(), Errno> {
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
}

fn code(long: bool) -> kvm_segment {
    kvm_segment { l: long.into(), db: (!long).into(), ..flat(CODE, TYPE_CODE) }
}

fn data() -> kvm_segment {
    flat(DATA, TYPE_DATA)
}

fn task() -> kvm_segment {
    kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..flat(TASK, TYPE_TASK_BUSY) }
}

/// A present segment of privilege level 0 over the first 4 GiB.
fn flat(index: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The GDT's form of a segment (AMD64 manual, volume 2, 4.7 and 4.8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g != 0 { segment.limit >> 12 } else { segment.limit });
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.avl) << 12
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | flags << 40
        | (limit >> 16 & 0xf) << 48
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x0000_8b00_0000_0067);
    }
}
