//! Runs the real program in a folder of its own.
//!
//! Each test file uses a part of this.
#![allow(dead_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// The program under test.
pub(crate) const POLLUX: &str = env!("CARGO_BIN_EXE_pollux");

/// The `[vm]` of most tests: good, and nothing more.
pub(crate) const VM: &str = "[vm]\nmemory = \"64M\"\nkernel = \"vmlinuz\"\n";
/// A worker that is good on every machine.
pub(crate) const WORKER: &str = "[worker.io0]\ncpu = 0\nidle = \"adaptive\"\n";

/// A folder with a kernel that is no kernel, and a disk image of 1 MiB.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Folder {
    pub(crate) fn new() -> Self {
        build_plugins();
        let folder = tempfile::tempdir().expect("a folder for the test");
        let made = Folder { folder };
        made.write("vmlinuz", "no kernel");
        made.write("disk.img", vec![0; 1 << 20]);
        made
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).expect("a file of the test");
        path
    }

    /// The program with these arguments, in this folder, and without the surroundings of whoever runs the test.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(POLLUX);
        command.args(arguments).current_dir(self.path()).env_remove("POLLUX_PLUGIN_PATH");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().expect("the program starts").into()
    }

    /// `pollux check vm.toml`, with `text` in that file.
    pub(crate) fn check(&self, text: &str) -> Ran {
        self.write("vm.toml", text);
        self.run(&["check", "vm.toml"])
    }

    /// Checks that `text` is refused with exactly these words. `FOLDER` stands for this folder.
    pub(crate) fn refuses(&self, text: &str, expected: &str) {
        let ran = self.check(text);
        let said = ran.stderr.replace(&*self.path().to_string_lossy(), "FOLDER");
        assert_eq!(said, expected, "of this file:\n{text}");
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(2), ""), "of this file:\n{text}");
    }

    /// Checks that `text` is taken, with exactly these warnings.
    pub(crate) fn warns(&self, text: &str, expected: &str) {
        let ran = self.check(text);
        assert_eq!(ran.stderr, expected, "of this file:\n{text}");
        assert_eq!(ran.status, Some(0), "of this file:\n{text}");
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Ran {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Builds the plugins beside the program, where it looks for them. Once for each test file.
fn build_plugins() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let profile = Path::new(POLLUX).parent().expect("the program lies in a folder");
        let target = profile.parent().expect("which lies in the target folder");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "-p", "pollux-null", "-p", "pollux-mem"]).arg("--target-dir").arg(target);
        match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => {}
            Some(profile) => drop(cargo.args(["--profile", profile])),
        }
        assert!(cargo.status().expect("cargo starts").success(), "the plugins do not build");
    });
}
