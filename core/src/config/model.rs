//! The contents of a file: the configuration, checked and typed.
use super::{diagnostic::Spanned, options::PluginOptions};
use crate::{queue::QueueOptions, transport::vhost_user::socket::SocketSpec, worker::IdlePolicy};
use std::path::PathBuf;

/// The whole contents of a file.
#[derive(Clone, Debug)]
pub struct Config {
    /// The machine; `None`: the devices are served to other programs' machines, and all have a socket.
    pub vm: Option<Vm>,
    /// Workers, in the order of the file; names are unique.
    pub workers: Vec<Worker>,
    /// Block backends, in the order of the file; names are unique.
    pub blocks: Vec<Block>,
    /// Devices, in the order of the file; names are unique.
    pub devices: Vec<Device>,
}

impl Config {
    /// The block backend of that name. In a checked file, every reference can be resolved.
    pub fn block(&self, name: &str) -> Option<&Block> {
        self.blocks.iter().find(|block| block.name.value == name)
    }
}

/// `[vm]`
#[derive(Clone, Debug)]
pub struct Vm {
    /// For each vCPU the host CPU it is pinned to, if any.
    pub vcpus: Vec<Option<Spanned<usize>>>,
    /// Size of guest memory in bytes, in whole pages.
    pub memory_bytes: u64,
    /// Size of the huge pages that back it, in bytes.
    pub hugepages: Option<u64>,
    /// The kernel's file.
    pub kernel: Spanned<PathBuf>,
    /// The initial RAM disk's file.
    pub initrd: Option<Spanned<PathBuf>>,
    /// The kernel's command line.
    pub cmdline: String,
    /// What the serial port is connected to.
    pub console: Console,
    /// What a reset by the guest does.
    pub reboot: Reboot,
}

/// `console`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// Standard input and output.
    Terminal,
    /// Standard output only.
    Stdout,
    /// Nothing.
    Off,
    /// A file, made or overwritten.
    File(PathBuf),
}

/// `reboot`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reboot {
    /// The machine starts again.
    Restart,
    /// The run ends.
    Exit,
}

/// `[worker.NAME]`
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its name.
    pub name: Spanned<String>,
    /// The CPU it is pinned to.
    pub cpu: Option<Spanned<usize>>,
    /// Its idle policy.
    pub idle: IdlePolicy,
}

/// `[block.NAME]`
#[derive(Clone, Debug)]
pub struct Block {
    /// Its name.
    pub name: Spanned<String>,
    /// The plugin's name, or a file if there is a slash in it.
    pub plugin: Spanned<String>,
    /// The plugin's options.
    pub options: PluginOptions,
    /// Never write to the medium.
    pub read_only: bool,
}

/// `[device.NAME]`
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name.
    pub name: Spanned<String>,
    /// How the guest's driver reaches it.
    pub transport: Transport,
    /// The workers that its queues are assigned to in turn; at least one, none twice.
    pub workers: Vec<Spanned<String>>,
    /// How its queues are set up. The place is that of their number.
    pub queues: Spanned<QueueOptions>,
    /// What it is.
    pub kind: DeviceKind,
}

impl Device {
    /// The block backend behind it, if there is one.
    pub fn block(&self) -> Option<&Spanned<String>> {
        match &self.kind {
            DeviceKind::Blk(blk) => Some(&blk.block),
        }
    }
}

/// `transport`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// virtio over PCI.
    Pci,
    /// virtio over MMIO.
    Mmio,
    /// virtio over vhost-user, on this socket. The place is that of its path.
    VhostUser(Spanned<SocketSpec>),
}

/// `type`, with the keys that go with it.
#[derive(Clone, Debug)]
pub enum DeviceKind {
    /// A block device.
    Blk(Blk),
}

/// `type = "blk"`
#[derive(Clone, Debug)]
pub struct Blk {
    /// The block backend behind it.
    pub block: Spanned<String>,
    /// What the guest reads as its serial number, at most 20 bytes; empty: the device's name.
    pub serial: String,
}
