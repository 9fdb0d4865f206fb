//! A guest in the lab: its files, its run, and what is asked of it afterwards.
use crate::{
    guest_program,
    image::{self, Disk, Images},
    lab::{LAB_DIED, Lab, LabRun, QUICK_BOOT},
    process::Finished,
    project::Project,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

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
    /// Made for each run. The first is `/dev/vda` in the lab.
    pub(super) disks: &'a [Disk<'a>],
    /// A script that runs `pollux run` in the lab itself; without one, that is the command.
    pub(super) host_script: Option<&'a str>,
}

/// A guest with nothing special about it.
pub(super) const PLAIN: Guest<'_> = Guest {
    config: "one-disk.toml",
    kernel: Kernel::Elf,
    init: Init::Script("up.sh"),
    disks: &[Disk::Blank(16)],
    host_script: None,
};

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
    /// Has this word in `/how`, and a second kernel that it goes over to, by either of two ways.
    Kexec(&'a str),
    /// Goes over to the root file system that the kernel command line names.
    Root,
}

/// A guest's run.
pub(super) struct Ran {
    finished: Finished,
    folder: PathBuf,
    disks: Vec<PathBuf>,
}

/// How often a test is begun whose lab dies.
const ATTEMPTS: u32 = 3;
const RUN_LIMIT: Duration = Duration::from_secs(240);

impl Bench<'_> {
    /// Makes a guest's files and runs it in the lab. If the lab itself dies, such as its kernel by an exception that
    /// emulation has made up, which no program in it can bring about, that is said and all of it done again.
    ///
    /// # Errors
    /// They cannot be made, or the lab failed each time.
    pub(super) fn run(&self, guest: &Guest<'_>) -> Result<Ran, String> {
        for _ in 1..ATTEMPTS {
            match self.run_once(guest) {
                Err(why) if why.starts_with(LAB_DIED) => println!("note: {}: once more: {why}", self.name),
                result => return result,
            }
        }
        self.run_once(guest)
    }

    fn run_once(&self, guest: &Guest<'_>) -> Result<Ran, String> {
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
            Init::Script(script) => {
                self.lab.initrd_that_runs(&self.source(script), &self.shared_scripts().each(), &initrd)?;
            }
            Init::Kexec(how) => self.kexec_initrd(how, &initrd)?,
            Init::Root => self.link("initrd", &self.lab.path("initrd-root")?)?,
        }
        let images = Images { lab: self.lab, scripts: &self.source(""), folder: &self.folder };
        let mut disks = Vec::new();
        for (index, disk) in guest.disks.iter().enumerate() {
            let image = self.folder.join(format!("disk{index}.img"));
            images.make(*disk, &image)?;
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
            drives: &[],
            folder: &self.folder,
            limit: RUN_LIMIT,
            echo: self.verbose,
        };
        let finished = self.lab.run(run, &command)?;
        Ok(Ran { finished, folder: self.folder.clone(), disks })
    }

    /// An initial RAM disk with all that starts another kernel, whose own initial RAM disk is in it.
    fn kexec_initrd(&self, how: &str, initrd: &Path) -> Result<(), String> {
        let (second, how_file) = (self.folder.join("second"), self.folder.join("how"));
        let shared = self.shared_scripts();
        self.lab.initrd_that_runs(&self.source("after-kexec.sh"), &shared.each(), &second)?;
        fs::write(&how_file, how).map_err(describe(&how_file))?;
        let kernel = self.lab.path("kernel")?;
        let program = guest_program::compile(self.project, &self.source("kexec.c"))?;
        let files = [(&*how_file, "/how"), (&*kernel, "/kernel"), (&*second, "/second"), (&*program, "/bin/kexec")];
        self.lab.initrd_that_runs(&self.source("before-kexec.sh"), &[&shared.each()[..], &files].concat(), initrd)
    }

    /// What the scripts of guests source.
    fn shared_scripts(&self) -> SharedScripts {
        let common = self.project.root.join("tools/xtask/qemu/common.sh");
        SharedScripts { common, media: self.source("media.sh") }
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
}

/// Scripts for guests, and where they have them.
struct SharedScripts {
    common: PathBuf,
    media: PathBuf,
}

impl SharedScripts {
    fn each(&self) -> [(&Path, &str); 2] {
        [(&self.common, "/common.sh"), (&self.media, "/media.sh")]
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
        image::expect_clean(&self.disks[disk])
    }

    /// The SHA-256 sum of a file in an image's file system.
    ///
    /// # Errors
    /// There is no such file.
    pub(super) fn sha256_in(&self, disk: usize, file: &str) -> Result<String, String> {
        image::sha256_in(&self.disks[disk], file).or_else(|why| self.fail(&why))
    }

    /// An error with the end of the output.
    pub(super) fn fail<T>(&self, why: &str) -> Result<T, String> {
        Err(format!("{why}:\n{}", self.finished.tail(40)))
    }
}

fn describe<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

/// A path as text: those here are made of the checkout's, and Debian's names are text.
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("path-that-is-not-text")
}
