//! Pollux and qemu-storage-daemon on the same work, in turn: `cargo bench --bench side_by_side`.
//!
//! Both serve vhost-user-blk from the same CPU, one driver on another CPU measures both, A B A B, and whoever is not measured is
//! stopped meanwhile (SIGSTOP), so that neither polls while the other works. Where there is nothing but memory behind the device, an ideal
//! one takes its turn as well: a loop on the same ring in the driver's process, without vhost-user, plugin or device model. Medians and spread of the rounds, and beside them the
//! time of a cache line from one CPU to the other and back: on a virtual machine it changes from minute to minute, and with it
//! everything else. Compare within a row.
#![allow(missing_docs)]
mod rival;
mod work;

use pollux_loadgen::{
    Limits, Options, Workload,
    campaign::{Plan, Run, Spread, Target, summaries},
    ideal,
    load::usable_cpus,
};
use rival::Rival;
use std::{env, error::Error, fs, io, path::PathBuf, time::Duration};
use work::Work;

const DEPTHS: [u16; 4] = [1, 8, 32, 128];

/// What the command line says.
struct Arguments {
    rounds: u32,
    duration: Duration,
    works: Vec<Work>,
    json: Option<PathBuf>,
}

impl Arguments {
    fn parse() -> Result<Option<Self>, String> {
        let mut arguments =
            Arguments { rounds: 5, duration: Duration::from_millis(500), works: Work::ALL.into(), json: None };
        let (mut is_bench, mut words) = (false, env::args().skip(1));
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--bench" => is_bench = true,
                "--rounds" => arguments.rounds = value()?.parse().map_err(|error| format!("--rounds: {error}"))?,
                "--milliseconds" => {
                    let number = value()?.parse().map_err(|error| format!("--milliseconds: {error}"))?;
                    arguments.duration = Duration::from_millis(number);
                }
                "--json" => arguments.json = Some(value()?.into()),
                name => match Work::ALL.into_iter().find(|work| work.name() == name) {
                    Some(work) if arguments.works.len() == Work::ALL.len() => arguments.works = vec![work],
                    Some(work) => arguments.works.push(work),
                    None => {
                        let names = Work::ALL.map(Work::name).join(", ");
                        return Err(format!(
                            "{name} is nothing to measure; there are {names}, --rounds N, --milliseconds N, --json FILE"
                        ));
                    }
                },
            }
        }
        Ok(is_bench.then_some(arguments))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // As a test: one short round.
    let arguments = Arguments::parse()?.unwrap_or(Arguments {
        rounds: 1,
        duration: Duration::from_millis(20),
        works: vec![Work::Null],
        json: None,
    });
    if !rival::has_program("qemu-storage-daemon") {
        println!("skipped: there is no qemu-storage-daemon to measure against; install qemu-utils");
        return Ok(());
    }
    let cpus = usable_cpus();
    let (Some(&server), Some(&driver)) = (cpus.first(), cpus.get(1)) else {
        println!("skipped: it takes two CPUs");
        return Ok(());
    };
    println!(
        "servers on CPU {server}, driver on CPU {driver}; 4 KiB random reads, 1 queue; {} rounds",
        arguments.rounds
    );
    println!("thousand requests per second: median (least to greatest)\n");
    let mut all = Vec::new();
    for &work in &arguments.works {
        let runs = measure(work, &arguments, server, driver)?;
        print_table(work, &runs);
        all.push(json(work, &runs));
    }
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

/// Who is measured.
enum Side {
    Server(Rival),
    /// The loop of the load generator, which shares its process.
    Ideal(ideal::Kind),
}

impl Side {
    fn target(&self) -> Target {
        match self {
            Side::Server(rival) => Target::Socket(rival.socket().into()),
            Side::Ideal(kind) => Target::Ideal(*kind),
        }
    }

