//! Tests with stock Debian kernels as guests of `pollux run`, in the lab.
//!
//! Each boots one guest or two, but for `nvme`, which runs a plugin's own tests on a drive that the lab has. What a
//! guest does is a shell script and what it boots with a configuration, both in `tools/xtask/lab`; what must come of it
//! stands in [`cases`].

mod case;
mod cases;
mod drive;
mod guest;
mod media;

use crate::{
    lab::Lab,
    project::Project,
    setup,
    summary::{Outcome, Summary},
};
use case::{Case, Test};
use guest::Bench;
use std::{fs, path::Path};

/// The names of all steps below.
pub(crate) fn names() -> Vec<String> {
    let cases = cases::ALL.iter().map(|case| format!("lab: {}", case.name));
    ["lab: prepare".to_owned()].into_iter().chain(cases).collect()
}

/// Runs the lab tests of these names on a program; all of them if there are none.
///
/// # Errors
/// A name is unknown.
pub(crate) fn run(
    project: &Project,
    pollux: &Path,
    names: &[String],
    verbose: bool,
    summary: &mut Summary,
) -> Result<(), String> {
    for name in names {
        if !cases::ALL.iter().any(|case| case.name == name) {
            let known: Vec<&str> = cases::ALL.iter().map(|case| case.name).collect();
            return Err(format!("no lab test {name}; there are: {}", known.join(" ")));
        }
    }
    let mut lab = Err("the lab was not prepared".to_owned());
    summary.step("lab: prepare", || {
        lab = Lab::prepare(project);
        match &lab {
            Ok(_) => Outcome::Passed,
            Err(why) => Outcome::Skipped(why.clone()),
        }
    });
    for Case { name, test, needs } in cases::ALL {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let title = format!("lab: {name}");
        match &lab {
            Ok(lab) => summary.step(&title, || {
                if let Err(why) = setup::install(project, needs) {
                    return Outcome::Skipped(why);
                }
                let folder = project.scratch(&format!("lab/{name}"));
                let result =
                    folder.and_then(|folder| one(&Bench { project, lab, pollux, name, folder, verbose }, *test));
                result.into()
            }),
            Err(_) => summary.add(&title, Outcome::Skipped("there is no lab, see above".to_owned())),
        }
    }
    Ok(())
}

fn one(bench: &Bench<'_>, test: Test) -> Result<(), String> {
    test(bench)?;
    // What failed is kept for a look; what passed would only take room.
    fs::remove_dir_all(&bench.folder).map_err(|error| error.to_string())
}
