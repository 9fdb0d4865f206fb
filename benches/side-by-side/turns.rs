//! A work, done by all of its sides in turn.
use super::{
    arguments::Arguments,
    medium::Medium,
    progress::Progress,
    rival::Rival,
    work::{Against, DEPTHS, Who, Work},
};
use pollux_benches::{
    contest::{self, Sample},
    row::{Figure, Row, Unit},
};
use pollux_loadgen::{
    FrontEndOptions, LoadLimits, Workload,
    campaign::{Plan, Target},
};
use std::{error::Error, io, rc::Rc};

/// The CPU of the servers and that of the driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    pub(crate) server: usize,
    pub(crate) driver: usize,
}

/// What came of a work.
pub(crate) struct Measured {
    pub(crate) work: Work,
    /// The sides that took turns.
    pub(crate) sides: Vec<Who>,
    pub(crate) samples: Vec<Sample>,
}

/// Number of measurements.
pub(crate) fn steps(work: Work, rounds: u32) -> u64 {
    (DEPTHS.len() * work.sides().len()) as u64 * u64::from(rounds)
}

struct Side {
    who: Who,
    /// The server, of which two sides may be clients; none for the ideal device.
    rival: Option<Rc<Rival>>,
}

impl Side {
    fn target(&self) -> Target {
        match (self.who, &self.rival) {
            (Who::Ideal(kind, _), _) => Target::Ideal(kind),
            (_, Some(rival)) => Target::Socket(rival.socket().into()),
            (who, None) => unreachable!("{who:?} has a server"),
        }
    }

    /// Lets it have its CPU, or takes it away.
    fn run(&self, runs: bool) -> io::Result<()> {
        match &self.rival {
            Some(rival) if runs => rival.go_on(),
            Some(rival) => rival.stop(),
            None => Ok(()),
        }
    }
}

/// Starts the servers. One of theirs that does not start is left out, and its reason printed.
fn start(work: Work, medium: &Medium, cpu: usize, has_qemu: bool, progress: &Progress) -> io::Result<Vec<Side>> {
    let mut sides: Vec<Side> = Vec::new();
    for who in work.sides() {
        let rival = match who {
            Who::Pollux(_) => match sides.first() {
                Some(first) => first.rival.clone(),
                None => Some(Rc::new(Rival::pollux(work, medium, cpu)?)),
            },
            Who::Qemu(_) if !has_qemu => continue,
            Who::Qemu(aio) => match Rival::qemu_storage_daemon(work, medium, aio, cpu) {
                Ok(rival) => Some(Rc::new(rival)),
                Err(error) => {
                    progress.print(&format!("{}: {} is left out: {error}", work.name(), who.name()));
                    continue;
                }
            },
            Who::Ideal(..) => None,
        };
        sides.push(Side { who, rival });
    }
    Ok(sides)
}

/// Measures all depths, A B C A B C. `None`: the work was skipped, and its reason printed.
pub(crate) fn measure(
    work: Work,
    arguments: &Arguments,
    cpus: Cpus,
    has_qemu: bool,
    progress: &Progress,
) -> Result<Option<Measured>, Box<dyn Error>> {
    let medium = match Medium::new(work) {
        Ok(medium) => medium,
        Err(reason) => {
            progress.print(&format!("{}: skipped: {reason}", work.name()));
            progress.skip(steps(work, arguments.rounds));
            return Ok(None);
        }
    };
    // Before the medium in what is dropped: they have it open.
    let sides = start(work, &medium, cpus.server, has_qemu, progress)?;
    progress
        .skip(steps(work, arguments.rounds) / work.sides().len() as u64 * (work.sides().len() - sides.len()) as u64);
    sides.iter().try_for_each(|side| side.run(false))?;
    let mut samples = Vec::new();
    for depth in DEPTHS {
        for round in 0..arguments.rounds {
            for (index, side) in sides.iter().enumerate() {
                progress.step(&format!("{} depth {depth} round {}: {}", work.name(), round + 1, side.who.name()))?;
                let plan = plan(work, side, depth, arguments, cpus);
                side.run(true)?;
                let measured = plan.execute(&mut |_, _| {});
                side.run(false)?;
                samples.extend(measured?.into_iter().map(|run| Sample {
                    side: index,
                    depth,
                    round,
                    rate: run.total.iops(),
                    round_trip_ns: run.round_trip_ns,
                }));
            }
        }
    }
    Ok(Some(Measured { work, sides: sides.iter().map(|side| side.who).collect(), samples }))
}

fn plan(work: Work, side: &Side, depth: u16, arguments: &Arguments, Cpus { server, driver }: Cpus) -> Plan {
    Plan {
        targets: vec![side.target()],
        depths: vec![depth],
        rounds: 1,
        workload: Workload { size: Some(Medium::BYTES), ..Workload::default() },
        options: FrontEndOptions {
            depth,
            ring: side.who.ring(),
            indirect: work.indirect(),
            ..FrontEndOptions::default()
        },
        limits: LoadLimits {
            warm_up: arguments.duration / 5,
            duration: Some(arguments.duration),
            cpus: vec![driver],
            ..LoadLimits::default()
        },
        verify: false,
        pair: Some((driver, server)),
    }
}

impl Measured {
    /// A row for each comparison and depth: where there are several rivals of a kind, with the one that is best at that
    /// depth.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let kinds = Against::ALL.into_iter();
        kinds.flat_map(|against| (0..DEPTHS.len()).filter_map(move |index| self.row(against, index))).collect()
    }

    fn row(&self, against: Against, index: usize) -> Option<Row> {
        let depth = DEPTHS[index];
        let others: Vec<usize> = (1..self.sides.len()).filter(|&side| against.is(self.sides[side])).collect();
        let best = contest::best(&self.samples, depth, &others)?;
        let figure = |side: usize| {
            let rate = contest::rate(&self.samples, depth, side)?;
            Some(Figure::new(self.sides[side].name(), Unit::PerSecond, rate))
        };
        Some(Row {
            work: self.work.name().into(),
            depth: Some(depth),
            against: against.name(),
            ours: figure(0)?,
            other: figure(best)?,
            result: Figure::new("", Unit::Ratio, contest::ratio(&self.samples, depth, 0, best)?),
            goal: self.work.goal(against, index),
            round_trip_ns: contest::round_trip_ns(&self.samples, depth, &[0, best]),
        })
    }
}
