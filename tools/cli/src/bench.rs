//! `pollux bench`
use crate::{
    Shared, Status, report,
    targets::{self, Targets},
};
use clap::{ArgAction, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollux_core::ring::RingKind;
use pollux_loadgen::{
    FrontEndOptions, Indirect, LoadLimits, Workload,
    campaign::{Plan, Stage},
    frontend, load,
    load::Progress,
    machine::Machine,
    report::{Report, histogram, html, json, summary, verdict},
    workload::Order,
};
use pollux_vmm::Shutdown;
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// The arguments of `pollux bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Socket of a vhost-user-blk backend; or a file that ends in .toml, as for `serve`: its devices are started for
    /// the measurement, on their workers and on sockets of our own, and measured in turn.
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// Measure this one too, in turn with the first, and print the ratio.
    #[arg(long, value_name = "TARGET")]
    compare: Option<PathBuf>,
    /// Of a file that ends in .toml, measure this device alone.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// What to ask for.
    #[arg(long, value_name = "KIND", default_value = "randread")]
    rw: Kind,
    /// Reads among the requests of rw and randrw, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_share: u8,
    /// Bytes of a request.
    #[arg(long, short = 'b', value_name = "BYTES", default_value = "4k", value_parser = size)]
    block_size: u64,
    /// Requests in flight on each queue; several, separated by commas, are measured one after the other.
    #[arg(long, short = 'd', value_name = "LIST", default_value = "1,8,32,128", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    depth: Vec<u16>,
    /// Queues, each driven by a thread of its own.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queues: u16,
    /// Descriptors of each queue, a power of two; by default what the greatest depth needs.
    #[arg(long, value_name = "NUMBER", value_parser = queue_size)]
    queue_size: Option<u16>,
    /// Length of each measurement in seconds; by default 3, or 1 if there are several rounds.
    #[arg(long, short = 't', value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// End after so many requests of all queues together, instead.
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Requests per second of all queues together, sent at even intervals; a latency counts from the time at which its
    /// request was due. By default as many as can be.
    #[arg(long, value_name = "NUMBER", value_parser = rate, conflicts_with = "interrupts")]
    rate: Option<f64>,
    /// Time before each measurement in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
    warm_up: Duration,
    /// Measure everything so many times; by default once, and five times to compare.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Start of the range in bytes.
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = size)]
    offset: u64,
    /// Length of the range in bytes; by default up to the end of the device.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    size: Option<u64>,
    /// Flush after so many writes of a queue.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    flush_every: Option<u64>,
    /// Seed of the random order.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Write records with checksums, check what is read, and read everything back at the end.
    #[arg(long)]
    verify: bool,
    /// CPUs for the threads of the queues, in turn, such as 2,3; by default any.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cpu: Vec<usize>,
    /// CPU on which the backend runs: the round trip of a cache line is measured between it and the first of --cpu.
    #[arg(long, value_name = "NUMBER")]
    peer_cpu: Option<usize>,
    /// Have requests given back in the order in which they are made; the device must offer that.
    #[arg(long)]
    in_order: bool,
    /// Show the device all requests that can go out at once, not one by one as Linux does (which asks once for all of
    /// them whether it is to kick).
    #[arg(long)]
    batch: bool,
    /// Sleep until the backend interrupts, instead of polling.
    #[arg(long)]
    interrupts: bool,
    /// Kind of the rings: split, or packed.
    #[arg(long, value_name = "KIND", default_value = "split")]
    ring: Ring,
    /// Descriptors in tables of their own: if offered, always, or never.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    indirect: When,
    /// Do not use event indices.
    #[arg(long = "no-event-idx", action = ArgAction::SetFalse)]
    event_idx: bool,
    /// Memory of huge pages of this size.
    #[arg(long, value_name = "BYTES", value_parser = huge_page)]
    hugepages: Option<u64>,
    /// Give up after so many seconds without an answer.
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds)]
    timeout: Duration,
    /// Draw the latency histogram of every depth. By default only that of a single one.
    #[arg(long)]
    histogram: bool,
    /// Print one JSON object with everything that was measured, instead of tables; or write it to FILE, beside them.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    json: Option<Option<PathBuf>>,
    /// Write a page with plots to FILE. It needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What to ask for.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Read,
    Write,
    Randread,
    Randwrite,
    Rw,
    Randrw,
}

#[derive(Clone, Copy, ValueEnum)]
enum Ring {
    Split,
    Packed,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

/// Bytes, or a number with a binary unit: `4k`, `1G`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        unit => return Err(format!("`{unit}` is no unit; write bytes, or K, M, G or T after the number")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "this is more than 64 bits can hold".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| "give seconds, such as 2 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && rate.is_finite());
    rate.ok_or_else(|| "give requests per second, more than 0".into())
}

