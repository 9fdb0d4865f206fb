//! Tables for a terminal.
use super::content::{Report, letter};
use crate::{
    campaign::{self, Run, Spread},
    latency::QUANTILES,
    load::QueueResult,
    units,
};

/// Rows of cells, the first of them headings: columns aligned, the first `names` to the left.
pub fn align(rows: &[Vec<String>], names: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < names {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<String>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// What was measured, in a few lines.
pub(super) fn about(report: &Report) -> String {
    let targets = (0..report.plan.targets.len())
        .map(|index| format!("{}: {}\n", report.target_name(index), target_line(report, index)));
    targets.collect::<String>() + &workload_line(report) + "\n"
}

/// What was measured, in a few lines, and the results as tables.
pub fn summary(report: &Report) -> String {
    let mut text = about(report) + "\n";
    if report.plan.rounds == 1 && report.plan.targets.len() == 1 {
        let mut rows = vec![headings(report)];
        rows.extend(report.runs.iter().flat_map(|run| run_rows(report, run)));
        text += &align(&rows, names(report));
    } else {
        text += &rounds(report);
    }
    text
}

fn headings(report: &Report) -> Vec<String> {
    let mut cells: Vec<&str> = vec!["depth"];
    if report.plan.options.queues > 1 {
        cells.push("queue");
    }
    cells.extend(["IOPS", "MiB/s", "ns per I/O"]);
    cells.extend(QUANTILES.map(|(_, name)| name));
    cells.extend(["max", "errors", "kicks", "interrupts", "round trip"]);
    cells.into_iter().map(str::to_owned).collect()
}

fn names(report: &Report) -> usize {
    if report.plan.options.queues > 1 { 2 } else { 1 }
}

fn run_rows(report: &Report, run: &Run) -> Vec<Vec<String>> {
    let trip = run.round_trip_ns.and_then(|(before, after)| Spread::new([before.min(after), before.max(after)]));
    let depth = run.depth.to_string();
    let mut rows = Vec::new();
    if report.plan.options.queues > 1 {
        let queues = run.outcome.queues.iter().enumerate();
        rows.extend(
            queues.map(|(index, result)| [vec![depth.clone(), index.to_string()], result_cells(result)].concat()),
        );
        rows.push([vec![depth, "all".into()], result_cells(&run.total), vec![trip_cell(trip)]].concat());
    } else {
        rows.push([vec![depth], result_cells(&run.total), vec![trip_cell(trip)]].concat());
    }
    rows
}

fn result_cells(result: &QueueResult) -> Vec<String> {
    let or_none = |value: Option<u64>| value.map_or_else(|| "-".into(), units::time);
    let mut cells = vec![
        units::count(result.iops().round() as u64),
        format!("{:.1}", result.bytes_per_second() / f64::from(1 << 20)),
        result.ns_per_request().map_or_else(|| "-".into(), |time| format!("{time:.0}")),
    ];
    cells.extend(QUANTILES.map(|(share, _)| or_none(result.latencies.quantile(share))));
    cells.push(or_none(result.latencies.max()));
    cells.extend([result.errors, result.counters.kicks, result.counters.interrupts].map(units::count));
    cells
}

fn trip_cell(trip: Option<Spread>) -> String {
    match trip {
        None => "-".into(),
        Some(Spread { min, max, .. }) if max < 1.15 * min => format!("{max:.0} ns"),
        Some(Spread { min, max, .. }) => format!("{min:.0} to {max:.0} ns"),
    }
}

/// Medians of several rounds; of two targets, also their ratio.
fn rounds(report: &Report) -> String {
    let compares = report.plan.targets.len() == 2;
    let mut rows = Vec::new();
    let mut headings = vec!["depth"];
    if compares {
        headings.push("target");
    }
    headings.extend(["IOPS", "least", "greatest"]);
    headings.extend(QUANTILES.map(|(_, name)| name));
    headings.extend(["max", "errors", "kicks", "interrupts", "round trip"]);
    if compares {
        headings.push("A/B");
    }
    rows.push(headings.into_iter().map(str::to_owned).collect());
    for summary in campaign::summaries(&report.runs) {
        let mut row = vec![summary.depth.to_string()];
        if compares {
            row.push(letter(summary.target).to_string());
        }
        let Spread { median, min, max } = summary.iops;
        row.extend([median, min, max].map(|value| units::count(value.round() as u64)));
        row.extend(result_cells(&summary.total).split_off(3));
        row.push(trip_cell(summary.round_trip_ns));
        if let Some(ratio) = campaign::ratio(&report.runs, summary.depth).filter(|_| compares && summary.target == 0) {
            row.push(format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max));
        }
        rows.push(row);
    }
    let note = if compares { ", the targets in turn; A/B: the median of the rounds' ratios" } else { "" };
    format!("Medians of {} rounds{note}.\n{}", report.plan.rounds, align(&rows, if compares { 2 } else { 1 }))
}

fn target_line(report: &Report, index: usize) -> String {
    let Some(run) = report.runs.iter().find(|run| run.target == index) else { return "not measured".into() };
    let facts = run.facts;
    let yes = |value: bool, text: &'static str| if value { Some(text) } else { None };
    let parts = [
        yes(facts.read_only, "read-only"),
        yes(facts.packed, "packed rings"),
        yes(facts.in_order, "IN_ORDER"),
        yes(facts.event_idx, "EVENT_IDX"),
        yes(facts.indirect, "indirect descriptors"),
        yes(facts.inflight, "in-flight record"),
    ];
    let extras: Vec<&str> = parts.into_iter().flatten().collect();
    let extras = if extras.is_empty() { String::new() } else { format!(", {}", extras.join(", ")) };
    format!(
        "{}, blocks of {}, {} of {} queues of {}{extras}",
        units::bytes(facts.capacity),
        units::bytes(facts.block_bytes.into()),
        report.plan.options.queues,
        facts.queues,
        run.queue_size
    )
}

fn workload_line(report: &Report) -> String {
    let workload = &report.plan.workload;
    let limits = &report.plan.limits;
    let order = format!("{:?}", workload.order).to_lowercase();
    let what = match workload.read_share {
        0 => "writes".to_owned(),
        100.. => "reads".to_owned(),
        _ => "requests".to_owned(),
    };
    let bytes = units::bytes(workload.block_bytes.into());
    let time = limits.duration.map(|time| format!("{:.3} s", time.as_secs_f64()));
    let count = limits.requests.map(|requests| format!("{} requests", units::count(requests)));
    let length: Vec<String> = count.into_iter().chain(time).collect();
    let mix = match workload.read_share {
        share @ 1..100 => format!(", {share} % of them reads"),
        _ => String::new(),
    };
    let rate = limits.rate.map(|rate| format!(", {rate} a second")).unwrap_or_default();
    let cpus = match limits.cpus.as_slice() {
        [] => "not pinned".to_owned(),
        cpus => format!("on CPU {}", cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")),
    };
    let how = if limits.interrupts { "waits for interrupts" } else { "polls" };
    let batch = if limits.batch { ", publishes once a batch" } else { "" };
    let warm_up = match limits.warm_up.as_secs_f64() {
        0.0 => String::new(),
        seconds => format!(" after {seconds:.3} s of warm-up"),
    };
    format!("{order} {what} of {bytes}{mix}{rate}, {}{warm_up}; the driver {how}{batch}, {cpus}", length.join(" or "))
}

/// What the check of the data found; empty without one.
pub fn verdict(report: &Report) -> String {
    let mut text = String::new();
    let mut blocks = 0;
    for run in &report.runs {
        let Some(verified) = &run.verified else { continue };
        blocks += verified.blocks;
        for fault in &verified.faults {
            text += &format!("{} depth {}: {fault}\n", report.target_name(run.target), run.depth);
        }
        let more = verified.fault_count - verified.faults.len() as u64;
        if more > 0 {
            text += &format!("and {} more\n", units::count(more));
        }
    }
    if !report.plan.verify {
        return text;
    }
    match report.fault_count() {
        0 => text + &format!("verified: {} blocks read, all as they were written\n", units::count(blocks)),
        count => {
            text + &format!(
                "NOT verified: {} wrong sectors in {} blocks read\n",
                units::count(count),
                units::count(blocks)
            )
        }
    }
}
