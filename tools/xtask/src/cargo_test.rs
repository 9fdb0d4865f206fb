//! What `cargo test` printed, as counts and names.
use crate::summary::Tally;

/// Reads the output of `cargo test -- --show-output`.
///
/// A test that cannot run says so in a line `SKIPPED: name: why` on standard error and returns: to the test harness it
/// has passed, here it counts as skipped.
pub(crate) fn tally(output: &str) -> Tally {
    let mut tally = Tally::default();
    let mut said_so = 0;
    for line in output.lines() {
        let test = line.strip_prefix("test ").and_then(|test| test.rsplit_once(" ... "));
        if let Some(result) = line.strip_prefix("test result: ") {
            tally.passed += count(result, " passed");
        } else if let Some((name, "FAILED")) = test {
            tally.failed.push(name.to_owned());
        } else if let Some((name, result)) = test
            && result.starts_with("ignored")
        {
            tally.skipped.push(format!("{name}: marked as ignored"));
        } else if let Some((_, reason)) = line.split_once("SKIPPED: ") {
            tally.skipped.push(reason.trim().to_owned());
            said_so += 1;
        } else if line.contains("process didn't exit successfully") && line.contains("(signal: ") {
            // Such a process prints no result of its own.
            tally.failed.push(line.trim().to_owned());
        }
    }
    tally.passed = tally.passed.saturating_sub(said_so);
    tally
}

/// Reads the output of `cargo test -- --list`: the names of tests, each after the program that it is in.
pub(crate) fn names(output: &str) -> Vec<String> {
    let (mut names, mut program) = (Vec::new(), "");
    for line in output.lines().map(str::trim) {
        if let Some(running) = line.strip_prefix("Running ") {
            // unittests src/lib.rs (target/debug/deps/pollux_core-0123456789abcdef)
            let file = running.rsplit(['/', '(']).next().unwrap_or_default().trim_end_matches(')');
            program = file.rsplit_once('-').map_or(file, |(program, _)| program);
        } else if let Some(documented) = line.strip_prefix("Doc-tests ") {
            program = documented;
        } else if let Some(test) = line.strip_suffix(": test") {
            names.push(format!("{program}: {test}"));
        }
    }
    names
}

/// What the tests that failed printed, and what did not compile: the part of the output that a reader needs.
pub(crate) fn failures(output: &str) -> String {
    let (mut text, mut within) = (String::new(), false);
    for line in output.lines() {
        within = match line {
            "failures:" => true,
            _ if line.starts_with("test result: ") => false,
            _ => within,
        };
        if within || line.starts_with("error") || line.contains("process didn't exit successfully") {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The number before a word in `ok. 5 passed; 0 failed; ...`.
fn count(result: &str, word: &str) -> usize {
    let before = result.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_names_are_read() {
        let output = "\
running 4 tests
test ring::pops ... ok
test blk::fails ... FAILED
test needs::compiler ... ok
test src/lib.rs - open (line 3) ... ignored

successes:
---- needs::compiler stdout ----
SKIPPED: header as C++: no C++ compiler

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let tally = tally(output);
        assert_eq!(tally.passed, 13);
        assert_eq!(tally.failed, ["blk::fails"]);
        let skipped = ["src/lib.rs - open (line 3): marked as ignored", "header as C++: no C++ compiler"];
        assert_eq!(tally.skipped, skipped);
    }

    #[test]
    fn names_come_with_their_programs() {
        let output = "\
     Running unittests src/lib.rs (target/debug/deps/pollux_core-0123456789abcdef)
config::tests::sizes: test

1 test, 0 benchmarks
     Running tests/vhost_user.rs (/elsewhere/target/debug/deps/vhost_user-0123456789abcdef)
split::survives: test
   Doc-tests pollux_abi
abi/src/lib.rs - (line 17): test
";
        let expected = [
            "pollux_core: config::tests::sizes",
            "vhost_user: split::survives",
            "pollux_abi: abi/src/lib.rs - (line 17)",
        ];
        assert_eq!(names(output), expected);
    }

    #[test]
    fn a_test_that_takes_its_process_down_has_failed() {
        let line = "  process didn't exit successfully: `target/debug/deps/blk-1` (signal: 11, SIGSEGV: invalid memory \
                    reference)";
        assert_eq!(tally(line).failed.len(), 1);
    }

    #[test]
    fn only_failures_are_shown() {
        let output =
            "test a ... ok\nfailures:\n\n---- b stdout ----\nwrong\n\ntest result: FAILED.\nerror: test failed\n";
        assert_eq!(
            failures(output),
            "    failures:\n    \n    ---- b stdout ----\n    wrong\n    \n    error: test failed\n"
        );
    }
}
