//! Finds plugins by name and loads each file once.
use super::{LoadError, Plugin};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Where packages put plugins.
const SYSTEM_FOLDER: &str = "/usr/lib/pollux/plugins";

/// The folders in which plugins are looked for, in order.
#[derive(Clone, Debug, Default)]
pub struct PluginPath {
    folders: Vec<PathBuf>,
}

impl PluginPath {
    /// The given folders first, then those of `POLLUX_PLUGIN_PATH` (separated by colons), the executable's own folder,
    /// and `/usr/lib/pollux/plugins`.
    pub fn new(first: &[PathBuf]) -> Self {
        let mut folders = first.to_vec();
        if let Some(list) = std::env::var_os("POLLUX_PLUGIN_PATH") {
            folders.extend(std::env::split_paths(&list).filter(|folder| !folder.as_os_str().is_empty()));
        }
        if let Ok(executable) = std::env::current_exe() {
            folders.extend(executable.parent().map(Path::to_owned));
        }
        folders.push(SYSTEM_FOLDER.into());
        // The working folder may change later; relative paths must not change with it.
        let folders = folders.into_iter().map(|folder| std::path::absolute(&folder).unwrap_or(folder)).collect();
        PluginPath { folders }
    }

    /// The file that `name` stands for: a name with a slash is a path, relative to `base`; any other is
    /// `libpollux_NAME.so` in the first folder that has one.
    ///
    /// # Errors
    /// The places that were searched, as text.
    pub fn find(&self, name: &str, base: &Path) -> Result<PathBuf, String> {
        if name.contains('/') {
            let path = base.join(name);
            return if path.exists() { Ok(path) } else { Err(format!("there is no file {}", path.display())) };
        }
        let file = format!("libpollux_{name}.so");
        if let Some(path) = self.folders.iter().map(|folder| folder.join(&file)).find(|path| path.exists()) {
            return Ok(path);
        }
        let places: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
        Err(format!("there is no {file} in {}", places.join(", ")))
    }

    /// Names of the plugins that can be found, for use in messages.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .folders
            .iter()
            .filter_map(|folder| folder.read_dir().ok())
            .flatten()
            .filter_map(|entry| {
                let file = entry.ok()?.file_name().into_string().ok()?;
                Some(file.strip_prefix("libpollux_")?.strip_suffix(".so")?.to_owned())
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The plugins of this process, each file loaded once.
#[derive(Debug, Default)]
pub struct Registry {
    plugins: HashMap<PathBuf, Plugin>,
}

impl Registry {
    /// The plugin in `path`, loaded now unless it was before.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&mut self, path: &Path) -> Result<Plugin, LoadError> {
        let path = path.canonicalize().map_err(|error| LoadError::File(path.into(), error))?;
        if let Some(plugin) = self.plugins.get(&path) {
            return Ok(plugin.clone());
        }
        let plugin = Plugin::load(&path)?;
        self.plugins.insert(path, plugin.clone());
        Ok(plugin)
    }
}
