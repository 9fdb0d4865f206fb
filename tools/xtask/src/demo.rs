//! `cargo xtask demo`: a Debian guest boots from the uring plugin, uses a second disk of the mem plugin, and the host
//! shows what it counted.
use crate::{
    host::{allowed_cpus, is_root, kvm_obstacle},
    lab::{Lab, LabRun, QUICK_BOOT},
    process::{Finished, Run},
    project::Project,
    setup::{self, DEMO_TOOLS},
    summary::Outcome,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const BUILD_LIMIT: Duration = Duration::from_secs(1200);
const RUN_LIMIT: Duration = Duration::from_secs(300);
const IMAGE_SIZE: &str = "512M";

/// Builds everything, runs the guest and prints what it and the host saw. Returns whether all went well.
///
/// # Errors
/// Something is missing: what, and what to do.
pub(crate) fn demo(project: &Project) -> Result<bool, String> {
    setup::install(project, DEMO_TOOLS)?;
    println!("Building Pollux and its plugins in release, which takes some minutes the first time.");
    build(project)?;
    println!("Making a Debian root file system and the kernel to boot it with.");
    let place = Place::choose();
    let stage = Stage::set(project, "demo", &place)?;
    match &place {
        Place::Here { .. } => println!("KVM runs stock kernels here. The guest says:\n"),
        Place::Lab { obstacle } => println!(
            "KVM does not run stock kernels here ({obstacle}).\n\
             So the guest runs in the lab, a virtual machine in software emulation that has nested KVM. What it says \
             and counts\n\
             is real, times are not. The lab has two processors, so the worker sleeps when idle and is woken by \
             kicks.\n\
             The guest says:\n"
        ),
    }
    let finished = stage.run(project, "release", true)?;
    match verdict(&finished) {
        Ok(()) => {
            println!(
                "\nThe demo is done: a stock Debian guest ran from two plugins, read back what it wrote, and powered \
                 off."
            );
            println!("Its configuration: {}", stage.config.display());
            Ok(true)
        }
        Err(why) => {
            println!("\nThe demo FAILED: {why}. All output: {}", finished.log.display());
            Ok(false)
        }
    }
}

/// The same guest with the programs that the tests have built, always in the lab.
pub(crate) fn as_test(project: &Project) -> Outcome {
    if !is_root() {
        return Outcome::Skipped("a Debian root file system can only be made by root".to_owned());
    }
    let place = Place::Lab { obstacle: "tests have one machine for all" };
    let stage = match Stage::set(project, "demo-test", &place) {
        Ok(stage) => stage,
        Err(why) => return Outcome::Skipped(why),
    };
    let result = stage
        .run(project, "debug", false)
        .and_then(|finished| verdict(&finished).map_err(|why| format!("{why}\n{}", finished.tail(40))));
    result.into()
}

/// Whether the guest said that all is well and ended as it should.
fn verdict(finished: &Finished) -> Result<(), String> {
    if let Some(line) = finished.output.lines().find(|line| line.starts_with("GUEST FAILED")) {
        return Err(line.to_owned());
    }
    if !finished.output.lines().any(|line| line == "GUEST PASSED") {
        return Err(format!("the guest did not come to its end ({})", finished.ending()));
    }
    if finished.succeeded() { Ok(()) } else { Err(format!("pollux: {}", finished.ending())) }
}

fn build(project: &Project) -> Result<(), String> {
    let log = project.scratch("logs")?.join("demo-build.log");
    let mut cargo = project.cargo();
    cargo.args(["build", "--release", "--workspace", "--exclude", "xtask", "--exclude", "pollux-benches"]);
    let finished = Run { label: "cargo build --release", log, limit: BUILD_LIMIT, echo: false }.run(&mut cargo)?;
    if finished.succeeded() {
        return Ok(());
    }
    Err(format!("cargo build --release: {}\n{}", finished.ending(), finished.tail(60)))
}

/// Where the guest runs.
enum Place {
    /// On this machine's KVM, with a worker on this CPU.
    Here { cpu: usize, idle: &'static str },
    /// In the lab, for this reason.
    Lab { obstacle: &'static str },
}

impl Place {
    fn choose() -> Self {
        if let Some(obstacle) = kvm_obstacle() {
            return Place::Lab { obstacle };
        }
        let cpus = allowed_cpus();
        // A worker that never sleeps wants a core that nobody else needs.
        let idle = if cpus.len() >= 4 { "spin" } else { "adaptive" };
        Place::Here { cpu: cpus.last().copied().unwrap_or(0), idle }
    }
}

/// A folder with everything that the guest needs.
struct Stage<'a> {
    folder: PathBuf,
    config: PathBuf,
    image: PathBuf,
    lab: Lab,
    place: &'a Place,
}

impl<'a> Stage<'a> {
    fn set(project: &Project, name: &str, place: &'a Place) -> Result<Self, String> {
        let folder = project.scratch(name)?;
        let sources = project.root.join("tools/xtask/demo");
        let lab = Lab::prepare(project)?;
        let image = folder.join("root.img");
        lab.debian_image(&sources.join("guest.sh"), IMAGE_SIZE, &image)?;
        let (root, cpu, idle) = match place {
            Place::Here { cpu, idle } => (text(&image), *cpu, *idle),
            // The lab's first disk; the second of its two processors; both are needed by the guest too.
            Place::Lab { .. } => ("/dev/vda", 1, "adaptive"),
        };
        let config = folder.join("vm.toml");
        let template = fs::read_to_string(sources.join("vm.toml")).map_err(|error| format!("vm.toml: {error}"))?;
        let filled = template
            .replace("@kernel@", text(&lab.path("vmlinux")?))
            .replace("@initrd@", text(&lab.path("initrd-root")?))
            .replace("@quick-boot@", QUICK_BOOT)
            .replace("@cpu@", &cpu.to_string())
            .replace("@idle@", idle)
            .replace("@root@", root);
        fs::write(&config, filled).map_err(|error| format!("{}: {error}", config.display()))?;
        Ok(Stage { folder, config, image, lab, place })
    }

    fn run(&self, project: &Project, profile: &str, echo: bool) -> Result<Finished, String> {
        let pollux = project.target.join(profile).join("pollux");
        let command = [text(&pollux), "run", text(&self.config), "--stats"];
        match self.place {
            Place::Here { .. } => {
                let log = self.folder.join("demo.log");
                let run = Run { label: "demo", log, limit: RUN_LIMIT, echo };
                run.run(Command::new(command[0]).args(&command[1..]))
            }
            Place::Lab { .. } => {
                let disks = [self.image.clone()];
                let run =
                    LabRun { label: "demo", disks: &disks, drives: &[], folder: &self.folder, limit: RUN_LIMIT, echo };
                self.lab.run(run, &command)
            }
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or("path-that-is-not-text")
}
