//! A guest in the lab: its files, its run, and what is asked of it afterwards.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, LabRun, QUICK_BOOT, blank_image};
use crate::process::{Finished, Run};
use crate::project::Project;

/// What the tests share: the programs to test, the lab, and a folder for each test.
pub(super) struct Bench<'a> {
    pub(super) project: &'a Project,
    pub(super) lab: &'a Lab,
    /// The program under test.
    pub(super) pollux: &'a Path,
    /// The test's name.
    pub(super) name: &'a str,
    /// The test's own.
    pub(super) folder: PathBuf,
    /// Print what guests print.
    pub(super) verbose: bool,
}

/// What a guest is made of. Scripts and configurations are files of `tools/xtask/lab`.
pub(super) struct Guest<'a> {
    pub(super) config: &'a str,
    pub(super) kernel: Kernel,
    pub(super) init: Init<'a>,
    pub(super) disks: &'a [Disk<'a>],
    /// A script that runs `pollux run` in the lab itself; without one, that is the command.
    pub(super) host_script: Option<&'a str>,
}

/// The format of the kernel's file.
#[derive(Clone, Copy)]
pub(super) enum Kernel {
    /// `vmlinux`, entered by PVH.
    Elf,
    /// `vmlinuz`, which unpacks itself.
    BzImage,
}

/// What the guest does.
#[derive(Clone, Copy)]
pub(super) enum Init<'a> {
    /// Runs a script from the initial RAM disk and powers off.
    Script(&'a str),
    /// Goes over to the root file system that the kernel command line names.
    Root,
}

/// A disk image, made anew for the run. The first is `/dev/vda` in the lab.
#[derive(Clone, Copy)]
pub(super) enum Disk<'a> {
    /// A root file system with busybox and this script as its `/init`.
    Root(&'a str),
    /// An empty ext4 file system of so many MiB.
    Ext4(u64),
    /// Zeroes, so many MiB.
    Blank(u64),
}

/// A guest's run.
pub(super) struct Ran {
    finished: Finished,
    folder: PathBuf,
    disks: Vec<PathBuf>,
}

const RUN_LIMIT: Duration = Duration::from_secs(240);
const TOOL_LIMIT: Duration = Duration::from_secs(120);
const ROOT_MIB: u64 = 96;

