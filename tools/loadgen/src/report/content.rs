//! All that a report is made of.
use crate::{
    campaign::{Plan, Run},
    load::QueueResult,
    machine::Machine,
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP};

/// What was to be measured, and what came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// The command line.
    pub command: String,
    /// The machine.
    pub machine: Machine,
    /// What was to be measured.
    pub plan: Plan,
    /// What was.
    pub runs: Vec<Run>,
}

impl Report {
    /// The name of a target: its path, with a letter before it if there are several.
    pub fn target_name(&self, index: usize) -> String {
        match (self.plan.targets.get(index), self.plan.targets.len()) {
            (None, _) => String::new(),
            (Some(target), 1) => target.to_string(),
            (Some(target), _) => format!("{} {target}", letter(index)),
        }
    }

    /// Number of sectors that were wrong.
    pub fn fault_count(&self) -> u64 {
        self.runs.iter().filter_map(|run| run.verified.as_ref()).map(|verified| verified.fault_count).sum()
    }

    /// A sentence about the requests that failed, if there are any.
    pub fn errors(&self) -> Option<String> {
        let total = QueueResult::sum(self.runs.iter().map(|run| &run.total));
        let parts =
            total.errors_by_status.iter().map(|(&status, count)| format!("{count} with {}", status_name(status)));
        let requests = if total.errors == 1 { "request" } else { "requests" };
        let parts = parts.collect::<Vec<String>>().join(", ");
        let why = "the log and the statistics of the backend say why";
        (total.errors > 0).then(|| format!("{} {requests} failed: {parts}; {why}", total.errors))
    }

    /// Number of requests that failed.
    pub fn error_count(&self) -> u64 {
        self.runs.iter().map(|run| run.total.errors).sum()
    }
}

/// The name of a status that is no success (virtio 1.3, 5.2.6).
pub(super) fn status_name(status: u8) -> String {
    match status.into() {
        VIRTIO_BLK_S_IOERR => "IOERR".into(),
        VIRTIO_BLK_S_UNSUPP => "UNSUPP".into(),
        other => format!("status {other}"),
    }
}

/// What the target with this index is called.
pub(super) fn letter(index: usize) -> char {
    char::from(b'A' + (index % 26) as u8)
}
