//! Where everything lies in the guest's physical address space and on its ports.
//!
//! One page of constants, so that a reader with a guest's crash dump in hand finds each address here. The hole below 4
//! GiB is where a PC has its devices; memory that does not fit below it continues at 4 GiB.
use vm_memory::GuestAddress;

/// Guest memory below this address is one region from 0; everything up to 4 GiB belongs to devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// The first address behind the hole: memory beyond 3 GiB lies here.
pub const HIGH_MEMORY_START: u64 = 0x1_0000_0000;

/// The window in which the BARs of PCI functions are placed (256 MiB).
pub const PCI_WINDOW_START: u64 = 0xc000_0000;
/// Length of the PCI window in bytes.
pub const PCI_WINDOW_BYTES: u64 = 0x1000_0000;

/// The first virtio-mmio register block; block `n` lies `n * MMIO_STRIDE` behind it.
pub const MMIO_START: u64 = 0xd000_0000;
/// Distance between two virtio-mmio register blocks: a page each, so that a guest can map each separately.
pub const MMIO_STRIDE: u64 = 0x1000;

/// The PCI Express configuration window (ECAM) of the one bus: 32 devices x 8 functions x 4 KiB.
pub const ECAM_START: u64 = 0xe000_0000;
/// As many vCPUs as the 8-bit APIC ids of the tables can name, one id being the I/O APIC's and one meaning "all".
pub const VCPUS_MAX: usize = 254;
/// The smallest memory that holds the boot tables and anything worth running.
pub const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// How many virtio-pci devices fit: one bus of 32 places, less the host bridge's.
pub const PCI_DEVICES_MAX: usize = 31;

/// Length of the ECAM window of one bus in bytes.
pub const ECAM_BYTES: u64 = 0x10_0000;

/// The I/O APIC, emulated by KVM.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// The local APICs, emulated by KVM.
pub const LAPIC_START: u32 = 0xfee0_0000;
/// One page that KVM uses on processors without unrestricted guests.
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Three pages that KVM uses for the same purpose.
pub const TSS_START: usize = 0xfffb_d000;

/// Interrupt lines of the I/O APIC.
pub const IOAPIC_LINES: u32 = 24;
/// The line of the serial port, as on every PC.
pub const SERIAL_LINE: u32 = 4;
/// The first line given to a virtio-mmio device; each has a line of its own up to the last.
pub const MMIO_FIRST_LINE: u32 = 5;
/// How many virtio-mmio devices fit: one interrupt line each.
pub const MMIO_DEVICES_MAX: usize = (IOAPIC_LINES - MMIO_FIRST_LINE) as usize;

/// The serial port COM1: eight ports from here.
pub const SERIAL_PORT: u16 = 0x3f8;
/// ACPI sleep control register (ACPI 6.5, 4.8.3.7): writing [`SLEEP_VALUE_OFF`] powers the machine off.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, beside the control register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The sleep type that the DSDT's `\_S5` names.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// What powers the machine off when written to [`SLEEP_CONTROL_PORT`]: sleep type S5 and SLP_EN.
pub const SLEEP_VALUE_OFF: u8 = SLEEP_TYPE_OFF << 2 | 1 << 5;
/// The reset register of the FADT: the reset control register of a PC's chipset.
pub const RESET_PORT: u16 = 0xcf9;
/// What resets the machine when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0x06;

/// GDT of the boot processor at start.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// Start of day structure of a PVH kernel.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// List of modules (the initrd) of a PVH kernel.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6800);
/// Memory map of a PVH kernel.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
/// Boot parameters ("zero page") of a bzImage; never used together with PVH's structures.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Stack pointer of the boot processor at start.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity-mapping page tables for the 64-bit entry of a bzImage: PML4, then PDPT, then four page directories.
pub const BOOT_PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line in bytes without its final zero (`COMMAND_LINE_SIZE` of x86 Linux, less one).
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;
/// End of conventional memory; the extended BIOS data area of a PC begins here.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables: in the range that an operating system searches for "RSD PTR " when it is not told the address.
pub const ACPI_START: GuestAddress = GuestAddress(0xe_0000);
/// Room for ACPI tables in bytes.
pub const ACPI_BYTES: u64 = 0x1_0000;
/// Where a processor in real mode starts after a reset (F000:FFF0), and where kernels jump to make one.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// The first megabyte ends here; a bzImage is loaded from here.
pub const HIGH_LOAD_ADDRESS: u64 = 0x10_0000;

/// The regions of guest memory of `bytes` bytes: below the hole and, if it does not fit there, from 4 GiB.
pub fn memory_regions(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(HOLE_START);
    let mut regions = vec![(GuestAddress(0), low)];
    if bytes > low {
        regions.push((GuestAddress(HIGH_MEMORY_START), bytes - low));
    }
    regions
}

// No two windows overlap, and all of them lie in the hole.
const _: () = {
    assert!(PCI_WINDOW_START >= HOLE_START);
    assert!(PCI_WINDOW_START + PCI_WINDOW_BYTES <= MMIO_START);
    assert!(MMIO_START + MMIO_DEVICES_MAX as u64 * MMIO_STRIDE <= ECAM_START);
    assert!(ECAM_START + ECAM_BYTES <= IOAPIC_START as u64);
    assert!(IDENTITY_MAP_START + 0x1000 <= TSS_START as u64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_three_gib_goes_on_at_four() {
        assert_eq!(memory_regions(1 << 30), [(GuestAddress(0), 1 << 30)]);
        assert_eq!(memory_regions(3 << 30), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(memory_regions(5 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]);
    }
}
