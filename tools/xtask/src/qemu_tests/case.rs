//! A test with QEMU.
use super::bench::Bench;
use crate::setup::Tool;

/// What a test does with the bench that all share.
pub(super) type Test = fn(&Bench<'_>) -> Result<(), String>;

/// A test, its name, and why it cannot run with qemu-storage-daemon, if so.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) test: Test,
    pub(super) storage_daemon_obstacle: Option<&'static str>,
    /// What it needs on this machine besides what all need.
    pub(super) needs: &'static [Tool],
}
