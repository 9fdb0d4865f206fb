//! `pollux`: runs virtual machines whose devices are plugins on polling cores, serves such devices to the machines of
//! other programs, and checks their configuration.
//!
//! | module | holds |
//! |---|---|
//! | [`command`] | what every command takes, and how it ends |
//! | [`mod@bench`] | `pollux bench` |
//! | [`check`] | `pollux check` |
//! | [`run`] | `pollux run` |
//! | [`serve`] | `pollux serve` |
//! | [`examine`] | what all do first: a file becomes a configuration without mistakes, its plugins loaded and probed |
//! | [`report`] | how mistakes in the configuration are shown |
//! | [`service_manager`] | what a service manager such as systemd is told |
//! | [`signals`] | what signals do to this process |
//! | [`mod@start`] | what `run` and `serve` do alike, from a file to how it ended |
//! | [`stats`] | `pollux stats` |
//! | [`stats_output`] | where statistics go |
//! | [`stats_table`], [`stats_json`] | how statistics are shown to people, to programs |
//! | [`targets`] | what `pollux bench` measures: sockets, and devices that it starts |
//!
//! Exit status: 0 success, 1 failure, 2 a bad command line or configuration; of `pollux bench` also 128 + the number of
//! the signal that stopped it.
#![deny(unsafe_code)]

mod bench;
mod check;
mod command;
mod descriptors;
mod examine;
mod report;
mod run;
mod serve;
mod service_manager;
#[allow(unsafe_code)] // sigaction(2)
mod signals;
mod start;
mod stats;
mod stats_json;
mod stats_output;
mod stats_table;
mod targets;

use clap::{Parser, Subcommand};
use command::{Shared, Status, fail};
use pollux_loadgen::units;
use std::{io, io::IsTerminal, process::ExitCode};

/// Run virtual machines whose disks are plugins on polling cores, or serve such disks to QEMU and others.
#[derive(Parser)]
#[command(
    name = "pollux",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 success, 1 failure, 2 a bad command line or configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Subcommand)]
enum Command {
    /// Start the machine that FILE describes, and wait until it ends.
    ///
    /// Ctrl-A x at its console, SIGTERM or SIGINT stop it cleanly, and so does the end of the terminal that it was
    /// started from. At SIGHUP all media are measured again, and the guest is told of those that were resized.
    Run(start::Arguments),
    /// Serve the devices that FILE describes to the machines of other programs, over vhost-user.
    ///
    /// FILE is one without `[vm]`, whose devices have a socket each. SIGTERM or SIGINT end it cleanly; at SIGHUP all
    /// media are measured again, and front ends told of those that were resized.
    Serve(start::Arguments),
    /// Say what is wrong with FILE; start nothing.
    ///
    /// Does all that `run` and `serve` do before they start: reads and cross-checks FILE, loads the plugins and looks
    /// at the media.
    Check(check::Arguments),
    /// Measure the backend that serves a block device on a socket by vhost-user (qemu-storage-daemon, SPDK, ours), or
    /// the devices of a configuration.
    ///
    /// A driver in the place of a guest keeps requests in flight, polls for their completion, and prints throughput and
    /// latencies. With --verify it also checks every byte.
    ///
    /// Ctrl-C, SIGTERM or SIGHUP stop it: it prints what was measured by then, and exits with 128 + the signal's
    /// number. A second Ctrl-C or SIGTERM ends it at once.
    Bench(Box<bench::Arguments>),
    /// Show what the workers and queues of a running `pollux run` or `pollux serve` have done, or do with --watch.
    ///
    /// The numbers are read from memory that the other process shares: its workers do not notice. Those of a process
    /// that is gone are in the file that it was given by --stats-segment.
    Stats(stats::Arguments),
}

fn main() -> ExitCode {
    let Arguments { command, shared } = Arguments::parse();
    signals::ignore_file_size();
    // Standard output is the guest's console.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && report::wants_colours())
        .with_max_level(shared.level())
        .with_target(false)
        // They would go to standard error and panic if that is closed, on whatever thread had something to log.
        .log_internal_errors(false)
        .init();
    let status = match command {
        Command::Run(arguments) => run::run(&arguments, &shared),
        Command::Serve(arguments) => serve::serve(&arguments, &shared),
        Command::Check(arguments) => check::check(&arguments, &shared),
        Command::Bench(arguments) => bench::bench(&arguments, &shared),
        Command::Stats(arguments) => stats::stats(&arguments),
    };
    match status {
        Status::Success => ExitCode::SUCCESS,
        Status::Failure => ExitCode::from(1),
        Status::BadConfiguration => ExitCode::from(2),
        // As a shell says that a signal has ended a program.
        Status::Stopped(signal) => ExitCode::from(128 + signal as u8),
    }
}