impl Bench<'_> {
    /// Makes a guest's files and runs it in the lab.
    ///
    /// # Errors
    /// They cannot be made, or the lab failed.
    pub(super) fn run(&self, guest: &Guest<'_>) -> Result<Ran, String> {
        fs::remove_dir_all(&self.folder)
            .and_then(|()| fs::create_dir_all(&self.folder))
            .map_err(describe(&self.folder))?;
        self.place_config(guest.config)?;
        let kernel = match guest.kernel {
            Kernel::Elf => "vmlinux",
            Kernel::BzImage => "kernel",
        };
        self.link("kernel", &self.lab.path(kernel)?)?;
        let initrd = self.folder.join("initrd");
        match guest.init {
            Init::Script(script) => self.lab.initrd_that_runs(&self.source(script), &initrd)?,
            Init::Root => self.link("initrd", &self.lab.path("initrd-root")?)?,
        }
        let mut disks = Vec::new();
        for (index, disk) in guest.disks.iter().enumerate() {
            let image = self.folder.join(format!("disk{index}.img"));
            self.make_disk(*disk, &image)?;
            disks.push(image);
        }
        if !self.pollux.exists() {
            return Err(format!("{} is not built", self.pollux.display()));
        }
        let script = guest.host_script.map(|script| self.source(script));
        let mut command: Vec<&str> = Vec::new();
        if let Some(script) = &script {
            command.extend(["sh", text(script)]);
        }
        command.extend([text(self.pollux), "run", "vm.toml", "--stats-json", "/out/stats.json"]);
        let run = LabRun {
            label: &format!("lab {}", self.name),
            disks: &disks,
            folder: &self.folder,
            limit: RUN_LIMIT,
            echo: self.verbose,
        };
        let finished = self.lab.run(run, &command)?;
        Ok(Ran { finished, folder: self.folder.clone(), disks })
    }

    fn source(&self, name: &str) -> PathBuf {
        self.project.root.join("tools/xtask/lab").join(name)
    }

    /// The configurations leave to this what makes a kernel quick to boot, which no test is about.
    fn place_config(&self, name: &str) -> Result<(), String> {
        let source = self.source(name);
        let config = fs::read_to_string(&source).map_err(describe(&source))?;
        let place = self.folder.join("vm.toml");
        fs::write(&place, config.replace("@quick-boot@", QUICK_BOOT)).map_err(describe(&place))
    }

    fn link(&self, name: &str, target: &Path) -> Result<(), String> {
        symlink(target, self.folder.join(name)).map_err(describe(target))
    }

    fn make_disk(&self, disk: Disk<'_>, image: &Path) -> Result<(), String> {
        match disk {
            Disk::Blank(mebibytes) => blank_image(image, mebibytes << 20),
            Disk::Ext4(mebibytes) => {
                blank_image(image, mebibytes << 20)?;
                self.tool("mke2fs", &["-q", "-F", "-t", "ext4", text(image)]).map(drop)
            }
            Disk::Root(script) => {
                let tree = self.folder.join("root");
                self.make_root_tree(&tree, script)?;
                blank_image(image, ROOT_MIB << 20)?;
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
        for (source, name) in [(&busybox, "bin/busybox"), (&self.source(script), "init")] {
            let place = tree.join(name);
            fs::copy(source, &place).map_err(describe(source))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).map_err(describe(&place))?;
        }
        Ok(())
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Result<Finished, String> {
        let finished = run_tool(&self.folder, program, arguments)?;
        if finished.succeeded() {
            return Ok(finished);
        }
        Err(format!("{program}: {}\n{}", finished.ending(), finished.tail(10)))
    }
}

impl Ran {
    /// # Errors
    /// The run ended in another way, with the end of the output.
    pub(super) fn expect_status(&self, status: i32) -> Result<(), String> {
        if self.finished.code == Some(status) {
            return Ok(());
        }
        self.fail(&format!("{} instead of {status}", self.finished.ending()))
    }

    /// Whether a line is in the output.
    ///
    /// # Errors
    /// It is not, with the end of the output.
    pub(super) fn expect_line(&self, wanted: &str) -> Result<(), String> {
        if self.finished.output.lines().any(|line| line.trim_end() == wanted) {
            return Ok(());
        }
        self.fail(&format!("no line {wanted:?} in the output"))
    }

    /// # Errors
    /// The text is nowhere in the output.
    pub(super) fn expect_text(&self, wanted: &str) -> Result<(), String> {
        if self.finished.output.contains(wanted) {
            return Ok(());
        }
        self.fail(&format!("no {wanted:?} in the output"))
    }

    /// The rest of the line that begins so.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn value(&self, key: &str) -> Result<&str, String> {
        let line = self.finished.output.lines().find_map(|line| line.strip_prefix(key));
        line.map(str::trim).map_or_else(|| self.fail(&format!("no line begins with {key:?}")), Ok)
    }

    /// The statistics at the end of the run, a record a queue.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn queues(&self) -> Result<Vec<Value>, String> {
        let path = self.folder.join("stats.json");
        let text = fs::read(&path).map_err(describe(&path))?;
        let stats: Value = serde_json::from_slice(&text).map_err(describe(&path))?;
        stats["queues"].as_array().cloned().ok_or_else(|| format!("no queues in {stats}"))
    }

    /// Whether an image's file system has no fault. One that was in use when the run ended gets its journal replayed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn expect_clean(&self, disk: usize) -> Result<(), String> {
        let image = text(&self.disks[disk]);
        run_tool(&self.folder, "e2fsck", &["-E", "journal_only", "-fp", image])?;
        let check = run_tool(&self.folder, "e2fsck", &["-fn", image])?;
        if check.succeeded() {
            return Ok(());
        }
        Err(format!("disk {disk} has a broken file system:\n{}", check.tail(20)))
    }

    /// The SHA-256 sum of a file in an image's file system.
    ///
    /// # Errors
    /// There is no such file.
    pub(super) fn sha256_in(&self, disk: usize, file: &str) -> Result<String, String> {
        let dump = format!("dump {file} copy");
        run_tool(&self.folder, "debugfs", &["-R", &dump, text(&self.disks[disk])])?;
        let sum = run_tool(&self.folder, "sha256sum", &["copy"])?;
        let sum = sum.output.split_whitespace().next().unwrap_or_default();
        if sum.len() == 64 { Ok(sum.to_owned()) } else { self.fail(&format!("no {file} on disk {disk}")) }
    }

    /// An error with the end of the output.
    pub(super) fn fail<T>(&self, why: &str) -> Result<T, String> {
        Err(format!("{why}:\n{}", self.finished.tail(40)))
    }
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
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("path-that-is-not-text")
}
