//! Media that misbehave by script: the plugin in `core/tests/fixtures/faulty`, whose first lines say what a script is
//! made of.
use super::build;
use pollux_core::plugin::{BackendError, BlockBackend, OpenOptions, Plugin};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// The file of the plugin, for a configuration. Built once for each test file.
pub fn plugin() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| build::plugin("pollux-fixture-faulty")).clone()
}

/// Opens a medium called `name` with any options, as JSON.
///
/// # Errors
/// As [`BlockBackend::open`].
///
/// # Panics
/// The plugin cannot be built or loaded.
pub fn open(name: &str, json: &str) -> Result<Arc<BlockBackend>, BackendError> {
    let plugin = Plugin::load(&plugin()).expect("the plugin for misbehaving media");
    BlockBackend::open(&plugin, name, &OpenOptions { json: json.into(), ..OpenOptions::default() })
}
