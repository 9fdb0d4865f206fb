//! What is tested on an NVMe drive of the lab's, without a guest.
use super::guest::Bench;
use crate::{lab::LabRun, process::Run};
use serde_json::Value;
use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

const BUILD_LIMIT: Duration = Duration::from_secs(900);
const RUN_LIMIT: Duration = Duration::from_secs(240);
const DRIVE_MIB: u64 = 64;

/// The tests of the plugin `uring` that need a drive: polled queues, and passthrough. None may be skipped.
pub(super) fn nvme(bench: &Bench<'_>) -> Result<(), String> {
    fs::create_dir_all(&bench.folder).map_err(|error| format!("{}: {error}", bench.folder.display()))?;
    let drive = bench.folder.join("drive.img");
    File::create(&drive)
        .and_then(|file| file.set_len(DRIVE_MIB << 20))
        .map_err(|error| format!("{}: {error}", drive.display()))?;
    let tests = tests_of(bench, "pollux-uring")?;
    let program = tests.to_str().ok_or("the path of the tests is not text")?;
    let run = LabRun {
        label: &format!("lab {}", bench.name),
        disks: &[],
        drives: &[drive],
        folder: &bench.folder,
        limit: RUN_LIMIT,
        echo: bench.verbose,
    };
    // One after the other: they share the drive.
    let finished = bench.lab.run(run, &[program, "--test-threads=1", "--show-output", "tests::nvme::"])?;
    let said = |word: &str| finished.output.contains(word);
    if finished.code != Some(0) || said("SKIPPED") || !said("commands_go_straight_to_a_namespace ... ok") {
        return Err(format!("the tests did not all run and pass, {}:\n{}", finished.ending(), finished.tail(60)));
    }
    Ok(())
}

/// The program with a package's unit tests, built now.
fn tests_of(bench: &Bench<'_>, package: &str) -> Result<PathBuf, String> {
    let log = bench.project.scratch("logs")?.join(format!("build-{package}.log"));
    let mut cargo = bench.project.cargo();
    cargo.args(["test", "--no-run", "--lib", "--message-format", "json", "-p", package]);
    let finished = Run { label: "cargo test", log, limit: BUILD_LIMIT, echo: false }.run(&mut cargo)?;
    if !finished.succeeded() {
        return Err(format!("the tests of {package} were not built:\n{}", finished.tail(40)));
    }
    let messages = finished.output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    programs.next_back().ok_or_else(|| format!("cargo named no program with the tests of {package}"))
}
