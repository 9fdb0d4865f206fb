//! Disk images of guests: made before a test, looked into after it.
use crate::{
    lab::Lab,
    process::{Finished, Run},
};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

/// What an image holds at first.
#[derive(Clone, Copy)]
pub(crate) enum Disk<'a> {
    /// A root file system with busybox and this script as its `/init`.
    Root(&'a str),
    /// An empty ext4 file system of so many MiB.
    Ext4(u64),
    /// Zeroes, so many MiB.
    Blank(u64),
}

/// What images are made with.
pub(crate) struct Images<'a> {
    pub(crate) lab: &'a Lab,
    /// Where the scripts of root file systems are.
    pub(crate) scripts: &'a Path,
    /// For files that are needed on the way.
    pub(crate) folder: &'a Path,
}

const TOOL_LIMIT: Duration = Duration::from_secs(120);
const ROOT_MIB: u64 = 96;

impl Images<'_> {
    /// Makes an image.
    ///
    /// # Errors
    /// A file cannot be written, or a tool failed: its words.
    pub(crate) fn make(&self, disk: Disk<'_>, image: &Path) -> Result<(), String> {
        match disk {
            Disk::Blank(mebibytes) => blank(image, mebibytes << 20),
            Disk::Ext4(mebibytes) => {
                blank(image, mebibytes << 20)?;
                self.tool("mke2fs", &["-q", "-F", "-t", "ext4", text(image)]).map(drop)
            }
            Disk::Root(script) => {
                let tree = self.folder.join("root");
                self.make_root_tree(&tree, script)?;
                blank(image, ROOT_MIB << 20)?;
                let arguments = ["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", text(&tree), text(image)];
                self.tool("mke2fs", &arguments).map(drop)
            }
        }
    }

    fn make_root_tree(&self, tree: &Path, script: &str) -> Result<(), String> {
        for folder in ["bin", "dev", "mnt", "proc", "sys"] {
            fs::create_dir_all(tree.join(folder)).map_err(describe(tree))?;
        }
        let busybox = self.lab.path("busybox")?;
        for (source, name) in [(&busybox, "bin/busybox"), (&self.scripts.join(script), "init")] {
            let place = tree.join(name);
            fs::copy(source, &place).map_err(describe(source))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).map_err(describe(&place))?;
        }
        Ok(())
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Result<Finished, String> {
        run_tool_well(self.folder, program, arguments)
    }
}

/// Whether an image's file system has no fault. One that was in use when its guest ended gets its journal replayed.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn expect_clean(image: &Path) -> Result<(), String> {
    let folder = image.parent().unwrap_or(Path::new("."));
    run_tool(folder, "e2fsck", &["-E", "journal_only", "-fp", text(image)])?;
    let check = run_tool(folder, "e2fsck", &["-fn", text(image)])?;
    if check.succeeded() {
        return Ok(());
    }
    Err(format!("{} has a broken file system:\n{}", image.display(), check.tail(20)))
}

/// The SHA-256 sum of a file in an image's file system.
///
/// # Errors
/// There is no such file.
pub(crate) fn sha256_in(image: &Path, file: &str) -> Result<String, String> {
    let folder = image.parent().unwrap_or(Path::new("."));
    run_tool(folder, "debugfs", &["-R", &format!("dump {file} copy"), text(image)])?;
    let sum = run_tool(folder, "sha256sum", &["copy"])?;
    let sum = sum.output.split_whitespace().next().unwrap_or_default();
    if sum.len() == 64 { Ok(sum.to_owned()) } else { Err(format!("no {file} in {}", image.display())) }
}

/// The SHA-256 sum of an image's first bytes.
///
/// # Errors
/// It cannot be read.
pub(crate) fn sha256_of_start(image: &Path, bytes: u64) -> Result<String, String> {
    let folder = image.parent().unwrap_or(Path::new("."));
    let script = format!("head -c {bytes} '{}' | sha256sum", text(image));
    let sum = run_tool_well(folder, "sh", &["-c", &script])?;
    Ok(sum.output.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Makes an image of zeroes that takes no room.
pub(crate) fn blank(path: &Path, bytes: u64) -> Result<(), String> {
    fs::File::create(path).and_then(|file| file.set_len(bytes)).map_err(describe(path))
}

/// Runs a tool that must succeed.
///
/// # Errors
/// It did not: its words.
pub(crate) fn run_tool_well(folder: &Path, program: &str, arguments: &[&str]) -> Result<Finished, String> {
    let finished = run_tool(folder, program, arguments)?;
    if finished.succeeded() {
        return Ok(finished);
    }
    Err(format!("{program}: {}\n{}", finished.ending(), finished.tail(10)))
}

fn run_tool(folder: &Path, program: &str, arguments: &[&str]) -> Result<Finished, String> {
    let mut command = Command::new(program);
    // File system tools are where only root's path looks.
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).current_dir(folder).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    let log = folder.join(format!("{program}.log"));
    Run { label: program, log, limit: TOOL_LIMIT, echo: false }.run(&mut command)
}

fn describe<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

/// A path as text: those here are made of the checkout's, and Debian's names are text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("path-that-is-not-text")
}
