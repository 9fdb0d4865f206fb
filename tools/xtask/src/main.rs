//! `cargo xtask demo` and `cargo xtask test`: the two commands that a fresh Debian machine needs.
//!
//! Each does its own set-up. [`demo`] boots a Debian guest whose disks are plugins, `cargo xtask test` checks
//! everything: its steps are in that module, the guests in the lab in [`lab_tests`], those of QEMU in [`qemu_tests`],
//! hostile input in [`fuzz`], the rules about the tree in [`tidy`].
#![forbid(unsafe_code)]

mod boot_disk;
mod cargo_test;
mod demo;
mod fuzz;
mod guest_program;
mod host;
mod image;
mod instructions;
mod lab;
mod lab_tests;
mod process;
mod project;
mod qemu_tests;
mod setup;
mod summary;
mod test;
mod tidy;

use clap::{Parser, Subcommand};
use project::Project;
use qemu_tests::BackendKind;
use std::{path::PathBuf, process::ExitCode};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo and tests of Pollux")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot a Debian guest whose disks are served by plugins on polling cores, and show what was counted
    Demo,
    /// Run every check: format, clippy, tidy, unit, integration and documentation tests, instruction counts, the lab
    Test {
        /// Run only the steps whose names begin with one of these
        #[arg(value_name = "STEP")]
        steps: Vec<String>,
        /// Also run the lab's own self-test (two minutes more)
        #[arg(long)]
        lab_selftest: bool,
        /// Print the names of the steps and tests that would run, and run none
        #[arg(long)]
        list: bool,
    },
    /// Run the lab tests named, or all of them
    LabTest {
        /// Names, as `cargo xtask test` prints them without "lab: "
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Print what each guest prints
        #[arg(long, short)]
        verbose: bool,
        /// Test this program, such as target/release/pollux, instead of building one
        #[arg(long, value_name = "FILE")]
        pollux: Option<PathBuf>,
    },
    /// Run the tests named with QEMU as the front end of `pollux serve`, or all of them
    QemuTest {
        /// Names, as `cargo xtask test` prints them without "qemu: "
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Print what each guest and the backend print
        #[arg(long, short)]
        verbose: bool,
        /// Test this program, such as target/release/pollux, instead of building one
        #[arg(long, value_name = "FILE")]
        pollux: Option<PathBuf>,
        /// What serves the disks
        #[arg(long, value_enum, default_value = "pollux")]
        backend: BackendKind,
    },
    /// Count the instructions of a request, and compare with what is recorded in benches/instructions.json
    Instructions {
        /// Record them instead
        #[arg(long)]
        accept: bool,
    },
    /// Feed rings, vhost-user, registers, configurations, kernels and statistics with hostile input
    Fuzz {
        /// One of the programs in fuzz/fuzz_targets; all of them, if it is left out
        #[arg(value_name = "TARGET")]
        target: Option<String>,
        /// How long each one runs
        #[arg(long, value_name = "N", default_value_t = 1)]
        minutes: u64,
        /// Run this one input alone, such as one that was found
        #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "minutes")]
        input: Option<PathBuf>,
    },
    /// Check the rules about the source tree
    Tidy,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = Project::find().and_then(|project| match arguments.task {
        Task::Demo => demo::demo(&project),
        Task::Test { steps, lab_selftest, list: true } => test::list(&project, &steps, lab_selftest),
        Task::Test { steps, lab_selftest, list: false } => Ok(test::test(&project, &steps, lab_selftest)),
        Task::LabTest { names, verbose, pollux } => test::lab_test(&project, &names, verbose, pollux),
        Task::QemuTest { names, verbose, pollux, backend } => {
            test::qemu_test(&project, &names, verbose, pollux, backend)
        }
        Task::Instructions { accept } => instructions::instructions(&project, accept),
        Task::Fuzz { target, minutes, input } => fuzz::fuzz(&project, target.as_deref(), minutes, input.as_deref()),
        Task::Tidy => Ok(test::tidy(&project)),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
