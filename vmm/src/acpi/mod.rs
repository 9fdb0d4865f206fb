//! The ACPI tables by which a stock kernel finds processors, interrupt controllers, PCI, virtio-mmio devices, the
//! serial port, and the registers to power off and reset.
//!
//! The machine is a "hardware-reduced" one (ACPI 6.5, 4.1): no legacy interrupt controller, timer or power
//! management block that a kernel would have to probe, and nothing of the kind is emulated.

mod dsdt;
mod oem;
mod tables;

use crate::layout::{ACPI_BYTES, ACPI_START};
use acpi_tables::{Aml, rsdp::Rsdp, xsdt::XSDT};
pub(crate) use dsdt::MmioDevice;
use oem::{OEM, OEM_REVISION, OEM_TABLE};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Writes all tables into guest memory and returns where the root pointer is.
pub(crate) fn write(
    memory: &GuestMemoryMmap<()>,
    vcpus: usize,
    mmio: &[MmioDevice],
) -> Result<GuestAddress, GuestMemoryError> {
    let (rsdp, bytes) = build(vcpus, mmio);
    // The DSDT grows with vCPUs and devices, both bounded; 64 KiB hold 255 and 19 of them several times over.
    assert!(bytes.len() as u64 <= ACPI_BYTES, "ACPI tables outgrew their room");
    memory.write_slice(&bytes, ACPI_START)?;
    Ok(rsdp)
}

/// The tables as they lie from `ACPI_START`, root pointer first.
fn build(vcpus: usize, mmio: &[MmioDevice]) -> (GuestAddress, Vec<u8>) {
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let dsdt = image.add(&dsdt::dsdt(vcpus, mmio));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [image.add(&tables::fadt(dsdt)), image.add(&tables::madt(vcpus)), image.add(&tables::mcfg())] {
        xsdt.add_entry(table);
    }
    let xsdt = image.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    (ACPI_START, image.bytes)
}

/// Tables one behind the other.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends a table and returns its guest-physical address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = ACPI_START.raw_value() + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_at(image: &[u8], address: u64) -> &[u8] {
        let start = (address - ACPI_START.raw_value()) as usize;
        let length = u32::from_le_bytes(image[start + 4..start + 8].try_into().expect("the length fits"));
        &image[start..start + length as usize]
    }

    fn pointers(bytes: &[u8]) -> Vec<u64> {
        bytes.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().expect("the length fits"))).collect()
    }

    fn checksum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn a_kernel_can_walk_from_the_root_pointer_to_every_table() {
        let mmio = [MmioDevice { address: 0xd000_0000, line: 5 }];
        let (rsdp, image) = build(2, &mmio);
        assert_eq!(rsdp, ACPI_START);
        assert_eq!(image[..8], *b"RSD PTR ");
        assert_eq!((checksum(&image[..20]), checksum(&image[..36])), (0, 0));
        let xsdt = table_at(&image, pointers(&image[24..32])[0]);
        let mut signatures = Vec::new();
        for address in pointers(&xsdt[36..]) {
            let table = table_at(&image, address);
            assert_eq!(checksum(table), 0);
            signatures.push(table[..4].to_vec());
            if table[..4] == *b"FACP" {
                let dsdt = table_at(&image, pointers(&table[140..148])[0]);
                assert_eq!((&dsdt[..4], checksum(dsdt)), (&b"DSDT"[..], 0));
            }
        }
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
    }

    #[test]
    fn the_tables_of_the_largest_machine_fit() {
        let mmio = [MmioDevice { address: 0xd000_0000, line: 5 }; crate::layout::MMIO_DEVICES_MAX];
        let (_, image) = build(255, &mmio);
        assert!((image.len() as u64) < ACPI_BYTES / 2, "{} bytes", image.len());
    }
}
