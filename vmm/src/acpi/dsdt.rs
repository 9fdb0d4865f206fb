//! The DSDT: devices that a kernel cannot probe for, and what to write to power off.
use super::oem::{OEM, OEM_REVISION, OEM_TABLE};
use crate::layout::{
    ECAM_BYTES, ECAM_START, MMIO_STRIDE, PCI_WINDOW_BYTES, PCI_WINDOW_START, SERIAL_LINE, SERIAL_PORT, SLEEP_TYPE_OFF,
};
use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
        ResourceTemplate, Scope,
    },
    sdt::Sdt,
};

const DSDT_REVISION: u8 = 6;
/// Length of a table's header.
const HEADER_BYTES: u32 = 36;

/// A virtio-mmio device as the tables describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MmioDevice {
    /// Guest-physical address of its registers.
    pub(crate) address: u64,
    /// Its line on the I/O APIC.
    pub(crate) line: u32,
}

pub(super) fn dsdt(vcpus: usize, mmio: &[MmioDevice]) -> impl Aml {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    let mut aml = Vec::new();
    sleep_types(&mut aml);
    let mut devices = Vec::new();
    for index in 0..vcpus {
        processor(index, &mut devices);
    }
    pci(&mut devices);
    board(&mut devices);
    serial(&mut devices);
    for (index, device) in mmio.iter().enumerate() {
        virtio_mmio(index, *device, &mut devices);
    }
    Scope::new("_SB_".into(), vec![&Raw(&devices)]).to_aml_bytes(&mut aml);
    dsdt.append_slice(&aml);
    dsdt
}

/// AML that has been put together already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

/// `\_S5`: the one sleep state is "off".
fn sleep_types(aml: &mut Vec<u8>) {
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_OFF])).to_aml_bytes(aml);
}

/// A processor (ACPI 6.5, 8.4); its unique ID is that of its entry in the MADT.
fn processor(index: usize, aml: &mut Vec<u8>) {
    let name = format!("C{index:03X}");
    Device::new(name.as_str().into(), vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &index)])
        .to_aml_bytes(aml);
}

/// The PCI Express host bridge: one bus, one window. No interrupt pins are routed: devices have MSI-X only.
fn pci(aml: &mut Vec<u8>) {
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let window = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW_START as u32,
        (PCI_WINDOW_START + PCI_WINDOW_BYTES - 1) as u32,
        None,
    );
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &window])),
        ],
    )
    .to_aml_bytes(aml);
}

/// Board resources: a kernel uses the ECAM window only if it finds it reserved (PCI Firmware 3.3, 4.1.2).
fn board(aml: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, ECAM_START as u32, ECAM_BYTES as u32);
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>) {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let line = Interrupt::new(true, true, false, false, SERIAL_LINE);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
    .to_aml_bytes(aml);
}

/// A virtio-mmio device; LNRO0005 is the ID that Linux's driver looks for.
fn virtio_mmio(index: usize, device: MmioDevice, aml: &mut Vec<u8>) {
    let name = format!("VM{index:02X}");
    let registers = Memory32Fixed::new(true, device.address as u32, MMIO_STRIDE as u32);
    let line = Interrupt::new(true, true, false, false, device.line);
    Device::new(
        name.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &line])),
        ],
    )
    .to_aml_bytes(aml);
}
