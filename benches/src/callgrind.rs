//! Instructions that callgrind counts: the same on a noisy machine as on a quiet one.
//!
//! A program runs itself again under valgrind with `--run` and what the case is, and counts what is done within one
//! function of its own, which must be `#[inline(never)]`. The crate gungraun, which does the like, wants a program
//! installed beside it and keeps its baselines in `target/`, so that a fresh clone would have none to compare with.
use std::{env, ffi::OsString, fs, io, process::Command, thread};

/// The implementations in the C library of a memory copy that every x86-64 processor runs, so that counts depend
/// neither on this one nor on what valgrind shows of it.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX_Fast_Unaligned_Load,-SSSE3,-ERMS,-FSRM";

/// The version of valgrind; `None` without one.
pub fn version() -> Option<String> {
    let output = Command::new("valgrind").arg("--version").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Instructions within functions of whose names `function` is a part in each of some rounds, by counting `rounds` of
/// them and twice as many: what is done once cancels out. The program is run with `--run` and the `arguments` for that
/// many rounds.
///
/// # Errors
/// Valgrind does not run, or the program fails in it: what it says.
pub fn per_round(function: &str, rounds: u64, arguments: impl Fn(u64) -> Vec<OsString>) -> Result<f64, String> {
    let [short, long] = [arguments(rounds), arguments(2 * rounds)];
    // Side by side, for they are not timed.
    let [short, long] = thread::scope(|scope| {
        let long = scope.spawn(|| count(function, &long));
        [count(function, &short), long.join().expect("a thread that does not panic")]
    });
    Ok(long?.saturating_sub(short?) as f64 / rounds as f64)
}

/// Instructions within `function` and what it calls, in one process.
fn count(function: &str, arguments: &[OsString]) -> Result<u64, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("a folder for callgrind: {error}"))?;
    let output = folder.path().join("callgrind.out");
    let this = env::current_exe().map_err(|error| format!("this program's file: {error}"))?;
    let finished = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*{function}*"))
        .arg(format!("--callgrind-out-file={}", output.display()))
        .arg(this)
        .arg("--run")
        .args(arguments)
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "no valgrind".to_owned(),
            _ => format!("valgrind: {error}"),
        })?;
    if !finished.status.success() {
        return Err(format!("valgrind: {}\n{}", finished.status, String::from_utf8_lossy(&finished.stderr)));
    }
    let text = fs::read_to_string(&output).map_err(|error| format!("{}: {error}", output.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).and_then(|total| total.trim().parse().ok());
    match total {
        Some(0) => Err(format!("callgrind saw no call of {function}")),
        Some(total) => Ok(total),
        None => Err(format!("{} has no total", output.display())),
    }
}
