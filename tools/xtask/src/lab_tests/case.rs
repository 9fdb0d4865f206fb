//! A test in the lab.
use super::guest::Bench;
use crate::setup::Tool;

/// What a test does with the bench that all share.
pub(super) type Test = fn(&Bench<'_>) -> Result<(), String>;

/// A test, its name, and what it needs on this machine besides the lab.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) test: Test,
    pub(super) needs: &'static [Tool],
}
