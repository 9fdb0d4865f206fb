//! Runs the real program in a folder of its own.
//!
//! Each test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod cases;
pub(crate) mod disk;
pub(crate) mod relay;
pub(crate) mod running;
pub(crate) mod serving;

use pollux_testing::build;
use std::{
    fs,
    os::unix::process::CommandExt,
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

/// A folder with a kernel of a few instructions, and a disk image of 1 MiB.
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
        made.write("vmlinuz", guest("hello", POWER_OFF));
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
        // SAFETY: async-signal-safe. Whoever runs the tests may have these ignored, and they would stay so.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            })
        };
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
        ["pollux-null", "pollux-mem", "pollux-uring"].into_iter().for_each(|package| drop(build::plugin(package)))
    });
}

/// Port, value: switches the power off.
pub(crate) const POWER_OFF: (u16, u8) = (0x600, 0x34);
/// An ELF file with a PVH entry, in 32-bit protected mode: prints `text` on COM1, writes to a port, halts for ever.
pub(crate) fn guest(text: &str, (port, value): (u16, u8)) -> Vec<u8> {
    let entry: u32 = 0x10_0000;
    let mut code = Vec::new();
    let mut out = |port: u16, value: u8| {
        code.extend([0x66, 0xba]); // mov dx, port
        code.extend(port.to_le_bytes());
        code.extend([0xb0, value, 0xee]); // mov al, value; out dx, al
    };
    text.bytes().for_each(|byte| out(0x3f8, byte));
    out(port, value);
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back to it
    // Note XEN_ELFNOTE_PHYS32_ENTRY: sizes of name and content, type, name, content.
    let mut note: Vec<u8> = [4u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend(*b"Xen\0");
    note.extend(entry.to_le_bytes());
    const HEADERS: u64 = 64 + 2 * 56;
    const CODE: u64 = 0x1000;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    put(&u64::from(entry).to_le_bytes());
    put(&64u64.to_le_bytes()); // program headers
    put(&[0; 12]); // no section headers, no flags
    put(&[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]); // sizes and numbers of headers
    let mut segment = |kind: u32, offset: u64, address: u64, length: u64, align: u64| {
        put(&kind.to_le_bytes());
        put(&5u32.to_le_bytes());
        [offset, address, address, length, length, align].iter().for_each(|word| put(&word.to_le_bytes()));
    };
    segment(1, CODE, entry.into(), code.len() as u64, 0x1000);
    segment(4, HEADERS, 0, note.len() as u64, 4);
    file.extend(note);
    file.resize(CODE as usize, 0);
    file.extend(code);
    file
}
