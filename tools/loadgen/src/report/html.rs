//! The report as one file for a browser: no script, nothing from any network.
use super::{
    content::{Report, letter},
    page,
    plot::{Axis, Line, Scale, plot},
    table::verdict,
    text::escape,
};
use crate::{
    campaign::{self, Run},
    latency::{Latencies, QUANTILES},
    load::QueueResult,
    units,
};
use std::fmt::Write;

/// Steps of histograms in each power of ten.
const STEPS: u32 = 20;
/// Where the line of quantiles has its points: so many in each step to ten times fewer requests.
const POINTS: u32 = 20;

/// The page.
pub fn html(report: &Report) -> String {
    let names: Vec<String> = report.plan.targets.iter().map(ToString::to_string).collect();
    let title = format!("pollux bench: {}", names.join(" and "));
    let mut body = String::new();
    let _ =
        writeln!(body, "<p><code>{}</code></p>\n<p>{}</p>", escape(&report.command), escape(&report.machine.line()));
    let _ = writeln!(body, "<pre>{}</pre>", escape(&super::table::about(report)));
    let verdict = verdict(report);
    if !verdict.is_empty() {
        let class = if report.fault_count() == 0 { "good" } else { "bad" };
        let _ = writeln!(body, "<pre class=\"{class}\">{}</pre>", escape(&verdict));
    }
    body += &summary_table(report);
    body += &plots(report);
    body += &run_table(report);
    page::page(&title, &body)
}

fn series_name(report: &Report, target: usize, depth: u16) -> String {
    match report.plan.targets.len() {
        1 => format!("depth {depth}"),
        _ => format!("{} depth {depth}", letter(target)),
    }
}

fn time(value: f64) -> String {
    units::time(value.round() as u64)
}

fn plots(report: &Report) -> String {
    let summaries = campaign::summaries(&report.runs);
    let name = |index: usize| series_name(report, summaries[index].target, summaries[index].depth);
    let lines = |filled: bool, points: &dyn Fn(&Latencies) -> Vec<(f64, f64)>| -> Vec<Line> {
        let made = summaries.iter().enumerate();
        made.map(|(index, summary)| Line {
            name: name(index),
            points: points(&summary.total.latencies),
            filled,
            beside: None,
        })
        .collect()
    };
    let latency = |title| Axis { title, scale: Scale::Log, marks: Vec::new(), label: time };
    let most = summaries.iter().map(|summary| nines_max(&summary.total.latencies)).fold(1.0, f64::max);
    let nines = (0..=most.ceil() as i32).map(|nines| (f64::from(nines), nines_label(nines))).collect();
    let shares = Axis { title: "share of requests", scale: Scale::Linear, marks: nines, label: time };
    let quantiles = plot(&shares, &latency("latency"), &lines(false, &quantile_points));
    let percent =
        Axis { title: "requests", scale: Scale::Linear, marks: Vec::new(), label: |share| format!("{share:.0} %") };
    let histogram = plot(&latency("latency"), &percent, &lines(true, &histogram_points));
    let seconds = Axis { title: "seconds", scale: Scale::Linear, marks: Vec::new(), label: |value| trim(value) };
    let iops = Axis { title: "IOPS", scale: Scale::Linear, marks: Vec::new(), label: rate };
    let throughput = plot(&seconds, &iops, &throughput_lines(report));
    let names: Vec<String> = (0..summaries.len()).map(name).collect();
    let figure = |title: &str, svg: String, text: &str| page::figure(title, &names, &svg, text);
    figure("Latency by percentile", quantiles, "Each step to the right leaves a tenth of the requests above the line.")
        + &figure(
            "Latency histogram",
            histogram,
            "Share of the requests in each step of a logarithmic scale, 20 steps in a power of ten.",
        )
        + &figure("Throughput over time", throughput, "Of the last round; the measurement starts after the warm-up.")
}

/// 0: none; 1: 90 %; 2: 99 % …
fn nines_label(nines: i32) -> String {
    match nines {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        more => format!("99.{} %", "9".repeat(more as usize - 2)),
    }
}

/// How many nines there can be: no point stands for less than one request.
fn nines_max(latencies: &Latencies) -> f64 {
    (latencies.count().max(1) as f64).log10().min(6.0)
}

fn quantile_points(latencies: &Latencies) -> Vec<(f64, f64)> {
    let steps = (nines_max(latencies) * f64::from(POINTS)) as u32;
    let at = |step: u32| f64::from(step) / f64::from(POINTS);
    let points =
        (0..=steps).filter_map(|step| Some((at(step), latencies.quantile(1.0 - 10f64.powf(-at(step)))? as f64)));
    points.collect()
}

