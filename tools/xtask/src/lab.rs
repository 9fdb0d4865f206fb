//! The lab, `tools/lab`: a VM whose `/dev/kvm` boots stock kernels, on machines whose own does not.
use crate::{
    process::{Finished, Run},
    project::Project,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const PREPARE_LIMIT: Duration = Duration::from_secs(900);

/// The quickest way for a stock kernel to boot in the lab: the serial console is slow there, and so are self-tests.
/// Nothing of it changes how the kernel finds and drives devices.
pub(crate) const QUICK_BOOT: &str = "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog tsc=reliable \
     cryptomgr.notests initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted";

/// The lab, with all that it needs in its cache.
pub(crate) struct Lab {
    folder: PathBuf,
    logs: PathBuf,
}

/// A command to be run as root in a lab of its own.
pub(crate) struct LabRun<'a> {
    pub(crate) label: &'a str,
    /// Disk images, seen as `/dev/vda` and so on.
    pub(crate) disks: &'a [PathBuf],
    /// Images of NVMe drives with queues that can be polled, named by `LAB_NVME0` and so on.
    pub(crate) drives: &'a [PathBuf],
    /// The command begins in this folder, and may write to it as `/out`.
    pub(crate) folder: &'a Path,
    pub(crate) limit: Duration,
    pub(crate) echo: bool,
}

impl Lab {
    /// Fills the lab's cache, which takes half a minute once.
    ///
    /// # Errors
    /// It cannot be filled: why, such as packages to install or no mirror.
    pub(crate) fn prepare(project: &Project) -> Result<Self, String> {
        let lab = Self::at(project)?;
        lab.tool("lab", "preparing the lab", &["prepare".as_ref()])?;
        Ok(lab)
    }

    /// Installs a Debian package on this machine, from the suite that the lab's QEMU comes from. Its cache may be
    /// empty.
    ///
    /// # Errors
    /// The lab's own words: it needs root and a mirror.
    pub(crate) fn install(project: &Project, package: &str) -> Result<(), String> {
        let label = format!("installing {package}");
        Self::at(project)?.tool("lab", &label, &["install".as_ref(), package.as_ref()]).map(drop)
    }

    fn at(project: &Project) -> Result<Self, String> {
        Ok(Lab { folder: project.root.join("tools/lab"), logs: project.scratch("logs")? })
    }

    /// The path of a file of the lab's cache, such as `vmlinux`.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf, String> {
        let finished = self.tool("lab", "asking the lab", &["path".as_ref(), name.as_ref()])?;
        finished.output.lines().last().map(PathBuf::from).ok_or_else(|| format!("lab path {name} printed nothing"))
    }

    /// Makes an initial RAM disk for a guest that runs a script, with other files, each at a path in the guest.
    ///
    /// # Errors
    /// The lab's own words.
    pub(crate) fn initrd_that_runs(&self, script: &Path, files: &[(&Path, &str)], output: &Path) -> Result<(), String> {
        let modules = "--modules=virtio_pci virtio_mmio virtio_blk ext4 crc32c_generic";
        let files: Vec<PathBuf> =
            files.iter().map(|(source, place)| format!("--file={}:{place}", source.display()).into()).collect();
        let mut arguments: Vec<&Path> =
            vec!["initrd".as_ref(), "-o".as_ref(), output, "--run".as_ref(), script, modules.as_ref()];
        arguments.extend(files.iter().map(PathBuf::as_path));
        self.tool("lab", "making an initrd", &arguments).map(drop)
    }

    /// Makes an ext4 image of a Debian system whose `/usr/local/sbin/pollux-demo` is the script.
    ///
    /// # Errors
    /// The tool's own words: it needs root and a mirror.
    pub(crate) fn debian_image(&self, script: &Path, size: &str, output: &Path) -> Result<(), String> {
        let arguments = [output, size.as_ref(), "--script".as_ref(), script];
        self.tool("rootfs", "making a Debian root file system", &arguments).map(drop)
    }

    /// Runs a command in the lab.
    ///
    /// # Errors
    /// The lab itself did not start, or ended before the command.
    pub(crate) fn run(&self, run: LabRun<'_>, command: &[&str]) -> Result<Finished, String> {
        let mut lab = Command::new(self.folder.join("lab"));
        lab.arg("run").arg("--timeout").arg(run.limit.as_secs().to_string());
        for disk in run.disks {
            lab.arg("--disk").arg(disk);
        }
        for drive in run.drives {
            lab.arg("--nvme").arg(drive);
        }
        lab.arg("--out").arg(run.folder).arg("--cwd").arg(run.folder).arg("--").args(command);
        // The lab ends the command first, and says so; the time around it is for its own start.
        let limit = run.limit + Duration::from_secs(120);
        let log = self.logs.join(format!("{}.log", run.label.replace(['/', ' '], "-")));
        let finished = Run { label: run.label, log, limit, echo: run.echo }.run(&mut lab)?;
        if finished.code == Some(LAB_FAILED) {
            return Err(format!("{LAB_DIED}:\n{}", finished.tail(40)));
        }
        Ok(finished)
    }

    fn tool(&self, tool: &str, label: &str, arguments: &[&Path]) -> Result<Finished, String> {
        let log = self.logs.join(format!("{tool}.log"));
        let mut command = Command::new(self.folder.join(tool));
        command.args(arguments);
        let finished = Run { label, log, limit: PREPARE_LIMIT, echo: false }.run(&mut command)?;
        if finished.succeeded() {
            return Ok(finished);
        }
        // What it lacks stands in its last line, after the words of other programs.
        let last = finished.output.lines().last().unwrap_or("it said nothing");
        Err(format!("{last} ({}; more in {})", finished.ending(), finished.log.display()))
    }
}

/// How the error begins that says so.
pub(crate) const LAB_DIED: &str = "the lab failed";
/// The status by which the lab says that it, not the command, failed.
const LAB_FAILED: i32 = 125;
