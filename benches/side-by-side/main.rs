//! The speed targets, all in one table: `cargo bench -p pollux-benches --bench side_by_side`.
//!
//! Pollux and qemu-storage-daemon do the same work in turn. Both serve vhost-user-blk from the same CPU, one driver on
//! another CPU measures both, A B A B, and whoever is not measured is stopped meanwhile (SIGSTOP), so that neither
//! polls while the other works. Where their server has several ways to the same file, each takes its turn, and ours is
//! compared with the one that is best at that depth. Where there is nothing but memory behind the device, an ideal one
//! takes its turn as well: a loop on the same ring in the driver's process, without vhost-user, plugin or device model.
//! Then pieces of ours are measured alone.
//!
//! Medians and spread of the rounds, and beside them the time of a cache line from one CPU to the other and back: on a
//! virtual machine it changes from minute to minute, and with it everything else. Compare within a row. A target that
//! is missed is no failure.
#![allow(missing_docs)]
mod arguments;
mod interrupt;
mod medium;
mod micro;
mod part;
mod progress;
mod report;
mod rival;
mod turns;
mod work;
mod zram;

use arguments::{Arguments, Refusal};
use part::Part;
use pollux_benches::row;
use pollux_loadgen::{load::usable_cpus, machine::Machine};
use progress::{Interrupted, Progress};
use report::Report;
use std::{env, error::Error, fs, path::Path, process::ExitCode};
use turns::Cpus;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(Refusal::Help(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Refusal::Wrong(text)) => {
            eprintln!("side_by_side: {text}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = interrupt::watch() {
        eprintln!("side_by_side: Ctrl-C will leave things behind: {error}");
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() || interrupt::received() => {
            eprintln!("side_by_side: interrupted");
            ExitCode::from(interrupt::STATUS)
        }
        Err(error) => {
            eprintln!("side_by_side: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let usable = usable_cpus();
    let (Some(&server), Some(&driver)) = (usable.first(), usable.get(1)) else {
        println!("skipped: it takes two CPUs");
        return Ok(());
    };
    let qemu = rival::version("qemu-storage-daemon");
    if qemu.is_none() {
        println!("there is no qemu-storage-daemon to measure against: its rows are left out; install qemu-utils");
    }
    // Now, not after ten minutes.
    for path in [&arguments.json, &arguments.html, &arguments.markdown].into_iter().flatten() {
        if path != Path::new("-") {
            let opened = fs::File::options().append(true).create(true).open(path);
            opened.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
    }
    let cpus = Cpus { server, driver };
    let (works, rows) = (Vec::new(), Vec::new());
    let mut report = Report { arguments, machine: Machine::new(), cpus, qemu, works, rows };
    // What there is is told even if it ends early.
    let measured = measure(&mut report);
    print(&report)?;
    measured
}

/// Measures all parts.
fn measure(report: &mut Report<'_>) -> Result<(), Box<dyn Error>> {
    let (arguments, cpus) = (report.arguments, report.cpus);
    let steps = arguments.parts.iter().map(|part| match part {
        Part::Work(work) => turns::steps(*work, arguments.rounds),
        Part::Micro(micro) => micro::steps(*micro, arguments.rounds),
    });
    let progress = Progress::new(steps.sum());
    let result = arguments.parts.iter().try_for_each(|part| {
        match part {
            Part::Work(work) => {
                let has_qemu = report.qemu.is_some();
                if let Some(measured) = turns::measure(*work, arguments, cpus, has_qemu, &progress)? {
                    report.rows.extend(measured.rows());
                    report.works.push(measured);
                }
            }
            Part::Micro(micro) => report.rows.extend(micro::measure(*micro, arguments, cpus.server, &progress)?),
        }
        Ok(())
    });
    progress.finish();
    result
}

fn print(report: &Report<'_>) -> Result<(), Box<dyn Error>> {
    if report.rows.is_empty() {
        return Ok(());
    }
    println!("{}\n\n{}\n{}", report.about(), row::text(&report.rows), report.verdict());
    let Arguments { json, html, markdown, .. } = report.arguments;
    if let Some(path) = json {
        write(path, &(serde_json::to_string_pretty(&report.json())? + "\n"))?;
    }
    if let Some(path) = html {
        write(path, &report.html())?;
    }
    match markdown {
        Some(path) if path == Path::new("-") => println!("\n{}", row::markdown(&report.rows)),
        Some(path) => write(path, &row::markdown(&report.rows))?,
        None => {}
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
