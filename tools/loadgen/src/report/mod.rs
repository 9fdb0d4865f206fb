//! What came out, for people and for machines.
mod bars;
mod html;
mod json;
pub mod page;
pub mod plot;
mod table;

pub use bars::histogram;
pub use html::html;
pub use json::json;
pub use table::{align, summary, verdict};

use crate::{
    campaign::{Plan, Run},
    machine::Machine,
};

/// All that a report is made of.
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

    /// Number of requests that failed.
    pub fn error_count(&self) -> u64 {
        self.runs.iter().map(|run| run.total.errors).sum()
    }
}

/// What the target with this index is called.
fn letter(index: usize) -> char {
    char::from(b'A' + (index % 26) as u8)
}
