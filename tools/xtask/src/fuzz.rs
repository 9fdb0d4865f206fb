//! Hostile input made by libFuzzer, with AddressSanitizer watching: `cargo xtask fuzz`, and a step of the tests for
//! each target.
//!
//! The targets are the programs of the package `pollux-fuzz`. They are built beside everything else, with what the
//! stable compiler does only when it is told that it may: RUSTC_BOOTSTRAP. `cargo fuzz` knows their layout too.
use crate::{
    host::has_program,
    process::{Finished, Run},
    project::Project,
    setup::{self, Tool},
    summary::{Outcome, Summary},
};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const PACKAGE: &str = "pollux-fuzz";
const FEATURE: &str = "libfuzzer";
/// libFuzzer is C++, and built from source.
const COMPILER: &[Tool] = &[Tool { program: "c++", package: "g++" }];
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
/// What a run may take beside its time: its beginning, on a busy machine.
const SLACK: Duration = Duration::from_secs(240);
/// Seconds of each target in the tests.
const TEST_SECONDS: u64 = 10;
/// Seconds after which one input has taken too long. Far more than any needs on a busy machine.
const INPUT_SECONDS: u64 = 60;
const MEMORY_MIB: u64 = 4096;

/// What has the compiler count which code an input reaches, and with which comparisons: what cargo-fuzz does as well.
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
];
const SANITIZER: &str = "-Zsanitizer=address";
/// Mappings that live as long as the process are no leaks, and a library that was loaded is never unloaded.
const SANITIZER_OPTIONS: &str = "detect_leaks=0:quarantine_size_mb=64";

/// Fuzzes the target named, or each of them, for so many minutes. With `input`, runs that one file alone.
///
/// # Errors
/// There is no such target, or nothing to build it with.
pub(crate) fn fuzz(
    project: &Project,
    target: Option<&str>,
    minutes: u64,
    input: Option<&Path>,
) -> Result<bool, String> {
    let all = targets(project);
    let wanted: Vec<String> = match target {
        Some(target) if all.contains(target) => vec![target.to_owned()],
        Some(target) => {
            let names = all.into_iter().collect::<Vec<_>>().join(", ");
            return Err(format!("there is no fuzz target {target}; there are {names}"));
        }
        None => all.into_iter().collect(),
    };
    setup::install(project, COMPILER)?;
    let mut summary = Summary::default();
    let mut built = None;
    summary.step("fuzz: build", || match Programs::build(project) {
        Ok(programs) => built.insert(programs).outcome(),
        Err(why) => Outcome::Failed(why),
    });
    for target in built.iter().flat_map(|programs| wanted.iter().map(move |target| (programs, target))) {
        let (programs, target) = target;
        summary.step(&format!("fuzz: {target}"), || match input {
            Some(input) => programs.run_one(target, input),
            None => programs.run(target, 60 * minutes, Corpus::Kept),
        });
    }
    Ok(summary.close())
}

/// The names of the steps below.
pub(crate) fn names(project: &Project) -> Vec<String> {
    let targets = targets(project);
    ["fuzz: build".to_owned()].into_iter().chain(targets.iter().map(|target| format!("fuzz: {target}"))).collect()
}

/// Runs each target for some seconds, as steps of the tests.
pub(crate) fn as_test(project: &Project, summary: &mut Summary) {
    if !has_program("c++") {
        summary.add("fuzz", Outcome::Skipped("no C++ compiler; as root: apt-get install g++".to_owned()));
        return;
    }
    let mut built = None;
    summary.step("fuzz: build", || match Programs::build(project) {
        Ok(programs) => built.insert(programs).outcome(),
        Err(why) => Outcome::Failed(why),
    });
    let Some(programs) = built else { return };
    for target in targets(project) {
        summary.step(&format!("fuzz: {target}"), || programs.run(&target, TEST_SECONDS, Corpus::New));
    }
}

/// The names of all targets.
fn targets(project: &Project) -> BTreeSet<String> {
    let packages = project.metadata["packages"].as_array().into_iter().flatten();
    let targets =
        packages.filter(|package| package["name"] == PACKAGE).flat_map(|package| package["targets"].as_array());
    targets
        .flatten()
        .filter(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin")))
        .filter_map(|target| Some(target["name"].as_str()?.to_owned()))
        .collect()
}

/// Whether inputs that reach something new are there in the next run as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Corpus {
    Kept,
    New,
}

/// The targets as programs.
struct Programs<'p> {
    project: &'p Project,
    folder: PathBuf,
    is_sanitized: bool,
}