fn queue_size(text: &str) -> Result<u16, String> {
    let number: u16 = text.parse().map_err(|_| "give a power of two from 4 to 32768".to_owned())?;
    let good = number.is_power_of_two() && number >= 4;
    good.then_some(number).ok_or_else(|| "give a power of two from 4 to 32768".into())
}

fn huge_page(text: &str) -> Result<u64, String> {
    size(text).ok().filter(|bytes| [2 << 20, 1 << 30].contains(bytes)).ok_or_else(|| "give 2M or 1G".into())
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Load(#[from] frontend::Error),
    #[error(transparent)]
    Targets(#[from] targets::Error),
    #[error("a block size of {0} bytes is too much; 1G is the end")]
    BlockSize(u64),
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    #[error("cannot write {}: {cause}", .path.display())]
    Write { path: PathBuf, cause: io::Error },
}

/// Runs the command.
pub(crate) fn bench(arguments: &Arguments, shared: &Shared) -> Status {
    match measure(arguments, shared) {
        Ok(status) => status,
        Err(Error::Targets(targets::Error::Shown(_))) => Status::BadConfiguration,
        Err(error) => {
            report::complain(&error);
            match error {
                Error::Load(cause) if cause.is_usage() => Status::BadConfiguration,
                Error::Targets(cause) if cause.is_usage() => Status::BadConfiguration,
                Error::BlockSize(_) => Status::BadConfiguration,
                Error::Load(_) | Error::Targets(_) | Error::Signals(_) | Error::Write { .. } => Status::Failure,
            }
        }
    }
}

fn measure(arguments: &Arguments, shared: &Shared) -> Result<Status, Error> {
    let mut plan = plan(arguments)?;
    load::check_cpus(&plan.limits.cpus)?;
    // Before a long run whose results would be lost.
    let json_path = arguments.json.as_ref().and_then(Option::as_deref);
    let json_file = json_path.map(create).transpose()?;
    let html_file = arguments.html.as_deref().map(create).transpose()?;
    let shutdown = stop_on_signals(&plan.limits.stop).map_err(Error::Signals)?;
    let targets = Targets::start(&paths(arguments), arguments.device.as_deref(), shared)?;
    plan.targets = targets.list.clone();
    plan.pair = pair(&arguments.cpu, arguments.peer_cpu.or(targets.worker_cpu));
    let bar = Bar::new();
    let runs = plan.execute(&mut |stage, progress| bar.show(stage, progress));
    bar.finish();
    // What was started ends before it is reported on.
    drop(targets);
    let runs = runs?;
    let ended_early = shutdown.signal().filter(|_| runs.len() < plan.runs());
    if let Some(signal) = ended_early {
        let (done, all) = (runs.len(), plan.runs());
        report::complain(&format_args!("stopped by signal {signal}; {done} of {all} measurements were done"));
        if runs.is_empty() {
            return Ok(Status::Stopped(signal));
        }
        plan.rounds = runs.iter().map(|run| run.round + 1).max().unwrap_or(0);
    }
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let report = Report { command, machine: Machine::new(), plan, runs };
    match &arguments.json {
        Some(None) => report::print(&format!("{:#}\n", json(&report))),
        _ => report::print(&text(&report, arguments.histogram)),
    }
    if let Some((path, file)) = json_file {
        write(path, file, &format!("{:#}\n", json(&report)))?;
    }
    if let Some((path, file)) = html_file {
        write(path, file, &html(&report))?;
    }
    if let Some(errors) = report.errors() {
        report::complain(&errors);
    }
    let failed = report.fault_count() + report.error_count() > 0;
    Ok(match ended_early {
        Some(signal) => Status::Stopped(signal),
        None if failed => Status::Failure,
        None => Status::Success,
    })
}

/// SIGINT, SIGTERM and SIGHUP stop the measurement, so that what was started for it is ended in order and leaves
/// nothing behind.
fn stop_on_signals(stop: &Arc<AtomicBool>) -> io::Result<Shutdown> {
    let shutdown = Shutdown::on_signals()?;
    let (waiting, stop) = (shutdown.clone(), stop.clone());
    let wait = move || {
        waiting.wait();
        stop.store(true, Ordering::Relaxed);
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(shutdown)
}

fn create(path: &Path) -> Result<(&Path, File), Error> {
    File::create(path).map(|file| (path, file)).map_err(|cause| Error::Write { path: path.to_owned(), cause })
}

fn write(path: &Path, mut file: File, text: &str) -> Result<(), Error> {
    file.write_all(text.as_bytes()).map_err(|cause| Error::Write { path: path.to_owned(), cause })
}

/// What is to be done with the targets, once they are there.
fn plan(arguments: &Arguments) -> Result<Plan, Error> {
    let block_bytes = match arguments.block_size {
        bytes @ 0..=0x4000_0000 => bytes as u32,
        bytes => return Err(Error::BlockSize(bytes)),
    };
    let (order, read_share) = match arguments.rw {
        Kind::Read => (Order::Sequential, 100),
        Kind::Write => (Order::Sequential, 0),
        Kind::Randread => (Order::Random, 100),
        Kind::Randwrite => (Order::Random, 0),
        Kind::Rw => (Order::Sequential, arguments.read_share),
        Kind::Randrw => (Order::Random, arguments.read_share),
    };
    let rounds = arguments.rounds.unwrap_or(if arguments.compare.is_some() { 5 } else { 1 });
    let by_time = Duration::from_secs(if rounds > 1 { 1 } else { 3 });
    let duration = arguments.duration.or_else(|| arguments.requests.is_none().then_some(by_time));
    Ok(Plan {
        targets: Vec::new(),
        depths: arguments.depth.clone(),
        rounds,
        workload: Workload {
            order,
            read_share,
            block_bytes,
            offset: arguments.offset,
            size: arguments.size,
            flush_every: arguments.flush_every,
            seed: arguments.seed,
        },
        options: FrontEndOptions {
            queues: arguments.queues,
            queue_size: arguments.queue_size,
            depth: arguments.depth.iter().copied().max().unwrap_or(1),
            block_bytes,
            in_order: arguments.in_order,
            ring: match arguments.ring {
                Ring::Split => RingKind::Split,
                Ring::Packed => RingKind::Packed,
            },
            indirect: match arguments.indirect {
                When::Auto => Indirect::Auto,
                When::Always => Indirect::Always,
                When::Never => Indirect::Never,
            },
            event_idx: arguments.event_idx,
            hugepages: arguments.hugepages,
            patience: arguments.timeout,
        },
        limits: LoadLimits {
            depth: 0,
            warm_up: arguments.warm_up,
            duration,
            requests: arguments.requests,
            rate: arguments.rate,
            batch: arguments.batch,
            interrupts: arguments.interrupts,
            cpus: arguments.cpu.clone(),
            patience: arguments.timeout,
            stop: Arc::default(),
        },
        verify: arguments.verify,
        pair: None,
    })
}

fn paths(arguments: &Arguments) -> Vec<&Path> {
    [Some(&arguments.target), arguments.compare.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect()
}

/// The CPU of the driver and that of the backend, as far as they are known.
fn pair(cpus: &[usize], peer: Option<usize>) -> Option<(usize, usize)> {
    let usable = load::usable_cpus();
    let driver = cpus.first().or(usable.iter().rev().find(|cpu| Some(**cpu) != peer)).copied()?;
    let other = peer.or_else(|| usable.iter().copied().find(|cpu| *cpu != driver && !cpus.contains(cpu)))?;
    Some((driver, other))
}

/// All that is printed.
fn text(report: &Report, histograms: bool) -> String {
    let mut text = format!("{}\n{}", report.machine.line(), summary(report));
    let runs = &report.runs;
    if histograms || runs.len() == 1 {
        for run in runs {
            text += &format!("\nLatency, {} depth {}:\n", report.target_name(run.target), run.depth);
            text += &histogram(&run.total.latencies);
        }
    }
    let verdict = verdict(report);
    if !verdict.is_empty() {
        text += &format!("\n{verdict}");
    }
    text
}

/// The progress bar. There is none where standard error is no terminal.
struct Bar(ProgressBar);

const BAR_STEPS: u64 = 1000;

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{bar:40} {msg}");
        Bar(style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)))
    }

    fn show(&self, stage: Stage<'_>, progress: Progress) {
        let done = (stage.index as f64 + progress.share) / stage.count as f64;
        self.0.set_position((done * BAR_STEPS as f64) as u64);
        let rate = progress.requests as f64 / progress.elapsed.as_secs_f64().max(1e-3);
        self.0.set_message(format!(
            "{} depth {}: {} IOPS",
            stage.target,
            stage.depth,
            crate::units::count(rate as u64)
        ));
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("512", 512), ("4k", 4096), ("4K", 4096), ("1G", 1 << 30), ("2t", 2 << 40)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "4x", "4kb", "-1", "1.5k", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_may_have_parts() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("2s"), Ok(Duration::from_secs(2)));
        assert!(seconds("-1").is_err() && seconds("soon").is_err());
    }
}
