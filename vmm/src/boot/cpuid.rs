//! The CPUID of a vCPU: what KVM supports, with this machine's topology in place of the host's.
//!
//! The topology is one package with as many cores as vCPUs, one thread each; the APIC id is the vCPU's index.
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::errno::Error as Errno;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES_INTEL: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_SIZES_AMD: u32 = 0x8000_0008;
const LEAF_CACHES_AMD: u32 = 0x8000_001d;
const LEAF_TOPOLOGY_AMD: u32 = 0x8000_001e;

/// Bits of leaf 1.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;

/// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What KVM supports, read once per machine.
pub(crate) struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

impl CpuidTemplate {
    /// Asks KVM. `vcpus` is how many the machine has.
    pub(crate) fn new(kvm: &Kvm, vcpus: usize) -> Result<CpuidTemplate, Errno> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let mut entries = supported.as_slice().to_vec();
        // KVM emulates the timer in its local APIC but, as that needs the irqchip in the kernel, older versions leave
        // it to us to report it.
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            for entry in entries.iter_mut().filter(|entry| entry.function == LEAF_FEATURES) {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
        }
        Ok(CpuidTemplate { entries, vcpus: vcpus as u32 })
    }

    /// The answers of one vCPU.
    pub(crate) fn for_vcpu(&self, index: usize) -> CpuId {
        let entries = build(&self.entries, self.vcpus, index as u32);
        CpuId::from_entries(&entries).expect("no more entries than KVM gave, plus four")
    }
}

fn build(supported: &[kvm_cpuid_entry2], vcpus: u32, apic_id: u32) -> Vec<kvm_cpuid_entry2> {
    let is_topology = |leaf| leaf == LEAF_TOPOLOGY || leaf == LEAF_TOPOLOGY_V2;
    let mut entries = Vec::with_capacity(supported.len() + 4);
    let mut has_topology = [false; 2];
    for entry in supported {
        if is_topology(entry.function) {
            has_topology[usize::from(entry.function == LEAF_TOPOLOGY_V2)] = true;
            continue;
        }
        let mut entry = *entry;
        adapt(&mut entry, vcpus, apic_id);
        entries.push(entry);
    }
    for (present, leaf) in has_topology.into_iter().zip([LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2]) {
        // There is always room: as many or more entries of the host's were left out.
        if present && entries.len() + 2 <= KVM_MAX_CPUID_ENTRIES {
            entries.extend(topology(leaf, vcpus, apic_id));
        }
    }
    entries
}

/// Puts the machine's topology into one entry that carries the host's.
fn adapt(entry: &mut kvm_cpuid_entry2, vcpus: u32, apic_id: u32) {
    match entry.function {
        LEAF_FEATURES => {
            entry.ecx |= ECX_HYPERVISOR;
            entry.ebx = entry.ebx & 0xffff | vcpus.min(255) << 16 | apic_id << 24;
            entry.edx &= !EDX_HYPER_THREADING;
            if vcpus > 1 {
                entry.edx |= EDX_HYPER_THREADING;
            }
        }
        LEAF_CACHES_INTEL | LEAF_CACHES_AMD => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { vcpus } else { 1 };
            entry.eax = entry.eax & !(0xfff << 14) | (sharing - 1) << 14;
            if entry.function == LEAF_CACHES_INTEL && entry.eax & 0x1f != 0 {
                entry.eax = entry.eax & 0x03ff_ffff | (vcpus - 1).min(63) << 26;
            }
        }
        LEAF_SIZES_AMD => {
            entry.ecx = entry.ecx & !0xf0ff | id_bits(vcpus) << 12 | (vcpus - 1).min(255);
        }
        LEAF_TOPOLOGY_AMD => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// The two levels of the extended topology leaves: threads of a core, cores of the package.
fn topology(leaf: u32, vcpus: u32, apic_id: u32) -> [kvm_cpuid_entry2; 2] {
    let level = |index, kind: u32, shift, count| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: apic_id,
        ..Default::default()
    };
    [level(0, LEVEL_THREAD, 0, 1), level(1, LEVEL_CORE, id_bits(vcpus), vcpus)]
}

/// How many bits of the APIC id tell the cores of the package apart.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries.iter().filter(|e| (e.function, e.index) == (function, index));
        let entry = *found.next().expect("the leaf is there");
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    #[test]
    fn each_vcpu_has_its_apic_id_and_all_have_one_topology() {
        let host = [entry(0x1, 0), entry(0xb, 0), entry(0xb, 1), entry(0xb, 2), entry(0x8000_001e, 0)];
        let entries = build(&host, 3, 2);
        let features = find(&entries, 0x1, 0);
        assert_eq!((features.ebx >> 24, features.ebx >> 16 & 0xff), (2, 3));
        assert_ne!(features.ecx & ECX_HYPERVISOR, 0);
        let cores = find(&entries, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(find(&entries, 0x8000_001e, 0).eax, 2);
        assert_eq!(entries.len(), 4);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let entries = build(&[entry(0x1, 0), entry(0x8000_0008, 0)], 1, 0);
        assert_eq!(find(&entries, 0x1, 0).edx & EDX_HYPER_THREADING, 0);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx & 0xf0ff, 0);
    }
}
