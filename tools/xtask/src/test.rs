//! `cargo xtask test`: every check there is, one after the other, the rest too if one fails.
use crate::{
    cargo_test, demo, fuzz, instructions, lab_tests,
    process::{Finished, Run},
    project::Project,
    qemu_tests::{self, BackendKind},
    setup::{self, TEST_TOOLS},
    summary::{Outcome, Summary, Tally},
    tidy,
};
use std::{
    io::{self, Write},
    path::{self, PathBuf},
    process::Command,
    time::Duration,
};

const CARGO_LIMIT: Duration = Duration::from_secs(900);
const SELFTEST_LIMIT: Duration = Duration::from_secs(600);

/// Finds out the names of a step's parts.
type Parts = fn(&Project) -> Result<Vec<String>, String>;

/// A step of the tests.
struct Step {
    /// What a user names it by.
    name: &'static str,
    /// Whether the other steps rely on it, so that it is never left out.
    is_ground: bool,
    run: fn(&Project, &mut Summary),
    /// The names that its parts have in the output, if it is more than one test.
    parts: Option<Parts>,
}

/// All steps, in the order in which they run.
const STEPS: &[Step] = &[
    Step { is_ground: true, ..step("set-up", set_up) },
    step("format", |project, summary| {
        summary.step("format", || component_step(project, "rustfmt", "fmt", &["--all", "--check", "--", "-l"]));
    }),
    Step { parts: Some(|_| Ok(tidy::names())), ..step("tidy", tidy::check) },
    // Tests and the lab look for plugins and programs that other packages make.
    Step { is_ground: true, ..step("build", |project, summary| summary.step("build", || build(project))) },
    step("clippy", |project, summary| {
        let arguments = ["--workspace", "--all-targets", "--", "-D", "warnings"];
        summary.step("clippy", || component_step(project, "clippy", "clippy", &arguments));
    }),
    step("docs", |project, summary| {
        let flags = "build.rustdocflags=[\"-D\", \"warnings\"]";
        let arguments = ["doc", "--workspace", "--no-deps", "--config", flags];
        summary.step("docs", || Outcome::of(cargo(project, "docs", &arguments)));
    }),
    Step { parts: Some(|project| cargo_test_names(project, "tests", TEST_KINDS)), ..step("tests", tests) },
    Step {
        parts: Some(|project| cargo_test_names(project, "doc tests", DOC_TEST_KINDS)),
        ..step("doc tests", |project, summary| {
            summary.tests("doc tests", || cargo_tests(project, "doc-tests", DOC_TEST_KINDS));
        })
    },
    step("benches", |project, summary| {
        // Not for numbers: each bench runs once, hardly optimised. The whole workspace, so that nothing is built again.
        let arguments = ["test", "--workspace", "--bench", "*"];
        summary.step("benches", || Outcome::of(cargo(project, "benches", &arguments)));
    }),
    Step { parts: Some(|project| Ok(fuzz::names(project))), ..step("fuzz", fuzz::as_test) },
    step("instructions", |project, summary| summary.step("instructions", || instructions::as_test(project))),
    Step {
        parts: Some(|_| Ok(lab_tests::names())),
        ..step("lab", |project, summary| {
            // Without names this has no error.
            let _ = lab_tests::run(project, &built_pollux(project), &[], false, summary);
        })
    },
    Step {
        parts: Some(|_| Ok(qemu_tests::names())),
        ..step("qemu", |project, summary| {
            // The same.
            let _ = qemu_tests::run(project, &built_pollux(project), BackendKind::Pollux, &[], false, summary);
        })
    },
    step("demo", |project, summary| summary.step("demo", || demo::as_test(project))),
];

const SELFTEST: Step = step("lab: selftest", |project, summary| summary.step("lab: selftest", || selftest(project)));

const TEST_KINDS: &[&str] = &["--workspace", "--lib", "--bins", "--tests", "--examples"];
const DOC_TEST_KINDS: &[&str] = &["--workspace", "--doc"];

const fn step(name: &'static str, run: fn(&Project, &mut Summary)) -> Step {
    Step { name, is_ground: false, run, parts: None }
}

/// The steps whose names begin with one of `wanted`, and those that all rely on; all steps if it is empty.
fn chosen(wanted: &[String], lab_selftest: bool) -> impl Iterator<Item = &'static Step> {
    let is_wanted = move |step: &&Step| {
        step.is_ground || wanted.is_empty() || wanted.iter().any(|wanted| step.name.starts_with(wanted))
    };
    STEPS.iter().filter(is_wanted).chain(lab_selftest.then_some(&SELFTEST))
}

/// Runs the steps chosen. Returns whether nothing failed.
pub(crate) fn test(project: &Project, wanted: &[String], lab_selftest: bool) -> bool {
    let mut summary = Summary::default();
    chosen(wanted, lab_selftest).for_each(|step| (step.run)(project, &mut summary));
    summary.close()
}

/// Prints the steps chosen and the tests in them, and runs none. Tests in Rust are compiled, since they say their names
/// themselves.
///
/// # Errors
/// They do not compile.
pub(crate) fn list(project: &Project, wanted: &[String], lab_selftest: bool) -> Result<bool, String> {
    for step in chosen(wanted, lab_selftest) {
        let names = step.parts.map_or_else(|| Ok(vec![step.name.to_owned()]), |parts| parts(project))?;
        // Whoever reads no further, as `head` does, has what it wants.
        if names.iter().any(|name| writeln!(io::stdout(), "{name}").is_err()) {
            break;
        }
    }
    Ok(true)
}

fn set_up(project: &Project, summary: &mut Summary) {
    summary.step("set-up", || match setup::install(project, TEST_TOOLS) {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Skipped(why),
    });
}

fn tests(project: &Project, summary: &mut Summary) {
    summary.step("set-up of qemu-storage-daemon", || match setup::storage_daemon(project) {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Skipped(why),
    });
    summary.tests("tests", || cargo_tests(project, "tests", TEST_KINDS));
}

/// The names of tests that Cargo runs, after the step's and their program's.
fn cargo_test_names(project: &Project, step: &str, kinds: &[&str]) -> Result<Vec<String>, String> {
    let arguments = [&["test"], kinds, &["--", "--list"]].concat();
    let finished = cargo(project, "list", &arguments)?;
    if !finished.succeeded() {
        return Err(format!("cannot list the tests: {}\n{}", finished.ending(), finished.tail(60)));
    }
    Ok(cargo_test::names(&finished.output).iter().map(|name| format!("{step}: {name}")).collect())
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