fn histogram_points(latencies: &Latencies) -> Vec<(f64, f64)> {
    let all = latencies.count().max(1) as f64;
    let buckets = latencies.log_buckets(STEPS).into_iter();
    buckets.map(|(lower, upper, count)| ((lower * upper).sqrt(), 100.0 * count as f64 / all)).collect()
}

fn throughput_lines(report: &Report) -> Vec<Line> {
    let last = report.plan.rounds - 1;
    let line = |run: &Run| {
        let (step, rates) = run.total.series.rates(run.total.elapsed_ns);
        let points = rates.into_iter().enumerate().map(|(index, rate)| ((index as f64 + 0.5) * step, rate)).collect();
        Line { name: series_name(report, run.target, run.depth), points, filled: false, beside: None }
    };
    // In the order of the summaries: depth by depth, in each the targets.
    report.runs.iter().filter(|run| run.round == last).map(line).collect()
}

fn rate(value: f64) -> String {
    match value {
        ..1e3 => trim(value),
        1e3..1e6 => format!("{} k", trim(value / 1e3)),
        _ => format!("{} M", trim(value / 1e6)),
    }
}

/// A number without needless zeroes.
fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn table(headings: &[String], rows: &[Vec<String>]) -> String {
    page::table(headings, rows, |_, _| "")
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// A row for each target and depth.
fn summary_table(report: &Report) -> String {
    let compares = report.plan.targets.len() == 2;
    let mut headings = strings(&["", "IOPS, median", "least", "greatest"]);
    headings.extend(QUANTILES.map(|(_, name)| name.to_owned()));
    headings.extend(strings(&["max", "round trip, ns"]));
    if compares {
        headings.push("A/B".into());
    }
    let rows = campaign::summaries(&report.runs).into_iter().map(|summary| {
        let iops = summary.iops;
        let mut row = vec![series_name(report, summary.target, summary.depth)];
        row.extend([iops.median, iops.min, iops.max].map(|value| units::count(value.round() as u64)));
        row.extend(latency_cells(&summary.total.latencies));
        row.push(summary.round_trip_ns.map_or("-".into(), |trips| format!("{:.0} to {:.0}", trips.min, trips.max)));
        if let Some(ratio) = campaign::ratio(&report.runs, summary.depth).filter(|_| compares && summary.target == 0) {
            row.push(format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max));
        }
        row
    });
    format!("<section><h2>Results</h2>{}</section>\n", table(&headings, &rows.collect::<Vec<_>>()))
}

fn latency_cells(latencies: &Latencies) -> Vec<String> {
    let or_none = |value: Option<u64>| value.map_or_else(|| "-".into(), units::time);
    let cells = QUANTILES.map(|(share, _)| or_none(latencies.quantile(share)));
    cells.into_iter().chain([or_none(latencies.max())]).collect()
}

/// A row for each queue of each measurement.
fn run_table(report: &Report) -> String {
    let mut headings = strings(&["", "round", "queue", "IOPS", "MiB/s", "ns per I/O"]);
    headings.extend(QUANTILES.map(|(_, name)| name.to_owned()));
    headings.extend(strings(&["max", "errors", "kicks", "interrupts", "round trip, ns"]));
    let mut rows = Vec::new();
    for run in &report.runs {
        let trips = run.round_trip_ns.map_or("-".into(), |(before, after)| format!("{before:.0}, {after:.0}"));
        let mut push = |queue: String, result: &QueueResult| {
            let mut row = vec![series_name(report, run.target, run.depth), (run.round + 1).to_string(), queue];
            row.push(units::count(result.iops().round() as u64));
            row.push(format!("{:.1}", result.bytes_per_second() / f64::from(1 << 20)));
            row.push(result.ns_per_request().map_or("-".into(), |time| format!("{time:.0}")));
            row.extend(latency_cells(&result.latencies));
            row.extend([result.errors, result.counters.kicks, result.counters.interrupts].map(units::count));
            row.push(trips.clone());
            rows.push(row);
        };
        for (index, queue) in run.outcome.queues.iter().enumerate() {
            push(index.to_string(), queue);
        }
        if run.outcome.queues.len() > 1 {
            push("all".into(), &run.total);
        }
    }
    format!("<section><h2>Every measurement</h2>{}</section>\n", table(&headings, &rows))
}
