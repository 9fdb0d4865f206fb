//! What a test with QEMU is made on: its folder, images, backend and machines.
use super::{
    backend::{Backend, BackendKind, Medium},
    machine::{Boot, Interface, Machine, MachineSpec},
};
use crate::{
    guest_program,
    image::{Disk, Images},
    lab::Lab,
    process::Run,
    project::Project,
};
use std::{
    env, fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{self, Command},
    time::Duration,
};

/// What the tests share, and a folder for each test.
pub(super) struct Bench<'a> {
    pub(super) project: &'a Project,
    pub(super) tools: &'a Tools,
    /// The program under test, if it is the backend.
    pub(super) pollux: &'a Path,
    pub(super) backend: BackendKind,
    /// The test's own.
    pub(super) folder: PathBuf,
    /// Its sockets.
    pub(super) sockets: PathBuf,
    /// Print what guests and backends print.
    pub(super) verbose: bool,
}

/// What guests are made with.
pub(super) struct Tools {
    pub(super) lab: Lab,
    kernel: PathBuf,
    initrd_root: PathBuf,
    /// `load.c`, compiled for guest and host.
    pub(super) load: PathBuf,
}

/// A guest to be. Scripts are files of `tools/xtask/qemu`.
pub(super) struct Guest<'a> {
    /// What it runs from the initial RAM disk; without one, its root is the first disk.
    pub(super) script: Option<&'a str>,
    pub(super) processors: u32,
    /// What the backend serves, and with how many queues.
    pub(super) disks: &'a [(Disk<'a>, u32)],
    /// The first so many of them are there from the start.
    pub(super) attached: usize,
}

/// A backend and a machine that uses it.
pub(super) struct Stage {
    pub(super) machine: Machine,
    pub(super) backend: Backend,
}

const CHECK_LIMIT: Duration = Duration::from_secs(60);

impl Tools {
    /// # Errors
    /// What is missing.
    pub(super) fn prepare(project: &Project) -> Result<Self, String> {
        let lab = Lab::prepare(project)?;
        let load = guest_program::compile(project, &sources(project).join("load.c"))?;
        let (kernel, initrd_root) = (lab.path("vmlinux")?, lab.path("initrd-root")?);
        Ok(Tools { lab, kernel, initrd_root, load })
    }
}

impl Bench<'_> {
    /// Makes the images, starts the backend, then the machine.
    ///
    /// # Errors
    /// Any of them failed.
    pub(super) fn stage(&self, guest: &Guest<'_>) -> Result<Stage, String> {
        let images = Images { lab: &self.tools.lab, scripts: &sources(self.project), folder: &self.folder };
        let mut media = Vec::new();
        for (index, (disk, queues)) in guest.disks.iter().enumerate() {
            let image = self.folder.join(format!("disk{index}.img"));
            images.make(*disk, &image)?;
            media.push(Medium { image, queues: *queues, held: None });
        }
        let mut backend = Backend::new(self.backend, self.pollux, &self.folder, &self.sockets, media, self.verbose);
        backend.start()?;
        let disks: Vec<_> = (0..guest.attached).map(|disk| (backend.socket(disk), guest.disks[disk].1)).collect();
        let machine = self.machine("guest", guest, &disks, None)?;
        Ok(Stage { machine, backend })
    }

    /// Starts a machine on sockets of a backend, each with its number of queues.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn machine(
        &self,
        name: &str,
        guest: &Guest<'_>,
        disks: &[(PathBuf, u32)],
        incoming: Option<&Path>,
    ) -> Result<Machine, String> {
        let initrd = match guest.script {
            None => self.tools.initrd_root.clone(),
            Some(script) => {
                let initrd = self.folder.join("initrd");
                let common = sources(self.project).join("common.sh");
                let files = [(self.tools.load.as_path(), "/bin/load"), (common.as_path(), "/common.sh")];
                self.tools.lab.initrd_that_runs(&sources(self.project).join(script), &files, &initrd)?;
                initrd
            }
        };
        let root = "root=/dev/vda rootfstype=ext4 rw init=/init";
        let spec = MachineSpec {
            name,
            boot: Boot::Kernel {
                kernel: &self.tools.kernel,
                initrd: &initrd,
                command_line: if guest.script.is_none() { root } else { "" },
            },
            processors: guest.processors,
            disks,
            interface: Interface::Transitional,
            incoming,
        };
        Machine::start(&spec, &self.folder, &self.sockets, self.verbose)
    }

    /// Has `load` check an image here, without a guest. Returns the round that all of it holds at least.
    ///
    /// # Errors
    /// The image holds other than a load has written.
    pub(super) fn check_image(&self, image: &Path, arguments: &[&str]) -> Result<u64, String> {
        let mut load = Command::new(&self.tools.load);
        load.arg("check").arg(image).args(arguments);
        let log = self.folder.join("check.log");
        let checked = Run { label: "checking the image", log, limit: CHECK_LIMIT, echo: false }.run(&mut load)?;
        round(&checked.output).ok_or_else(|| format!("{}:\n{}", image.display(), checked.tail(10)))
    }

    /// A scratch path for a socket.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    /// The ends of all logs of the test.
    pub(super) fn tails(&self) -> String {
        let mut text = String::new();
        let mut logs: Vec<PathBuf> =
            fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for log in logs {
            let content = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            text += &format!("\n    {} ends with:", log.display());
            for line in &lines[lines.len().saturating_sub(25)..] {
                text += &format!("\n      {line}");
            }
        }
        text
    }
}

/// The number in `CHECKED N: ...`.
pub(super) fn round(output: &str) -> Option<u64> {
    let line = output.lines().find_map(|line| line.strip_prefix("CHECKED "))?;
    line.split(':').next()?.trim().parse().ok()
}

/// A folder for sockets, whose paths may have 107 bytes at most, freshly made.
///
/// # Errors
/// It cannot be made.
pub(super) fn socket_folder() -> Result<PathBuf, String> {
    let folder = env::temp_dir().join(format!("pollux-xtask-{}", process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// The folder of the guests' scripts.
pub(super) fn sources(project: &Project) -> PathBuf {
    project.root.join("tools/xtask/qemu")
}
