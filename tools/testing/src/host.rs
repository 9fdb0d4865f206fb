//! A machine that a configuration file is checked against.
use pollux_core::config::{Host, HugepagePool, MachineLimits};

/// A host of five CPUs, of which four are online and three may be used.
pub fn host() -> Host {
    Host {
        cpus_online: vec![0, 1, 2, 3],
        cpus_usable: vec![0, 1, 2],
        cpus_present: vec![0, 1, 2, 3, 4],
        memory_bytes: 8 << 30,
        hugepages: vec![HugepagePool { page_bytes: 2 << 20, available: 512 }],
    }
}

/// What a machine can have.
pub fn limits() -> MachineLimits {
    MachineLimits {
        vcpus_max: 8,
        memory_bytes_min: 4 << 20,
        cmdline_bytes_max: 2047,
        pci_devices_max: 31,
        mmio_devices_max: 8,
    }
}
