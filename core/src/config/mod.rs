//! The configuration file: TOML in, checked and typed values out, or everything that is wrong with it at once.
//!
//! The format is described in `docs/configuration.md`, which a test compares with what is read here.
//!
//! | module | holds |
//! |---|---|
//! | [`diagnostic`] | what is wrong, where, and what to write instead |
//! | [`host`] | what the file is checked against |
//! | `read` | a reader over one table |
//! | `tables` | each table of the format, read by it |
//! | `options` | a plugin's options on their way to JSON |
//! | `check` | what concerns several tables |
//! | [`suggest`] | "did you mean" |
mod check;
pub mod diagnostic;
pub mod host;
mod options;
mod read;
pub mod suggest;
mod tables;

pub use diagnostic::{Diagnostic, Label, Position, Severity, Span, Spanned};
pub use host::{Host, HugepagePool, Limits};
pub use options::Options;

use crate::{queue::QueueOptions, transport::vhost_user::socket::SocketSpec, worker::IdlePolicy};
use diagnostic::Diagnostics;
use read::Table;
use std::{fs::File, io, io::Read, path::Path, path::PathBuf};
use toml::de::DeTable;

/// Everything that a file says.
#[derive(Clone, Debug)]
pub struct Config {
    /// The machine; none: the devices are served to other programs' machines, and all have a socket.
    pub vm: Option<Vm>,
    /// Workers, in the order of the file; names are unique.
    pub workers: Vec<Worker>,
    /// Block backends, in the order of the file; names are unique.
    pub blocks: Vec<Block>,
    /// Devices, in the order of the file; names are unique.
    pub devices: Vec<Device>,
}

impl Config {
    /// The block backend of that name. References in a checked file lead somewhere.
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
    /// Standard output alone.
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
    /// How it rests.
    pub idle: IdlePolicy,
}

/// `[block.NAME]`
#[derive(Clone, Debug)]
pub struct Block {
    /// Its name.
    pub name: Spanned<String>,
    /// The plugin's name, or a file if there is a slash in it.
    pub plugin: Spanned<String>,
    /// What the plugin is told.
    pub options: Options,
    /// Never write.
    pub read_only: bool,
}

/// `[device.NAME]`
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name.
    pub name: Spanned<String>,
    /// How the guest's driver reaches it.
    pub transport: Transport,
    /// The workers that its queues are dealt out to, in turn; at least one, none twice.
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

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run the machine in it.
    Run,
    /// To serve the devices in it.
    Serve,
    /// To see whether it is good for either.
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
    /// What one machine can take.
    pub limits: &'c Limits,
}

/// Longest configuration file in bytes. Longer ones are taken for something else.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reads the file at `path` as text.
///
/// # Errors
/// Why it cannot be a configuration file.
pub fn read_file(path: &Path) -> Result<String, Diagnostic> {
    let unreadable = |error: io::Error| {
        let help = match error.kind() {
            io::ErrorKind::NotFound => "name the configuration file, such as vm.toml",
            io::ErrorKind::IsADirectory => "name the file in it",
            _ => "make it readable for this user",
        };
        Diagnostic::error(format!("cannot read the configuration: {error}")).help(help)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("the configuration is longer than {} MiB", FILE_BYTES_MAX >> 20);
        return Err(Diagnostic::error(message).help("name a TOML file; disk images go into [block.NAME]"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = Position::of(&String::from_utf8_lossy(error.as_bytes()), error.utf8_error().valid_up_to()).line;
        Diagnostic::error(format!("the configuration is not UTF-8 text (line {line})")).help("save it as UTF-8")
    })
}

/// Reads and checks the text of a file: the configuration, if nothing is wrong with it, and warnings; or all errors.
pub fn parse(text: &str, context: &Context<'_>) -> (Option<Config>, Vec<Diagnostic>) {
    let diagnostics = Diagnostics::default();
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    if !syntax_errors.is_empty() {
        // What the parser makes of the rest is a guess: no further word about it.
        syntax_errors.iter().for_each(|error| diagnostics.push(syntax_error(text, error)));
        return (None, diagnostics.into_sorted());
    }
    let draft = tables::read(Table::root(document.get_ref(), &diagnostics), context);
    check::check(&draft, context, &diagnostics);
    let config = if diagnostics.has_errors() { None } else { draft.finish() };
    (config, diagnostics.into_sorted())
}

fn syntax_error(text: &str, error: &toml::de::Error) -> Diagnostic {
    let mut span = error.span().unwrap_or(0..0);
    if span.is_empty() && span.start < text.len() && text.is_char_boundary(span.start) {
        span.end += text[span.start..].chars().next().map_or(0, char::len_utf8);
    }
    if error.message() == "duplicate key" {
        let key = text.get(span.clone()).unwrap_or_default();
        let message = format!("`{key}` is there twice");
        return Diagnostic::error(message).at(&span, "again").help("keep one of the two, or choose another name");
    }
    if error.message().contains("recurs") {
        return Diagnostic::error("this is nested too deeply").at(&span, "").help("write it flatter");
    }
    if error.message().starts_with("string values must be quoted") {
        let value = text.get(span.clone()).unwrap_or_default().trim();
        return match value {
            "" => Diagnostic::error("there is no value").at(&span, "").help("write one after the equals sign"),
            _ => Diagnostic::error("this string is not in quotes").at(&span, "").help(format!("write \"{value}\"")),
        };
    }
    Diagnostic::error(format!("this is not TOML: {}", error.message()))
        .at(&span, "")
        .help("write key = value, with strings in \"quotes\", or [table]")
}
