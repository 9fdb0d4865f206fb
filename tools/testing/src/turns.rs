//! The turns of a worker, taken by hand: for measuring.
use pollux_core::worker::{Roster, Task, TaskId};

/// The tasks of a worker without its thread.
#[derive(Default)]
pub struct Turns {
    tasks: Roster,
    count: u64,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Turns({} tasks)", self.count)
    }
}

impl Turns {
    /// Adds a task that was started.
    pub fn add(&mut self, task: Box<dyn Task>) {
        self.tasks.push(TaskId::numbered(self.count), task);
        self.count += 1;
    }

    /// One turn, as that of a worker's loop. Returns how much there was to do.
    #[inline]
    pub fn turn(&mut self) -> usize {
        self.tasks.turn()
    }

    /// Number of tasks at rest.
    pub fn resting(&self) -> usize {
        self.tasks.resting()
    }
}