impl<'p> Programs<'p> {
    fn build(project: &'p Project) -> Result<Self, String> {
        let compiler = Compiler::ask(project)?;
        let mut flags = COVERAGE.to_vec();
        flags.extend(compiler.has_sanitizer.then_some(SANITIZER));
        let target = project.target.join("fuzz");
        let mut cargo = project.cargo();
        cargo
            .args(["build", "-p", PACKAGE, "--features", FEATURE, "--bins", "--target", &compiler.host, "--target-dir"])
            .arg(&target)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        let log = project.scratch("logs")?.join("fuzz-build.log");
        let finished = Run { label: "building fuzz targets", log, limit: BUILD_LIMIT, echo: false }.run(&mut cargo)?;
        if !finished.succeeded() {
            return Err(format!("{}\n    {}", finished.tail(60), finished.ending()));
        }
        let folder = target.join(compiler.host).join("debug");
        Ok(Programs { project, folder, is_sanitized: compiler.has_sanitizer })
    }

    fn outcome(&self) -> Outcome {
        match self.is_sanitized {
            true => Outcome::Passed,
            false => Outcome::Noted("    without AddressSanitizer, which this Rust toolchain lacks".to_owned()),
        }
    }

    /// Runs a target on its corpus and on new inputs.
    fn run(&self, target: &str, seconds: u64, corpus: Corpus) -> Outcome {
        self.try_run(target, seconds, corpus).unwrap_or_else(|why| Outcome::Failed(format!("    {why}")))
    }

    fn try_run(&self, target: &str, seconds: u64, corpus: Corpus) -> Result<Outcome, String> {
        let (kept, found) = (self.scratch(target, "corpus")?, self.scratch(target, "found")?);
        let own = match corpus {
            Corpus::Kept => kept,
            Corpus::New => {
                let own = self.scratch(target, "corpus-of-test")?;
                let cleared = fs::remove_dir_all(&own).and_then(|()| fs::create_dir(&own));
                cleared.map_err(|error| format!("cannot clear {}: {error}", own.display()))?;
                own
            }
        };
        let mut command = self.command(target);
        // What is new goes to the first one.
        command.arg(own).arg(self.project.root.join("fuzz/corpus").join(target));
        command.args([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", found.display()),
            "-print_final_stats=1".to_owned(),
        ]);
        let finished = self.finish(target, &mut command, Duration::from_secs(seconds) + SLACK)?;
        if !finished.succeeded() {
            return Ok(Outcome::Failed(failure(target, &finished)));
        }
        let left_out = finished.output.lines().filter_map(|line| line.split_once("SKIPPED: "));
        let mut notes: Vec<String> = left_out.map(|(_, what)| format!("    left out: {what}")).collect();
        if corpus == Corpus::Kept {
            notes.extend(summary_of(&finished.output).map(|summary| format!("    {summary}")));
        }
        Ok(if notes.is_empty() { Outcome::Passed } else { Outcome::Noted(notes.join("\n")) })
    }

    /// Runs a target on one input.
    fn run_one(&self, target: &str, input: &Path) -> Outcome {
        if let Err(error) = fs::metadata(input) {
            return Outcome::Failed(format!("    {}: {error}", input.display()));
        }
        let mut command = self.command(target);
        command.arg(input);
        match self.finish(target, &mut command, SLACK) {
            Ok(finished) if finished.succeeded() => Outcome::Passed,
            Ok(finished) => Outcome::Failed(failure(target, &finished)),
            Err(why) => Outcome::Failed(format!("    {why}")),
        }
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.folder.join(target));
        command.args([format!("-timeout={INPUT_SECONDS}"), format!("-rss_limit_mb={MEMORY_MIB}")]);
        command.env("ASAN_OPTIONS", SANITIZER_OPTIONS).env("RUST_BACKTRACE", "1");
        command
    }

    fn finish(&self, target: &str, command: &mut Command, limit: Duration) -> Result<Finished, String> {
        // For its sockets, whose paths must be short.
        let temporary = env::temp_dir().join(format!("pollux-fuzz-{}", std::process::id()));
        fs::create_dir_all(&temporary).map_err(|error| format!("cannot make {}: {error}", temporary.display()))?;
        let log = self.project.scratch("logs")?.join(format!("fuzz-{target}.log"));
        let label = format!("fuzz {target}");
        let finished = Run { label: &label, log, limit, echo: false }.run(command.env("TMPDIR", &temporary));
        // It is only left behind if somebody else is in it.
        let _ = fs::remove_dir_all(&temporary);
        finished
    }

    fn scratch(&self, target: &str, what: &str) -> Result<PathBuf, String> {
        self.project.scratch(&format!("fuzz/{target}/{what}"))
    }
}

/// What is to be known of the compiler.
struct Compiler {
    /// The platform that it runs on, and builds for.
    host: String,
    has_sanitizer: bool,
}