    /// Lets it have its CPU, or takes it away.
    fn run(&self, runs: bool) -> io::Result<()> {
        match self {
            Side::Server(rival) if runs => rival.go_on(),
            Side::Server(rival) => rival.stop(),
            Side::Ideal(_) => Ok(()),
        }
    }
}

fn measure(work: Work, arguments: &Arguments, server: usize, driver: usize) -> Result<Vec<Run>, Box<dyn Error>> {
    let folder = work.folder()?;
    let mut sides = vec![
        Side::Server(Rival::pollux(work, folder.path(), server)?),
        Side::Server(Rival::qemu_storage_daemon(work, folder.path(), server)?),
    ];
    sides.extend(work.ideal().map(Side::Ideal));
    sides.iter().try_for_each(|side| side.run(false))?;
    let mut runs = Vec::new();
    for depth in DEPTHS {
        for round in 0..arguments.rounds {
            for (index, side) in sides.iter().enumerate() {
                let plan = Plan {
                    targets: vec![side.target()],
                    depths: vec![depth],
                    rounds: 1,
                    workload: Workload { size: Some(work::SIZE), ..Workload::default() },
                    options: Options { depth, ..Options::default() },
                    limits: Limits {
                        warm_up: arguments.duration / 5,
                        duration: Some(arguments.duration),
                        cpus: vec![driver],
                        ..Limits::default()
                    },
                    verify: false,
                    pair: Some((driver, server)),
                };
                side.run(true)?;
                let measured = plan.execute(&mut |_, _| {});
                side.run(false)?;
                runs.extend(measured?.into_iter().map(|run| Run { target: index, round, ..run }));
            }
        }
    }
    Ok(runs)
}

/// Requests per second of Pollux divided by those of another, round by round.
fn ratio(runs: &[Run], depth: u16, other: usize) -> String {
    let of = |target: usize| {
        runs.iter().filter(move |run| (run.depth, run.target) == (depth, target)).map(|run| run.total.iops())
    };
    let spread = Spread::new(of(0).zip(of(other)).map(|(ours, theirs)| ours / theirs));
    spread.map_or("-".into(), |ratio| format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max))
}

fn print_table(work: Work, runs: &[Run]) {
    println!("{}", work.title());
    println!(
        "{:>5}  {:<27} {:<24} {:<22} {:<22} {:<20} round trip",
        "depth", "Pollux", "qemu-storage-daemon", "ideal", "Pollux / qemu", "Pollux / ideal"
    );
    let thousand =
        |spread: &Spread| format!("{:.1} ({:.1} to {:.1})", spread.median / 1e3, spread.min / 1e3, spread.max / 1e3);
    for depth in DEPTHS {
        let sides = summaries(runs);
        let rate = |target: usize| {
            let side = sides.iter().find(|side| (side.depth, side.target) == (depth, target));
            side.map_or("-".into(), |side| thousand(&side.iops))
        };
        let trips = runs.iter().filter(|run| run.depth == depth).filter_map(|run| run.round_trip_ns);
        let trip = Spread::new(trips.flat_map(|(before, after)| [before, after]));
        let trip =
            trip.map_or("-".into(), |trip| format!("{:.0} ns ({:.0} to {:.0})", trip.median, trip.min, trip.max));
        let [qemu, best] = [1, 2].map(|other| ratio(runs, depth, other));
        println!("{depth:>5}  {:<27} {:<24} {:<22} {qemu:<22} {best:<20} {trip}", rate(0), rate(1), rate(2));
    }
    println!();
}

fn json(work: Work, runs: &[Run]) -> serde_json::Value {
    let run = |run: &Run| {
        serde_json::json!({
            "server": match run.target { 0 => "pollux", 1 => "qemu-storage-daemon", _ => "ideal" },
            "depth": run.depth,
            "round": run.round,
            "iops": run.total.iops(),
            "round_trip_ns": run.round_trip_ns,
        })
    };
    serde_json::json!({ "work": work.name(), "runs": runs.iter().map(run).collect::<Vec<_>>() })
}
