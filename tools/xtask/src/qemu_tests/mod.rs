//! Tests with a real QEMU as the front end of `pollux serve`: a stock Debian guest whose disks are vhost-user-blk
//! devices.
//!
//! QEMU emulates the processor (TCG), so no KVM is needed. What a guest does is a shell script in `tools/xtask/qemu`,
//! most of which run `load.c` there, a program that writes, reads back and compares; what happens to its machine and
//! its backend meanwhile stands in [`cases`]. With qemu-storage-daemon as the backend they show what QEMU's own server
//! makes of the same.

mod backend;
mod bench;
mod case;
mod cases;
mod firmware;
mod firmware_boots;
mod machine;
mod qmp;
mod service;

use crate::{
    host::has_program,
    project::Project,
    setup,
    summary::{Outcome, Summary},
};
pub(crate) use backend::BackendKind;
use bench::{Bench, Tools};
use case::Case;
use std::{fs, path::Path};

/// The names of all steps below.
pub(crate) fn names() -> Vec<String> {
    let cases = cases::ALL.iter().map(|case| format!("qemu: {}", case.name));
    ["qemu: prepare".to_owned()].into_iter().chain(cases).collect()
}

/// Runs the tests of these names on a backend; all of them if there are none.
///
/// # Errors
/// A name is unknown.
pub(crate) fn run(
    project: &Project,
    pollux: &Path,
    backend: BackendKind,
    names: &[String],
    verbose: bool,
    summary: &mut Summary,
) -> Result<(), String> {
    for name in names {
        if !cases::ALL.iter().any(|case| case.name == name) {
            let known: Vec<&str> = cases::ALL.iter().map(|case| case.name).collect();
            return Err(format!("no test {name} with QEMU; there are: {}", known.join(" ")));
        }
    }
    let mut tools = Err("the tools were not prepared".to_owned());
    summary.step("qemu: prepare", || {
        tools = prepare(project, backend);
        match &tools {
            Ok(_) => Outcome::Passed,
            Err(why) => Outcome::Skipped(why.clone()),
        }
    });
    for case in cases::ALL {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == case.name) {
            continue;
        }
        let title = format!("qemu: {}", case.name);
        match (&tools, case.storage_daemon_obstacle) {
            (Ok(_), Some(why)) if backend == BackendKind::QemuStorageDaemon => {
                summary.add(&title, Outcome::Skipped(format!("qemu-storage-daemon {why}")));
            }
            (Ok(tools), _) => summary.step(&title, || match setup::install(project, case.needs) {
                Ok(()) => one(project, tools, pollux, backend, verbose, case).into(),
                Err(why) => Outcome::Skipped(why),
            }),
            (Err(_), _) => summary.add(&title, Outcome::Skipped("nothing to run it with, see above".to_owned())),
        }
    }
    Ok(())
}

fn prepare(project: &Project, backend: BackendKind) -> Result<Tools, String> {
    // QEMU itself is the lab's to install.
    let tools = Tools::prepare(project)?;
    let mut programs = vec![(machine::QEMU, "qemu-system-x86")];
    if backend == BackendKind::QemuStorageDaemon {
        programs.push((backend::STORAGE_DAEMON, "qemu-utils"));
    }
    match programs.iter().find(|(program, _)| !has_program(program)) {
        Some((program, package)) => Err(format!("no {program}; as root: apt-get install {package}")),
        None => Ok(tools),
    }
}

fn one(
    project: &Project,
    tools: &Tools,
    pollux: &Path,
    backend: BackendKind,
    verbose: bool,
    case: &Case,
) -> Result<(), String> {
    let folder = project.scratch(&format!("qemu/{}", case.name))?;
    fs::remove_dir_all(&folder)
        .and_then(|()| fs::create_dir_all(&folder))
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let sockets = bench::socket_folder()?;
    let bench = Bench { project, tools, pollux, backend, folder, sockets, verbose };
    let result = (case.test)(&bench).map_err(|why| format!("{why}{}", bench.tails()));
    let _ = fs::remove_dir_all(&bench.sockets);
    result?;
    // What failed is kept for a look; what passed would only take room.
    fs::remove_dir_all(&bench.folder).map_err(|error| error.to_string())
}
