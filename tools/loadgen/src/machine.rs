//! Facts about the machine that belong beside every result.
use serde::Serialize;
use std::fs;

/// Facts about this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: Vec<usize>,
    /// Kernel release.
    pub kernel: String,
    /// Whether it runs under a hypervisor.
    pub is_virtual: bool,
    /// Bytes of memory.
    pub memory: u64,
}

impl Machine {
    /// Looks.
    pub fn new() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let memory = read("/proc/meminfo");
        let kilobytes =
            field(&memory, "MemTotal").and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        Machine {
            cpu: field(&info, "model name").unwrap_or("unknown").to_owned(),
            cpus: crate::load::usable_cpus(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            is_virtual: field(&info, "flags")
                .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
            memory: kilobytes.unwrap_or(0) << 10,
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let kind = if self.is_virtual { "virtual machine" } else { "machine" };
        let (memory, count) = (crate::units::bytes(self.memory), self.cpus.len());
        format!("{kind}, {}, {count} CPUs, {memory}, Linux {}", self.cpu, self.kernel)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: AMD: EPYC\nmodel name\t: other\n";
        assert_eq!(field(text, "model name"), Some("AMD: EPYC"));
        assert_eq!(field(text, "model"), None);
    }
}
