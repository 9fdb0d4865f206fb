//! What a configuration is checked against: this host, and what a machine can take.
use super::Context;
use std::{fs, path::Path};

/// What the checks need to know of this host. Fill it by hand for another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPUs that are there and switched on, ascending.
    pub cpus_online: Vec<usize>,
    /// Those of them that this process may use, ascending.
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
    /// Pages that can still be had: free ones, and those that the kernel may add.
    pub available: u64,
}

impl Host {
    /// This host, as `/sys`, `/proc` and the scheduler show it.
    pub fn probe() -> Self {
        let mut cpus_usable: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        cpus_usable.sort_unstable();
        let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
        let cpus_online = online.and_then(|list| parse_cpu_list(&list)).unwrap_or_else(|| cpus_usable.clone());
        Host { cpus_online, cpus_usable, memory_bytes: memory_bytes(), hugepages: hugepage_pools() }
    }

    pub(super) fn hugepage_pool(&self, page_bytes: u64) -> Option<&HugepagePool> {
        self.hugepages.iter().find(|pool| pool.page_bytes == page_bytes)
    }
}

/// What one machine can take, whatever the host. The numbers are those of the machine's builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
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

impl Context<'_> {
    /// The path that a name in the file stands for.
    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.join(name)
    }
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

/// See the kernel's admin-guide/mm/hugetlbpage: what is free and not promised, and what may be allocated on top.
fn available_pages(folder: &Path) -> u64 {
    let number = |file: &str| -> u64 {
        fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    let free = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    free + number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"))
}

/// Reads the kernel's notation of a set of CPUs: `0-3,8`.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        match part.split_once('-') {
            Some((first, last)) => cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?),
            None => cpus.push(part.parse().ok()?),
        }
    }
    Some(cpus)
}

/// Writes it: the reverse of [`parse_cpu_list`]. `cpus` is ascending.
pub(super) fn cpu_list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some(range) if range.1 + 1 == cpu => range.1 = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let parts: Vec<String> = ranges
        .iter()
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_and_written_as_the_kernel_does() {
        for list in ["0", "0-3", "0-3,8", "1,3,5-6"] {
            assert_eq!(cpu_list(&parse_cpu_list(list).expect(list)), list);
        }
        assert_eq!(parse_cpu_list("\n"), None);
    }

    #[test]
    fn this_host_has_cpus_and_memory() {
        let host = Host::probe();
        assert!(!host.cpus_usable.is_empty() && host.memory_bytes > 0, "{host:?}");
        assert!(host.cpus_usable.iter().all(|cpu| host.cpus_online.contains(cpu)), "{host:?}");
    }
}
