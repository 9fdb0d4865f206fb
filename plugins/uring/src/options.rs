//! The options of the configuration.
use pollux_abi::{image_format::FormatChoice, options::BlockSize};
use std::path::PathBuf;

/// The options of an instance.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) format: FormatChoice,
    pub(crate) block_size: Option<BlockSize>,
    #[serde(default = "yes")]
    pub(crate) direct: bool,
    pub(crate) queue_depth: Option<u32>,
    #[serde(default = "yes")]
    pub(crate) lock: bool,
    #[serde(default)]
    pub(crate) engine: EngineChoice,
    #[serde(default)]
    pub(crate) poll: PollChoice,
    #[serde(default)]
    pub(crate) register_memory: bool,
}

fn yes() -> bool {
    true
}

/// The option `engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EngineChoice {
    /// The one that suits the medium.
    #[default]
    Auto,
    /// io_uring in any case.
    IoUring,
    /// System calls in any case: a medium that makes them wait stops the worker, and with it all its queues.
    Sync,
}

/// The option `poll`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PollChoice {
    /// Where the device has queues for it.
    #[default]
    Auto,
    /// In any case: where it has none, nothing is opened.
    On,
    /// Interrupts tell.
    Off,
}
