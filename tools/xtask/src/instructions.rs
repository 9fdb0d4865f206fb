//! Instructions on the hot path, compared with those recorded in the tree: `cargo xtask instructions`, and a step of
//! the tests.
//!
//! The bench `instructions` counts them with callgrind, the same on each run, so that a small loss shows on a machine
//! that is busy.
use crate::{
    host::has_program,
    process::Run,
    project::Project,
    setup::{self, Tool},
    summary::Outcome,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    time::Duration,
};

/// What was recorded, below the checkout.
const BASELINE: &str = "benches/instructions.json";
const ACCEPT: &str = "cargo xtask instructions --accept";
const VALGRIND: &[Tool] = &[Tool { program: "valgrind", package: "valgrind" }];
/// It also builds in release, with link-time optimisation.
const LIMIT: Duration = Duration::from_secs(1200);
/// By how much a case may differ, in percent.
const TOLERANCE: f64 = 2.0;
/// The same where the compiler, the C library or valgrind is another one, which moves numbers without any change of
/// ours.
const TOLERANCE_OF_OTHERS: f64 = 10.0;
/// What another of makes a comparison pointless.
const PROCESSOR: &str = "processor";

/// What the bench prints, and the file of the baseline.
#[derive(Clone, Deserialize, Serialize)]
struct Counts {
    /// All that numbers depend on beside the tree.
    made_with: BTreeMap<String, String>,
    /// Instructions of each case.
    cases: BTreeMap<String, f64>,
}

/// Counts and compares, or records. Returns whether no case is worse than before.
///
/// # Errors
/// Something is missing: what, and what to do.
pub(crate) fn instructions(project: &Project, accept: bool) -> Result<bool, String> {
    setup::install(project, VALGRIND)?;
    let now = count(project)?;
    let before = baseline(project);
    for (case, count) in &now.cases {
        let before = before.as_ref().ok().and_then(|before| before.cases.get(case));
        let change = before.map(|before| format!("{before:>10.1} {:>+7.1} %", percent(*before, *count)));
        println!("{}", format!("{case:<50} {count:>10.1} {}", change.unwrap_or_default()).trim_end());
    }
    if accept {
        let path = project.root.join(BASELINE);
        let text = serde_json::to_string_pretty(&now).map_err(|error| error.to_string())? + "\n";
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("recorded in {BASELINE}");
        return Ok(true);
    }
    println!();
    match compare(&before?, &now) {
        Outcome::Failed(why) => {
            println!("{why}");
            return Ok(false);
        }
        Outcome::Passed => println!("as recorded in {BASELINE}, within {TOLERANCE} %"),
        Outcome::Noted(note) | Outcome::Skipped(note) => println!("{note}"),
    }
    Ok(true)
}

/// The same as a step of the tests.
pub(crate) fn as_test(project: &Project) -> Outcome {
    if !has_program("valgrind") {
        return Outcome::Skipped("no valgrind; as root: apt-get install valgrind".to_owned());
    }
    match baseline(project).and_then(|before| Ok((before, count(project)?))) {
        Ok((before, now)) => compare(&before, &now),
        Err(why) => Outcome::Failed(format!("    {why}")),
    }
}

fn baseline(project: &Project) -> Result<Counts, String> {
    let path = project.root.join(BASELINE);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}; make it: {ACCEPT}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}; record it again: {ACCEPT}", path.display()))
}

/// Builds the bench as it is delivered, and lets it count.
fn count(project: &Project) -> Result<Counts, String> {
    let log = project.scratch("logs")?.join("instructions.log");
    let mut cargo = project.cargo();
    cargo.args(["bench", "-p", "pollux-benches", "--bench", "instructions", "--", "--json"]);
    let finished = Run { label: "counting instructions", log, limit: LIMIT, echo: false }.run(&mut cargo)?;
    if !finished.succeeded() {
        return Err(format!("the bench instructions: {}\n{}", finished.ending(), finished.tail(60)));
    }
    let line = finished.output.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).map_err(|error| format!("what the bench instructions printed: {error}"))
}

