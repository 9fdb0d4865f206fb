//! The options of the configuration.
use pollux_abi::{
    image_format::FormatChoice,
    options::{BlockSize, Size},
};
use std::path::PathBuf;

/// The options of an instance.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub(crate) size: Option<Size>,
    pub(crate) path: Option<PathBuf>,
    #[serde(default)]
    pub(crate) format: FormatChoice,
    #[serde(default)]
    pub(crate) block_size: BlockSize,
    #[serde(default)]
    pub(crate) sparse: bool,
    #[serde(default = "yes")]
    pub(crate) lock: bool,
}

fn yes() -> bool {
    true
}
