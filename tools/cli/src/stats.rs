//! `pollux stats`
use crate::{Status, fail, report, stats_json, stats_table};
use pollux_core::stats::{ReadError, SegmentReader, Snapshot};
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// The arguments of `pollux stats`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A file that was named by --stats-segment, or the number of a process; write ./NUMBER for a file of such a name.
    #[arg(value_name = "FILE|PID")]
    source: PathBuf,
    /// As JSON: one object; with --watch, one a line.
    #[arg(long)]
    json: bool,
    /// Show what happens, with rates, again and again: every second, or as often as said.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = period)]
    watch: Option<Duration>,
}

fn period(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.01..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds, from 0.01 to 86400".into())
}

/// Runs the command.
pub(crate) fn stats(arguments: &Arguments) -> Status {
    match show(arguments) {
        Ok(()) => Status::Success,
        Err(error) => fail(&error),
    }
}

fn show(arguments: &Arguments) -> Result<(), ReadError> {
    let process = arguments.source.to_str().and_then(|text| text.parse().ok());
    let reader = match process {
        Some(process) => SegmentReader::of_process(process)?,
        None => SegmentReader::open(&arguments.source)?,
    };
    let now = reader.snapshot()?;
    match arguments.watch {
        Some(period) => watch(&reader, now, period, arguments.json),
        None => {
            let text = if arguments.json { format!("{:#}\n", as_json(&now, None)) } else { page(&now, None) };
            report::print(&text);
            Ok(())
        }
    }
}

/// Shows what has happened since the last time, until nobody writes or reads any more.
fn watch(reader: &SegmentReader, first: Snapshot, period: Duration, as_lines: bool) -> Result<(), ReadError> {
    let is_terminal = io::stdout().is_terminal();
    let (mut before, mut then) = (first, Instant::now());
    loop {
        let goes_on = before.writer.is_alive() && !before.writer.has_ended;
        if goes_on {
            thread::sleep((then + period).saturating_duration_since(Instant::now()));
        }
        let (now, time) = (reader.snapshot()?, Instant::now());
        let seconds = time.duration_since(then).as_secs_f64().max(1e-9);
        let difference = now.since(&before);
        let text = match as_lines {
            true => format!("{}\n", as_json(&now, Some((&difference, seconds)))),
            // From the top of an empty screen.
            false if is_terminal => format!("\x1b[H\x1b[2J{}", page(&difference, Some(seconds))),
            false => page(&difference, Some(seconds)) + "\n",
        };
        let written = io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().lock().flush());
        // Whoever has closed it wants no more.
        if !goes_on || written.is_err() {
            return Ok(());
        }
        (before, then) = (now, time);
    }
}

/// A line about the process, and the tables.
fn page(stats: &Snapshot, period: Option<f64>) -> String {
    let writer = &stats.writer;
    let state = match (writer.is_alive(), writer.has_ended) {
        (_, true) => "has ended; these are its last numbers",
        (true, false) => "runs",
        (false, false) => "is gone and has not ended in order; these are its last numbers",
    };
    let tables = stats_table::tables(stats, period);
    let bold = io::stdout().is_terminal() && report::wants_colours();
    let emphasize = |line: &str| match bold && (line.starts_with("device ") || line.starts_with("worker ")) {
        true => format!("\x1b[1m{line}\x1b[0m\n"),
        false => format!("{line}\n"),
    };
    format!("process {} {state}\n{}", writer.process, tables.lines().map(emphasize).collect::<String>())
}

/// The numbers as they stand; and what was counted in the last period, if there is one.
fn as_json(stats: &Snapshot, period: Option<(&Snapshot, f64)>) -> Value {
    let writer = &stats.writer;
    let mut value = stats_json::json(stats, &[]);
    value["process"] = json!({ "pid": writer.process, "alive": writer.is_alive(), "ended": writer.has_ended });
    if let Some((difference, seconds)) = period {
        value["period"] = json!({
            "seconds": seconds,
            "queues": stats_json::queues_json(difference),
            "workers": stats_json::workers_json(difference),
        });
    }
    value
}