/// What there is to say of new counts beside those of before. They fail where there are more, or where they are of
/// other cases.
fn compare(before: &Counts, now: &Counts) -> Outcome {
    let others: Vec<String> = (before.made_with.iter())
        .filter(|(what, with)| now.made_with.get(*what) != Some(*with))
        .map(|(what, with)| format!("{what} {}, not {with}", now.made_with.get(what).map_or("unknown", String::as_str)))
        .collect();
    let others = others.join(", ");
    if before.made_with.get(PROCESSOR) != now.made_with.get(PROCESSOR) {
        return Outcome::Skipped(format!("{BASELINE} is of another machine: {others}"));
    }
    let tolerance = if others.is_empty() { TOLERANCE } else { TOLERANCE_OF_OTHERS };
    let (mut worse, mut better) = (String::new(), String::new());
    let names: BTreeSet<&String> = before.cases.keys().chain(now.cases.keys()).collect();
    for name in names {
        match (before.cases.get(name), now.cases.get(name)) {
            (Some(was), Some(is)) => {
                let change = percent(*was, *is);
                let list = match change {
                    _ if change > tolerance => &mut worse,
                    _ if change < -tolerance => &mut better,
                    _ => continue,
                };
                _ = writeln!(list, "    {name}: {was:.1} before, {is:.1} now ({change:+.1} %)");
            }
            (None, _) => _ = writeln!(worse, "    {name}: not in {BASELINE}"),
            (_, None) => _ = writeln!(worse, "    {name}: in {BASELINE}, and no longer a case"),
        }
    }
    let mut text = String::new();
    if !worse.is_empty() {
        _ = writeln!(text, "    more than {tolerance} % worse:\n{worse}    mend it, or accept it: {ACCEPT}");
    }
    if !better.is_empty() {
        _ = writeln!(text, "    more than {tolerance} % better:\n{better}    record it: {ACCEPT}");
    }
    if !others.is_empty() {
        _ = writeln!(
            text,
            "    {tolerance} % allowed instead of {TOLERANCE} %, for {BASELINE} is of another: {others}"
        );
    }
    let text = text.trim_end().to_owned();
    match (worse.is_empty(), text.is_empty()) {
        (false, _) => Outcome::Failed(text),
        (true, true) => Outcome::Passed,
        (true, false) => Outcome::Noted(text),
    }
}

/// By how much a count is more than before.
fn percent(before: f64, now: f64) -> f64 {
    // Not 0 / 0, which compares with nothing.
    (now - before) / before.max(0.1) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(compiler: &str, cases: &[(&str, f64)]) -> Counts {
        let made_with = [("compiler", compiler), (PROCESSOR, "x86_64")].map(|(what, with)| (what.into(), with.into()));
        Counts {
            made_with: made_with.into(),
            cases: cases.iter().map(|(name, count)| ((*name).into(), *count)).collect(),
        }
    }

    #[track_caller]
    fn is(outcome: Outcome, kind: &str, texts: &[&str]) {
        let (is, text) = match outcome {
            Outcome::Passed => ("passed", String::new()),
            Outcome::Noted(text) => ("noted", text),
            Outcome::Failed(text) => ("failed", text),
            Outcome::Skipped(text) => ("skipped", text),
        };
        assert_eq!(is, kind, "{text}");
        texts.iter().for_each(|part| assert!(text.contains(part), "{text}"));
    }

    #[test]
    fn a_case_with_more_instructions_fails_and_one_with_fewer_is_noted() {
        let before = counts("1.95", &[("read", 500.0), ("write", 600.0)]);
        let compared = |read: f64| compare(&before, &counts("1.95", &[("read", read), ("write", 600.0)]));
        is(compared(500.0), "passed", &[]);
        is(compared(510.0), "passed", &[]);
        is(compared(510.1), "failed", &["read: 500.0 before, 510.1 now (+2.0 %)", "cargo xtask instructions --accept"]);
        is(compared(490.0), "passed", &[]);
        is(compared(489.9), "noted", &["read: 500.0 before, 489.9 now (-2.0 %)", "record it"]);
        is(compared(f64::from(0)), "noted", &["(-100.0 %)"]);
    }

    #[test]
    fn the_cases_are_those_recorded() {
        let (both, one) = (counts("1.95", &[("a", 1.0), ("b", 2.0)]), counts("1.95", &[("a", 1.0)]));
        is(compare(&one, &both), "failed", &["b: not in benches/instructions.json"]);
        is(compare(&both, &one), "failed", &["b: in benches/instructions.json, and no longer a case"]);
    }

    #[test]
    fn another_compiler_may_differ_more_and_is_named() {
        let before = counts("1.95", &[("read", 500.0)]);
        let compared = |read: f64| compare(&before, &counts("1.96", &[("read", read)]));
        is(compared(500.0), "noted", &["compiler 1.96, not 1.95"]);
        is(compared(549.0), "noted", &["10 % allowed instead of 2 %"]);
        is(compared(551.0), "failed", &["read: 500.0 before", "compiler 1.96, not 1.95"]);
    }

    #[test]
    fn another_processor_is_not_compared() {
        let before = counts("1.95", &[("read", 500.0)]);
        let mut now = counts("1.95", &[("read", 900.0)]);
        now.made_with.insert(PROCESSOR.into(), "aarch64".into());
        is(compare(&before, &now), "skipped", &["processor aarch64, not x86_64"]);
    }
}
