//! The purpose for which a file is read, and what it is checked against.
use super::host::{Host, MachineLimits};
use std::path::{Path, PathBuf};

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run the machine in it.
    Run,
    /// To serve the devices in it.
    Serve,
    /// To check whether it is good for either.
    Any,
}

/// What a file is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'c> {
    /// What it is read for.
    pub purpose: Purpose,
    /// Where relative paths start: the file's own folder.
    pub folder: &'c Path,
    /// The host.
    pub host: &'c Host,
    /// The limits of one machine.
    pub limits: &'c MachineLimits,
}

impl Context<'_> {
    /// The path that a name in the file stands for.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
