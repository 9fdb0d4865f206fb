//! Backends: what `[block.NAME]` describes, each a medium that a plugin opens for the devices in front of it.
//!
//! Each device has an instance of its own, since queues are numbered within one: the medium is opened with the device
//! and closed with it.
use crate::plugin::PluginError;
use pollux_abi::block_v1::BlockInfo;
use pollux_core::{
    config,
    plugin::{BackendError as MediumError, BlockBackend, OpenOptions, Plugin},
};
use std::sync::Arc;

/// Why a backend cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is one of that name.
    #[error("block {0}: there is one of that name already; remove it first, or choose another name")]
    Exists(String),
    /// There is none of that name.
    #[error("block {name}: there is none of that name; there {there}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        there: String,
    },
    /// Devices use it.
    #[error("block {name}: it is used by {users}; remove that first")]
    InUse {
        /// The backend.
        name: String,
        /// The devices.
        users: String,
    },
    /// Its plugin cannot be used.
    #[error("block {name}: {cause}")]
    Plugin {
        /// The backend.
        name: String,
        /// Why.
        cause: PluginError,
    },
    /// The plugin cannot open the medium.
    #[error(transparent)]
    Medium(#[from] MediumError),
}

/// The description of a backend to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Its name.
    pub name: String,
    /// The plugin's name, or a file if there is a slash in it.
    pub plugin: String,
    /// The plugin's options, a JSON object.
    pub options: String,
    /// Never write to the medium.
    pub read_only: bool,
}

impl From<&config::Block> for BackendSpec {
    fn from(block: &config::Block) -> Self {
        BackendSpec {
            name: block.name.value.clone(),
            plugin: block.plugin.value.clone(),
            options: block.options.json.clone(),
            read_only: block.read_only,
        }
    }
}

/// A backend whose medium was inspected: its plugin accepts the options and has described the medium. It is not open.
#[derive(Clone, Debug)]
pub struct Backend {
    spec: BackendSpec,
    plugin: Plugin,
    info: BlockInfo,
}

impl Backend {
    /// Opens the medium to inspect it, and closes it again. It takes no lock, and changes nothing.
    ///
    /// # Errors
    /// The plugin has no `block/1`, or its reason for not opening the medium.
    pub fn probe(spec: BackendSpec, plugin: Plugin) -> Result<Self, MediumError> {
        let info = *open(&spec, &plugin, true)?.info();
        Ok(Backend { spec, plugin, info })
    }

    /// Opens the medium for a device.
    pub(crate) fn open(&self) -> Result<Arc<BlockBackend>, MediumError> {
        open(&self.spec, &self.plugin, false)
    }

    /// Its description.
    pub fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// What the medium was like when it was inspected.
    pub fn info(&self) -> &BlockInfo {
        &self.info
    }

    /// Whether devices of this backend write to its medium.
    pub fn writes(&self) -> bool {
        !self.spec.read_only && !self.info.is_read_only()
    }

    /// Whether a device of one of these backends would write to a medium that a device of the other uses.
    pub fn is_in_the_way_of(&self, other: &Backend) -> bool {
        let identity = |backend: &Backend| (backend.info.identity_device, backend.info.identity_object);
        let is_same_medium = identity(self) != (0, 0) && identity(self) == identity(other);
        (is_same_medium || self.spec.name == other.spec.name) && (self.writes() || other.writes())
    }
}

fn open(spec: &BackendSpec, plugin: &Plugin, probe: bool) -> Result<Arc<BlockBackend>, MediumError> {
    let options = OpenOptions { json: spec.options.clone(), read_only: spec.read_only, probe };
    BlockBackend::open(plugin, &spec.name, &options)
}
