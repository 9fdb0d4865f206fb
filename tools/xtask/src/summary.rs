//! What passed, failed and was skipped, and the line that says so at the end.
use crate::process::Finished;
use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// What came of a step that is one test.
pub(crate) enum Outcome {
    Passed,
    /// Passed, and there is something to say.
    Noted(String),
    Failed(String),
    Skipped(String),
}

/// What came of a step that is many tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    /// Names.
    pub(crate) failed: Vec<String>,
    /// Names and reasons, as the tests print them.
    pub(crate) skipped: Vec<String>,
}

/// All steps so far. Prints each as it ends.
#[derive(Default)]
pub(crate) struct Summary {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
    /// Begin of the step that runs.
    start: Option<Instant>,
}

impl Summary {
    /// Runs a step that is one test.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce() -> Outcome) {
        self.begin();
        let outcome = run();
        let seconds = self.seconds();
        match outcome {
            Outcome::Passed => {
                self.passed += 1;
                report("ok", name, seconds, "");
            }
            Outcome::Noted(note) => {
                self.passed += 1;
                report("ok", name, seconds, "");
                println!("{note}");
            }
            Outcome::Failed(why) => {
                self.failed.push(name.to_owned());
                report("FAILED", name, seconds, "");
                println!("{why}");
            }
            Outcome::Skipped(why) => {
                report("SKIPPED", name, seconds, &why);
                self.skipped.push(format!("{name}: {why}"));
            }
        }
    }

    /// Runs a step that is many tests; `Err` is what kept them from running to their end.
    pub(crate) fn tests(&mut self, name: &str, run: impl FnOnce() -> Result<Tally, String>) {
        self.begin();
        let result = run();
        let seconds = self.seconds();
        match result {
            Ok(tally) => {
                let word = if tally.failed.is_empty() { "ok" } else { "FAILED" };
                report(word, name, seconds, &counts(tally.passed, tally.failed.len(), tally.skipped.len()));
                for skipped in &tally.skipped {
                    println!("SKIPPED  {skipped}");
                }
                self.passed += tally.passed;
                self.failed.extend(tally.failed.into_iter().map(|test| format!("{name}: {test}")));
                self.skipped.extend(tally.skipped);
            }
            Err(why) => {
                self.failed.push(name.to_owned());
                report("FAILED", name, seconds, "");
                println!("{why}");
            }
        }
    }

    /// Counts a test that was run by other means, such as one of a rule checked together with others.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome) {
        self.step(name, || outcome);
    }

    /// Prints what failed and what was skipped, and the closing line. Returns whether nothing failed.
    pub(crate) fn close(self) -> bool {
        println!();
        for name in &self.failed {
            println!("FAILED   {name}");
        }
        for name in &self.skipped {
            println!("SKIPPED  {name}");
        }
        println!("{}", counts(self.passed, self.failed.len(), self.skipped.len()));
        self.failed.is_empty()
    }

    fn begin(&mut self) {
        self.start = Some(Instant::now());
    }

    fn seconds(&mut self) -> Duration {
        self.start.take().map(|start| start.elapsed()).unwrap_or_default()
    }
}

impl Outcome {
    /// The outcome of a program whose status tells.
    pub(crate) fn of(result: Result<Finished, String>) -> Self {
        match result {
            Ok(finished) if finished.succeeded() => Outcome::Passed,
            Ok(finished) => Outcome::Failed(format!("{}\n    {}", finished.tail(120), finished.ending())),
            Err(error) => Outcome::Failed(format!("    {error}")),
        }
    }
}

impl<T, E: Display> From<Result<T, E>> for Outcome {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("    {error}")),
        }
    }
}

fn counts(passed: usize, failed: usize, skipped: usize) -> String {
    format!("{passed} passed, {failed} failed, {skipped} skipped")
}

fn report(word: &str, name: &str, time: Duration, note: &str) {
    println!("{}", format!("{word:<8} {name:<40} {:>7.1} s  {note}", time.as_secs_f64()).trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_decides() {
        let mut summary = Summary::default();
        summary.step("fine", || Outcome::Passed);
        summary.step("remarkable", || Outcome::Noted("faster".to_owned()));
        summary.step("left out", || Outcome::Skipped("no tool".to_owned()));
        summary.tests("many", || Ok(Tally { passed: 3, ..Tally::default() }));
        assert_eq!((summary.passed, summary.failed.len(), summary.skipped.len()), (5, 0, 1));
        summary.tests("broken", || Err("does not compile".to_owned()));
        assert_eq!(summary.failed, ["broken"]);
        assert!(!summary.close());
    }
}
