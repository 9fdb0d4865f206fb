//! What a fresh Debian machine with only the Rust toolchain lacks.
//!
//! Root gets it installed; anyone else is told exactly what to install. The lab installs its own packages the same way.
use crate::{
    boot_disk,
    host::{has_program, is_root},
    lab::Lab,
    process::Run,
    project::Project,
};
use std::{path::Path, process::Command, time::Duration};

/// A program that some step runs, or a file that it reads, by its path, and the Debian package that has it.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// For tests: file system images and their checks, the C header, compiled as C++ too, counts of instructions.
pub(crate) const TEST_TOOLS: &[Tool] = &[
    Tool { program: "cc", package: "gcc" },
    Tool { program: "c++", package: "g++" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "python3", package: "python3" },
    Tool { program: "valgrind", package: "valgrind" },
];

/// For disks that firmware boots from: boot loaders, the file system that UEFI reads, and the firmware that QEMU's own
/// packages lack.
pub(crate) const BOOT_DISK_TOOLS: &[Tool] = &[
    Tool { program: "grub-mkimage", package: "grub-common" },
    Tool { program: boot_disk::BIOS_BOOT_SECTOR, package: "grub-pc-bin" },
    Tool { program: boot_disk::EFI_MODULES, package: "grub-efi-amd64-bin" },
    Tool { program: "mformat", package: "mtools" },
    Tool { program: boot_disk::OVMF_CODE, package: "ovmf" },
];

/// For the demo; mmdebstrap and QEMU are installed by the lab where they are needed.
pub(crate) const DEMO_TOOLS: &[Tool] =
    &[Tool { program: "mke2fs", package: "e2fsprogs" }, Tool { program: "python3", package: "python3" }];

const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// Makes sure of programs.
///
/// # Errors
/// Some are missing and cannot be installed: which, and what to do.
pub(crate) fn install(project: &Project, tools: &[Tool]) -> Result<(), String> {
    let mut packages: Vec<&str> = missing(tools);
    if packages.is_empty() {
        return Ok(());
    }
    packages.dedup();
    let wanted = packages.join(" ");
    if !has_program("apt-get") {
        return Err(format!("this is not Debian (no apt-get); install what it calls {wanted}"));
    }
    if !is_root() {
        return Err(format!("not installed: {wanted}. As root: apt-get install {wanted}"));
    }
    apt_get(project, &["update"])?;
    let mut install = vec!["--no-install-recommends", "install"];
    install.extend(&packages);
    apt_get(project, &install)?;
    match missing(tools) {
        still if still.is_empty() => Ok(()),
        still => Err(format!("still missing after apt-get install: {}", still.join(" "))),
    }
}

/// Makes sure of a real back end for the tests of `pollux bench`.
///
/// # Errors
/// It is missing and cannot be installed: what to do.
pub(crate) fn storage_daemon(project: &Project) -> Result<(), String> {
    const PROGRAM: &str = "qemu-storage-daemon";
    if has_program(PROGRAM) {
        return Ok(());
    }
    // From where the lab has QEMU: bookworm has it in another package, which that QEMU replaces by one without.
    Lab::install(project, "qemu-utils")?;
    if has_program(PROGRAM) { Ok(()) } else { Err(format!("lab install qemu-utils brought no {PROGRAM}")) }
}

/// The packages of those programs that are not there.
fn missing(tools: &[Tool]) -> Vec<&'static str> {
    let is_there = |tool: &&Tool| match tool.program.starts_with('/') {
        true => Path::new(tool.program).exists(),
        false => has_program(tool.program),
    };
    tools.iter().filter(|tool| !is_there(tool)).map(|tool| tool.package).collect()
}

fn apt_get(project: &Project, arguments: &[&str]) -> Result<(), String> {
    let log = project.scratch("logs")?.join("apt-get.log");
    let label = format!("apt-get {}", arguments.join(" "));
    let mut command = Command::new("apt-get");
    command.args(["-q", "-y"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    let finished = Run { label: &label, log, limit: INSTALL_LIMIT, echo: false }.run(&mut command)?;
    if finished.succeeded() {
        return Ok(());
    }
    Err(format!("{label}: {}\n{}", finished.ending(), finished.tail(10)))
}

/// Makes sure of a component of the Rust toolchain, such as `rustfmt`, whose Cargo command is `fmt`.
///
/// # Errors
/// It is missing and rustup cannot add it.
pub(crate) fn rust_component(project: &Project, component: &str, subcommand: &str) -> Result<(), String> {
    let is_there = || {
        let output = project.cargo().args([subcommand, "--version"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if is_there() {
        return Ok(());
    }
    let advice = format!("cargo {subcommand} is missing; run: rustup component add {component}");
    if !has_program("rustup") {
        return Err(advice);
    }
    let log = project.scratch("logs")?.join("rustup.log");
    let label = format!("rustup component add {component}");
    let mut command = Command::new("rustup");
    command.args(["component", "add", component]).current_dir(&project.root);
    Run { label: &label, log, limit: INSTALL_LIMIT, echo: false }.run(&mut command)?;
    if is_there() { Ok(()) } else { Err(advice) }
}
