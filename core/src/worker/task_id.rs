//! The name of a task.

/// Names a task of a worker, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(u64);

impl TaskId {
    /// The name of the task with a number that no other has.
    pub fn numbered(number: u64) -> Self {
        TaskId(number)
    }
}
