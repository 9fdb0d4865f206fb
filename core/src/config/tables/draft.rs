//! The parts of a file that could be read, on the way to a configuration.
use crate::config::model::{Block, Config, Device, Vm, Worker};

/// The key of a device's transport and the one that goes with vhost-user: they tell the purpose of a file.
pub(super) const TRANSPORT: &str = "transport";
pub(super) const VHOST_USER: &str = "vhost-user";

/// The parts of a file that could be read, however much is wrong with it.
pub(in crate::config) struct Draft {
    /// The purpose of the file: a machine with its devices, or only devices.
    pub(in crate::config) kind: Kind,
    pub(in crate::config) vm: Option<Vm>,
    pub(in crate::config) workers: Entries<Worker>,
    pub(in crate::config) blocks: Entries<Block>,
    pub(in crate::config) devices: Entries<Device>,
}

/// What a file describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Kind {
    /// A machine and its devices.
    Machine,
    /// Devices for other programs' machines.
    Exports,
}

/// The tables of one section.
pub(in crate::config) struct Entries<T> {
    /// The names of all of them: a reference to a table that could not be read is not a second mistake.
    pub(in crate::config) names: Vec<String>,
    /// Those that could be read.
    pub(in crate::config) items: Vec<T>,
}

impl Draft {
    /// The configuration, if every table could be read.
    pub(in crate::config) fn finish(self) -> Option<Config> {
        let vm = match self.kind {
            Kind::Machine => Some(self.vm?),
            Kind::Exports => None,
        };
        Some(Config { vm, workers: self.workers.items, blocks: self.blocks.items, devices: self.devices.items })
    }
}
