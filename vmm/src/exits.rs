//! Counters of vCPU exits: how often the guest left guest mode for user space, and why.
//!
//! A kick that reaches a worker through an ioeventfd and an interrupt that arrives through an irqfd never
//! appear here; an exit per request in steady state is therefore a defect that these counters show.
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// Why a vCPU came back from `KVM_RUN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// The guest read a port that KVM does not emulate.
    PortRead,
    /// The guest wrote a port that KVM does not emulate.
    PortWrite,
    /// The guest read an address without memory behind it.
    MmioRead,
    /// The guest wrote an address without memory behind it.
    MmioWrite,
    /// The guest halted and KVM could not wait by itself.
    Halt,
    /// KVM asked for a chance to inject an interrupt.
    InterruptWindow,
    /// A signal (ours, to stop the vCPU, or a stray one) interrupted `KVM_RUN`.
    Signal,
    /// The guest shut down (triple fault) or asked for a system event.
    Shutdown,
    /// Everything else.
    Other,
}

const KINDS: usize = ExitKind::Other as usize + 1;
const NAMES: [&str; KINDS] = [
    "port reads",
    "port writes",
    "mmio reads",
    "mmio writes",
    "halts",
    "interrupt windows",
    "signals",
    "shutdowns",
    "others",
];

/// The counters of one vCPU. Written by its thread alone, readable by anyone at any time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ExitCounters {
    counts: [AtomicU64; KINDS],
}

impl ExitCounters {
    /// Counts one exit. A load and a store suffice instead of a locked add: there is one writer.
    pub(crate) fn count(&self, kind: ExitKind) {
        let counter = &self.counts[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The counters as they are now.
    pub(crate) fn snapshot(&self) -> ExitCounts {
        ExitCounts { counts: std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed)) }
    }
}

/// How often one vCPU has left guest mode since the machine was made, by reason. Reboots do not reset it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    counts: [u64; KINDS],
}

impl ExitCounts {
    /// Exits of one kind.
    pub fn of(&self, kind: ExitKind) -> u64 {
        self.counts[kind as usize]
    }

    /// Exits of every kind together.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted since `earlier`, an older snapshot of the same vCPU.
    pub fn since(&self, earlier: &ExitCounts) -> ExitCounts {
        ExitCounts { counts: std::array::from_fn(|kind| self.counts[kind].saturating_sub(earlier.counts[kind])) }
    }
}

impl fmt::Display for ExitCounts {
    /// `12 exits: 3 port writes, 9 mmio reads`; kinds that never happened are left out.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} exits", self.total())?;
        let mut separator = ": ";
        for (name, count) in NAMES.iter().zip(self.counts).filter(|(_, count)| *count > 0) {
            write!(formatter, "{separator}{count} {name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_by_kind() {
        let counters = ExitCounters::default();
        counters.count(ExitKind::PortWrite);
        let before = counters.snapshot();
        counters.count(ExitKind::MmioRead);
        counters.count(ExitKind::MmioRead);
        let after = counters.snapshot();
        assert_eq!(after.total(), 3);
        assert_eq!(after.since(&before).of(ExitKind::MmioRead), 2);
        assert_eq!(after.since(&before).of(ExitKind::PortWrite), 0);
        assert_eq!(after.to_string(), "3 exits: 1 port writes, 2 mmio reads");
    }
}
