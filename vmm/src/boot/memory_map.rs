//! The memory map that a kernel is given: what is memory, what is reserved, where the ACPI tables are.
use crate::layout::{ACPI_BYTES, ACPI_START, ECAM_BYTES, ECAM_START, HIGH_LOAD_ADDRESS, LOW_MEMORY_END};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// What a range is used for. The numbers are those of the E820 map, which PVH uses too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Memory = 1,
    Reserved = 2,
    /// Holds ACPI tables; free once the kernel has read them.
    Acpi = 3,
}

/// One line of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
}

/// The map of a machine with this memory.
pub(super) fn memory_map(memory: &GuestMemoryMmap<()>) -> Vec<Range> {
    let range = |start, end: u64, kind| Range { start, bytes: end - start, kind };
    let acpi = ACPI_START.raw_value();
    let mut map = vec![
        range(0, LOW_MEMORY_END, Kind::Memory),
        range(LOW_MEMORY_END, acpi, Kind::Reserved),
        range(acpi, acpi + ACPI_BYTES, Kind::Acpi),
        // A PC's firmware; here, it is only the reset vector.
        range(acpi + ACPI_BYTES, HIGH_LOAD_ADDRESS, Kind::Reserved),
    ];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let end = start + region.len();
        // The first megabyte of the first region is spoken for above.
        if end > HIGH_LOAD_ADDRESS {
            map.push(range(start.max(HIGH_LOAD_ADDRESS), end, Kind::Memory));
        }
    }
    // Linux uses the ECAM window only if it is reserved here or in the DSDT (it is in both).
    map.push(range(ECAM_START, ECAM_START + ECAM_BYTES, Kind::Reserved));
    map.sort_by_key(|range| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn ranges_are_sorted_and_do_not_overlap() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20), (GuestAddress(1 << 32), 32 << 20)])
            .expect("memory");
        let map = memory_map(&memory);
        assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start));
        let usable: u64 = map.iter().filter(|range| range.kind == Kind::Memory).map(|range| range.bytes).sum();
        assert_eq!(usable, (63 << 20) + LOW_MEMORY_END + (32 << 20));
    }
}
