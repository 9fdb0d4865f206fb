//! The plugins of a process: found by name, each file loaded once. A library is never unloaded, so there is no verb to
//! remove one.
use pollux_core::{
    config::suggest,
    plugin::{LoadError, Plugin, PluginPath, Registry},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Why there is no plugin of this name.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// There is no such file.
    #[error("plugin \"{name}\": {places}")]
    NotFound {
        /// As requested.
        name: String,
        /// Where it was searched for.
        places: String,
        /// What to ask for instead.
        help: String,
    },
    /// The file cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Where plugins are found, and those that are loaded. Clones share them. `[any thread]`
#[derive(Clone, Debug)]
pub struct Plugins {
    path: PluginPath,
    folder: PathBuf,
    registry: Arc<Mutex<Registry>>,
}

impl Plugins {
    /// No plugin is loaded yet. Relative paths of files start in `folder`.
    pub fn new(path: &PluginPath, folder: &Path) -> Self {
        Plugins { path: path.clone(), folder: folder.to_owned(), registry: Arc::default() }
    }

    /// The plugin `name`, or in the file `name` if there is a slash in it; loaded now unless it was before.
    ///
    /// # Errors
    /// There is none, or it is refused.
    pub fn load(&self, name: &str) -> Result<Plugin, PluginError> {
        let path = self.path.find(name, &self.folder).map_err(|places| PluginError::NotFound {
            name: name.into(),
            places,
            help: self.instead_of(name),
        })?;
        Ok(self.registry.lock().unwrap_or_else(PoisonError::into_inner).load(&path)?)
    }

    /// What to write instead of an unknown plugin's name.
    fn instead_of(&self, name: &str) -> String {
        if name.contains('/') {
            return "name an existing file, or a plugin on the plugin path such as \"uring\"".into();
        }
        if name.contains(".so") {
            return format!("for a file, write its path with a slash: \"./{name}\"");
        }
        let there = self.path.names();
        if let Some(near) = suggest::nearest(name, there.iter().map(String::as_str)) {
            return format!("did you mean \"{near}\"?");
        }
        let more = "add a folder with --plugin-path DIR or POLLUX_PLUGIN_PATH";
        if there.is_empty() { more.into() } else { format!("there are {}; or {more}", there.join(", ")) }
    }
}
