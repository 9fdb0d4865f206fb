//! The fixed-format tables: FADT, MADT, MCFG.
use super::oem::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{
    ECAM_START, IOAPIC_START, LAPIC_START, RESET_PORT, RESET_VALUE, SERIAL_LINE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use acpi_tables::{
    Aml,
    fadt::{FADT, FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    mcfg::MCFG,
    sdt::Sdt,
};

/// FADT boot architecture flags (ACPI 6.5, 5.2.9.3): there is no VGA and no real-time clock in CMOS to look for.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// Where to power off and reset.
pub(super) fn fadt(dsdt: u64) -> FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// Bytes of the MADT before its entries: header, address of the local APICs, flags.
const MADT_BYTES: u32 = 36 + 8;
const MADT_REVISION: u8 = 5;
const ENTRY_LOCAL_APIC: u8 = 0;
const ENTRY_IO_APIC: u8 = 1;
const ENTRY_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_ENABLED: u32 = 1;

/// Processors and interrupt controllers (ACPI 6.5, 5.2.12).
pub(super) fn madt(vcpus: usize) -> impl Aml {
    let mut madt = Sdt::new(*b"APIC", MADT_BYTES, MADT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, LAPIC_START);
    for id in 0..vcpus as u8 {
        madt.append_slice(&[ENTRY_LOCAL_APIC, 8, id, id]);
        madt.append_slice(&LOCAL_APIC_ENABLED.to_le_bytes());
    }
    let io_apic_id = vcpus as u8;
    madt.append_slice(&[ENTRY_IO_APIC, 12, io_apic_id, 0]);
    madt.append_slice(&IOAPIC_START.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // The serial port's ISA interrupt is the I/O APIC's line of the same number, edge-triggered.
    madt.append_slice(&[ENTRY_SOURCE_OVERRIDE, 10, 0, SERIAL_LINE as u8]);
    madt.append_slice(&SERIAL_LINE.to_le_bytes());
    madt.append_slice(&[0, 0]);
    madt
}

/// Where the PCI Express configuration window is (PCI Firmware 3.3, 4.1.2).
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM_START, 0, 0, 0);
    mcfg
}
