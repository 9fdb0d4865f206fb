//! What this machine is and has.
use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

/// Whether this process may install packages.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Whether a program is on the path, or where Debian keeps those of root.
pub(crate) fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| fs::metadata(folder.join(name)).is_ok_and(|file| file.permissions().mode() & 0o111 != 0))
}

/// `None` if KVM here boots stock kernels, else why it does not.
///
/// A `/dev/kvm` alone says little: without the processor's own virtualisation it cannot run a stock kernel.
pub(crate) fn kvm_obstacle() -> Option<&'static str> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("/dev/kvm is missing or not ours to open");
    }
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = processors.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let hardware = flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx");
    (!hardware).then_some("this processor shows neither svm nor vmx")
}

/// The CPUs that this process may run on.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0");
    cpu_list(list.trim())
}

/// The numbers in a list such as `0-2,5`.
fn cpu_list(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_read() {
        assert_eq!(cpu_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(cpu_list("7"), [7]);
        assert!(!allowed_cpus().is_empty());
    }

    #[test]
    fn programs_are_found() {
        assert!(has_program("sh"));
        assert!(!has_program("no-such-program"));
    }
}
