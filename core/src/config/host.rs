//! What a configuration is checked against: this host, and the limits of a machine.
use crate::cpus;
use std::{fs, path::Path};

/// What the checks need to know about this host. Fill it in by hand for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPUs that are there, ascending.
    pub cpus_present: Vec<usize>,
    /// Those of them that are switched on, ascending.
    pub cpus_online: Vec<usize>,
    /// Those of them that threads of this process can be pinned to, ascending.
    pub cpus_usable: Vec<usize>,
    /// Size of main memory in bytes; 0: unknown.
    pub memory_bytes: u64,
    /// The sizes of huge pages that the kernel knows.
    pub hugepages: Vec<HugepagePool>,
}

/// The huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugepagePool {
    /// Size of a page in bytes.
    pub page_bytes: u64,
    /// Pages that are still available: free ones, and those that the kernel may add.
    pub available: u64,
}

impl Host {
    /// This host, as `/sys`, `/proc` and the scheduler show it.
    pub fn probe() -> Self {
        let cpus_usable = cpus::usable();
        let listed = |name: &str| {
            let text = fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).ok();
            text.and_then(|list| cpus::parse_list(&list)).unwrap_or_else(|| cpus_usable.clone())
        };
        let (cpus_present, cpus_online) = (listed("present"), listed("online"));
        Host { cpus_present, cpus_online, cpus_usable, memory_bytes: memory_bytes(), hugepages: hugepage_pools() }
    }

    pub(super) fn hugepage_pool(&self, page_bytes: u64) -> Option<&HugepagePool> {
        self.hugepages.iter().find(|pool| pool.page_bytes == page_bytes)
    }
}

/// The limits of one machine, whatever the host. The machine's implementation provides the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineLimits {
    /// Most vCPUs.
    pub vcpus_max: usize,
    /// Least memory in bytes.
    pub memory_bytes_min: u64,
    /// Longest kernel command line in bytes.
    pub cmdline_bytes_max: usize,
    /// Most devices with `transport = "pci"`.
    pub pci_devices_max: usize,
    /// Most devices with `transport = "mmio"`.
    pub mmio_devices_max: usize,
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

fn hugepage_pools() -> Vec<HugepagePool> {
    let mut pools: Vec<HugepagePool> = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(HugepagePool { page_bytes: kib << 10, available: available_pages(&entry.path()) })
        })
        .collect();
    pools.sort_unstable_by_key(|pool| pool.page_bytes);
    pools
}

/// See the kernel's admin-guide/mm/hugetlbpage: pages that are free and not reserved, and pages that may be allocated
/// in addition.
fn available_pages(folder: &Path) -> u64 {
    let number = |file: &str| -> u64 {
        fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    free + number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_cpus_and_memory() {
        let host = Host::probe();
        assert!(!host.cpus_usable.is_empty() && host.memory_bytes > 0, "{host:?}");
        assert!(host.cpus_usable.iter().all(|cpu| host.cpus_online.contains(cpu)), "{host:?}");
    }
}