impl Compiler {
    fn ask(project: &Project) -> Result<Self, String> {
        let rustc = |argument: &[&str]| {
            let program = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            let output = Command::new(program).args(argument).current_dir(&project.root).output();
            let output = output.map_err(|error| format!("cannot run rustc: {error}"))?;
            Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let version = rustc(&["-vV"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc -vV names no host")?;
        let libraries = Path::new(rustc(&["--print", "sysroot"])?.trim()).join("lib/rustlib").join(host).join("lib");
        let has_sanitizer = fs::read_dir(libraries).into_iter().flatten().flatten().any(|file| {
            let name = file.file_name();
            name.to_string_lossy().ends_with("_rt.asan.a")
        });
        Ok(Compiler { host: host.to_owned(), has_sanitizer })
    }
}

/// What went wrong in a run, by which input, and how to run that again.
fn failure(target: &str, finished: &Finished) -> String {
    let mut text: String = what_happened(&finished.output).iter().map(|line| format!("    {line}\n")).collect();
    if let Some((_, input)) = finished.output.lines().rev().find_map(|line| line.split_once("Test unit written to ")) {
        text += &format!(
            "    the input: {input}\n    run it again: cargo xtask fuzz {target} --input {input}\n    \
             once that is mended, keep it: cp {input} fuzz/corpus/{target}/\n"
        );
    }
    text + &format!("    {}; all of it: {}", finished.ending(), finished.log.display())
}

/// The lines that say it: a panic's message and our functions on its way, what libFuzzer or the sanitizer found.
fn what_happened(output: &str) -> Vec<&str> {
    let (mut kept, mut within_panic) = (Vec::new(), false);
    for line in output.lines() {
        let is_panic = line.contains("panicked at ");
        let is_verdict = ["ERROR: ", "SUMMARY: ", "ALARM: "].iter().any(|word| line.contains(word));
        within_panic = is_panic || within_panic && line != "stack backtrace:";
        if within_panic || is_verdict || line.trim_start().starts_with("at ./") && line.contains(".rs:") {
            kept.push(line);
        }
    }
    // Backtraces on other threads may be many.
    kept.truncate(60);
    kept
}

/// How much was tried, from what libFuzzer says at the end.
fn summary_of(output: &str) -> Option<String> {
    let statistic = |name: &str| {
        let line = output.lines().rev().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line?.trim_start_matches(':').trim().parse::<u64>().ok()
    };
    let (inputs, rate) = (statistic("number_of_executed_units")?, statistic("average_exec_per_sec")?);
    let new = statistic("new_units_added")?;
    Some(format!("{inputs} inputs, {rate} a second; {new} of them reached something new"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_read() {
        let output = "Done 12345 runs in 3 second(s)\nstat::number_of_executed_units: 12345\n\
                      stat::average_exec_per_sec:     4115\nstat::new_units_added:          12\n";
        let summary = summary_of(output).expect("statistics");
        assert_eq!(summary, "12345 inputs, 4115 a second; 12 of them reached something new");
        assert_eq!(summary_of("==1== ERROR: libFuzzer: deadly signal"), None);
    }

    #[test]
    fn a_failure_names_its_input_and_how_to_run_it_again() {
        let output = "#1 NEW cov: 4\nthread '<unnamed>' (7) panicked at fuzz/src/rings/book.rs:90:13:\n\
                      the data is the disk's\n\
                      stack backtrace:\n   0: abort\n             at ./fuzz/src/rings/mod.rs:230:27\n   1: _start\n\
                      artifact_prefix='/t/'; Test unit written to /t/crash-1\nBase64: aGVs\n";
        let finished = Finished { code: Some(77), timed_out: false, output: output.into(), log: "/t/fuzz.log".into() };
        let text = failure("rings", &finished);
        assert!(
            text.contains("the data is the disk's\n                 at ./fuzz/src/rings/mod.rs:230:27\n"),
            "{text}"
        );
        assert!(text.contains("run it again: cargo xtask fuzz rings --input /t/crash-1\n"), "{text}");
        assert!(text.contains("cp /t/crash-1 fuzz/corpus/rings/\n"), "{text}");
        assert!(text.ends_with("exit status 77; all of it: /t/fuzz.log"), "{text}");
    }

    #[test]
    fn each_target_has_a_corpus() {
        let project = Project::find().expect("a checkout");
        let targets = targets(&project);
        assert!(targets.len() >= 6, "{targets:?}");
        for target in targets {
            let corpus = project.root.join("fuzz/corpus").join(&target);
            assert!(fs::read_dir(&corpus).is_ok_and(|files| files.count() > 0), "{}", corpus.display());
        }
    }
}
