//! `cargo xtask test`: every check there is, one after the other, the rest too if one fails.

use std::path::{self, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cargo_test;
use crate::demo;
use crate::fuzz;
use crate::instructions;
use crate::lab_tests;
use crate::process::{Finished, Run};
use crate::project::Project;
use crate::qemu_tests::{self, BackendKind};
use crate::setup::{self, TEST_TOOLS};
use crate::summary::{Outcome, Summary, Tally};
use crate::tidy;

const CARGO_LIMIT: Duration = Duration::from_secs(900);
const SELFTEST_LIMIT: Duration = Duration::from_secs(600);

/// Runs the steps whose names begin with one of `wanted`, all of them if it is empty. Returns whether nothing failed.
pub(crate) fn test(project: &Project, wanted: &[String], lab_selftest: bool) -> bool {
    let mut summary = Summary::default();
    let is_wanted = |step: &str| wanted.is_empty() || wanted.iter().any(|wanted| step.starts_with(wanted.as_str()));
    summary.step("set-up", || match setup::install(project, TEST_TOOLS) {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Skipped(why),
    });
    if is_wanted("tests") {
        summary.step("set-up of qemu-storage-daemon", || match setup::storage_daemon(project) {
            Ok(()) => Outcome::Passed,
            Err(why) => Outcome::Skipped(why),
        });
    }
    if is_wanted("format") {
        summary.step("format", || component_step(project, "rustfmt", "fmt", &["--all", "--check", "--", "-l"]));
    }
    if is_wanted("tidy") {
        tidy::check(project, &mut summary);
    }
    // Tests and the lab look for plugins and programs that other packages make.
    summary.step("build", || build(project));
    if is_wanted("clippy") {
        let arguments = ["--workspace", "--all-targets", "--", "-D", "warnings"];
        summary.step("clippy", || component_step(project, "clippy", "clippy", &arguments));
    }
    if is_wanted("docs") {
        let flags = "build.rustdocflags=[\"-D\", \"warnings\"]";
        let arguments = ["doc", "--workspace", "--no-deps", "--config", flags];
        summary.step("docs", || Outcome::of(cargo(project, "docs", &arguments)));
    }
    if is_wanted("tests") {
        let kinds = ["--workspace", "--lib", "--bins", "--tests", "--examples"];
        summary.tests("tests", || cargo_tests(project, "tests", &kinds));
    }
    if is_wanted("doc tests") {
        summary.tests("doc tests", || cargo_tests(project, "doc-tests", &["--workspace", "--doc"]));
    }
    if is_wanted("benches") {
        // Not for numbers: each bench runs once, hardly optimised. The whole workspace, so that nothing is built anew.
        let arguments = ["test", "--workspace", "--bench", "*"];
        summary.step("benches", || Outcome::of(cargo(project, "benches", &arguments)));
    }
    if is_wanted("fuzz") {
        fuzz::as_test(project, &mut summary);
    }
    if is_wanted("instructions") {
        summary.step("instructions", || instructions::as_test(project));
    }
    if is_wanted("lab") {
        // Without names this has no error.
        let _ = lab_tests::run(project, &built_pollux(project), &[], false, &mut summary);
    }
    if is_wanted("qemu") {
        // The same.
        let _ = qemu_tests::run(project, &built_pollux(project), BackendKind::Pollux, &[], false, &mut summary);
    }
    if is_wanted("demo") {
        summary.step("demo", || demo::as_test(project));
    }
    if lab_selftest {
        summary.step("lab: selftest", || selftest(project));
    }
    summary.close()
}

/// Runs lab tests alone.
///
/// # Errors
/// A name is unknown.
pub(crate) fn lab_test(
    project: &Project,
    names: &[String],
    verbose: bool,
    pollux: Option<PathBuf>,
) -> Result<bool, String> {
    let mut summary = Summary::default();
    let pollux = given_or_built(project, pollux, &mut summary)?;
    lab_tests::run(project, &pollux, names, verbose, &mut summary)?;
    Ok(summary.close())
}

/// Runs tests with QEMU alone.
///
/// # Errors
/// A name is unknown.
pub(crate) fn qemu_test(
    project: &Project,
    names: &[String],
    verbose: bool,
    pollux: Option<PathBuf>,
    backend: BackendKind,
) -> Result<bool, String> {
    let mut summary = Summary::default();
    let pollux = match backend {
        BackendKind::Pollux => given_or_built(project, pollux, &mut summary)?,
        BackendKind::QemuStorageDaemon => built_pollux(project),
    };
    qemu_tests::run(project, &pollux, backend, names, verbose, &mut summary)?;
    Ok(summary.close())
}

/// The program that a user names, or else the one that is built now.
fn given_or_built(project: &Project, pollux: Option<PathBuf>, summary: &mut Summary) -> Result<PathBuf, String> {
    if let Some(pollux) = pollux {
        return path::absolute(&pollux).map_err(|error| format!("{}: {error}", pollux.display()));
    }
    summary.step("build", || build(project));
    Ok(built_pollux(project))
}

/// Checks the rules about the tree alone.
pub(crate) fn tidy(project: &Project) -> bool {
    let mut summary = Summary::default();
    tidy::check(project, &mut summary);
    summary.close()
}

fn build(project: &Project) -> Outcome {
    Outcome::of(cargo(project, "build", &["build", "--workspace", "--all-targets"]))
}

fn built_pollux(project: &Project) -> PathBuf {
    project.target.join("debug/pollux")
}

/// A check by a part of the toolchain that a small installation lacks.
fn component_step(project: &Project, component: &str, subcommand: &str, arguments: &[&str]) -> Outcome {
    match setup::rust_component(project, component, subcommand) {
        Ok(()) => Outcome::of(cargo(project, subcommand, &[&[subcommand], arguments].concat())),
        Err(why) => Outcome::Skipped(why),
    }
}

/// Runs tests through Cargo. All of them run, whatever fails.
fn cargo_tests(project: &Project, log: &str, kinds: &[&str]) -> Result<Tally, String> {
    let arguments = [&["test", "--no-fail-fast"], kinds, &["--", "--show-output"]].concat();
    let finished = cargo(project, log, &arguments)?;
    let tally = cargo_test::tally(&finished.output);
    if finished.succeeded() {
        return Ok(tally);
    }
    if tally.failed.is_empty() {
        // It did not compile, or a test took the whole process down.
        return Err(format!("{}\n    {}", finished.tail(200), finished.ending()));
    }
    println!("{}    [all of it: {}]", cargo_test::failures(&finished.output), finished.log.display());
    Ok(tally)
}

fn cargo(project: &Project, log: &str, arguments: &[&str]) -> Result<Finished, String> {
    let label = format!("cargo {}", arguments[0]);
    let log = project.scratch("logs")?.join(format!("{log}.log"));
    Run { label: &label, log, limit: CARGO_LIMIT, echo: false }.run(project.cargo().args(arguments))
}

fn selftest(project: &Project) -> Outcome {
    let run = || {
        let log = project.scratch("logs")?.join("selftest.log");
        let mut command = Command::new(project.root.join("tools/lab/selftest"));
        Run { label: "lab selftest", log, limit: SELFTEST_LIMIT, echo: false }.run(&mut command)
    };
    Outcome::of(run())
}
