//! Where the checkout, Cargo and its output are.
use serde_json::Value;
use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The checkout that this program was built from.
pub(crate) struct Project {
    /// Its top folder.
    pub(crate) root: PathBuf,
    /// Cargo's output, where `debug` and `release` are.
    pub(crate) target: PathBuf,
    /// What `cargo metadata` says of the workspace's own packages.
    pub(crate) metadata: Value,
}

impl Project {
    /// Asks Cargo about the checkout.
    ///
    /// # Errors
    /// Cargo does not run, or a Cargo.toml is broken.
    pub(crate) fn find() -> Result<Self, String> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).ok_or("xtask is not two folders below the checkout")?.to_owned();
        let metadata = metadata(&root, &["--no-deps", "--offline"])?;
        let target = metadata["target_directory"].as_str().ok_or("cargo metadata names no target_directory")?;
        Ok(Project { target: target.into(), root, metadata })
    }

    /// `cargo`, to be run in the checkout.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// What `cargo metadata` says of all packages that a build on Linux is made of.
    ///
    /// # Errors
    /// One is not here and cannot be fetched, or Cargo.lock is out of step.
    pub(crate) fn dependencies(&self) -> Result<Value, String> {
        metadata(&self.root, &["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
    }

    /// A folder of this program's own below Cargo's output, made if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.target.join("xtask").join(name);
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        Ok(folder)
    }
}

fn metadata(root: &Path, arguments: &[&str]) -> Result<Value, String> {
    let output = cargo(root)
        .args(["metadata", "--format-version=1"])
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root);
    // What the outer `cargo run` says of this package would make the inner one build dependents of such variables
    // again.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}
