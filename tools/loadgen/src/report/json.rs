//! The report for machines. Its schema is frozen by a number; a field may be added, none changes.
use super::content::{Report, status_name};
use crate::{
    campaign::{self, Run, Target},
    frontend::Indirect,
    latency::{Latencies, QUANTILES},
    load::{LoadLimits, QueueResult},
};
use pollux_core::ring::RingKind;
use serde_json::{Map, Value, json};

/// Version of the schema.
const VERSION: u32 = 1;
/// Steps of histograms in each power of ten.
const STEPS: u32 = 20;

/// Everything that was measured. Times are in the units that their names end with.
pub fn json(report: &Report) -> Value {
    let mut ratios = Vec::new();
    for &depth in report.plan.depths.iter().filter(|_| report.plan.targets.len() == 2) {
        ratios.extend(campaign::ratio(&report.runs, depth).map(|ratio| json!({ "depth": depth, "iops": ratio })));
    }
    let summaries = campaign::summaries(&report.runs).into_iter().map(|summary| {
        json!({
            "target": summary.target,
            "depth": summary.depth,
            "iops": summary.iops,
            "latency_ns": latency(&summary.total.latencies),
            "round_trip_ns": summary.round_trip_ns,
        })
    });
    json!({
        "version": VERSION,
        "command": report.command,
        "machine": report.machine,
        "targets": targets(report),
        "workload": report.plan.workload,
        "plan": plan(report),
        "runs": report.runs.iter().map(run).collect::<Vec<Value>>(),
        "summaries": summaries.collect::<Vec<Value>>(),
        "ratios": ratios,
    })
}

fn targets(report: &Report) -> Vec<Value> {
    let targets = report.plan.targets.iter().enumerate().map(|(index, target)| {
        let (kind, path, name) = match target {
            Target::Socket(path) => ("socket", path.display().to_string(), None),
            Target::Device { configuration, name, .. } => ("config", configuration.display().to_string(), Some(name)),
            Target::Ideal(_) => ("ideal", target.to_string(), None),
        };
        let run = report.runs.iter().find(|run| run.target == index);
        json!({ "path": path, "kind": kind, "name": name, "device": run.map(|run| run.facts),
                "queue_size": run.map(|run| run.queue_size) })
    });
    targets.collect()
}

fn plan(report: &Report) -> Value {
    let plan = &report.plan;
    let LoadLimits { warm_up, duration, requests, rate, batch, interrupts, cpus, .. } = &plan.limits;
    let ring = match plan.options.ring {
        RingKind::Split => "split",
        RingKind::Packed => "packed",
    };
    let indirect = match plan.options.indirect {
        Indirect::Auto => "auto",
        Indirect::Always => "always",
        Indirect::Never => "never",
    };
    json!({
        "depths": plan.depths,
        "rounds": plan.rounds,
        "queues": plan.options.queues,
        "warm_up_s": warm_up.as_secs_f64(),
        "duration_s": duration.map(|duration| duration.as_secs_f64()),
        "requests": requests,
        "rate": rate,
        "batch": batch,
        "interrupts": interrupts,
        "ring": ring,
        "in_order": plan.options.in_order,
        "indirect": indirect,
        "event_idx": plan.options.event_idx,
        "hugepages": plan.options.hugepages,
        "cpus": cpus,
        "round_trip_cpus": plan.pair.map(|(first, second)| [first, second]),
        "verify": plan.verify,
    })
}

fn run(run: &Run) -> Value {
    let trips = run.round_trip_ns.map(|(before, after)| json!({ "before": before, "after": after }));
    let verified = run.verified.as_ref().map(
        |verified| json!({ "blocks": verified.blocks, "fault_count": verified.fault_count, "faults": verified.faults }),
    );
    let buckets = run.total.latencies.log_buckets(STEPS).into_iter();
    let buckets = buckets.map(|(lower, upper, count)| json!({ "from_ns": lower, "to_ns": upper, "count": count }));
    let (step, rates) = run.total.series.rates(run.total.elapsed_ns);
    json!({
        "target": run.target,
        "depth": run.depth,
        "round": run.round,
        "total": result(&run.total),
        "queues": run.outcome.queues.iter().map(result).collect::<Vec<Value>>(),
        "histogram": buckets.collect::<Vec<Value>>(),
        "throughput": { "step_s": step, "iops": rates },
        "round_trip_ns": trips,
        "verified": verified,
    })
}

fn result(result: &QueueResult) -> Value {
    let errors = result.errors_by_status.iter().map(|(&status, count)| (status_name(status), json!(count)));
    json!({
        "iops": result.iops(),
        "bytes_per_second": result.bytes_per_second(),
        "ns_per_request": result.ns_per_request(),
        "elapsed_ns": result.elapsed_ns,
        "requests": result.requests,
        "reads": result.reads,
        "writes": result.writes,
        "flushes": result.flushes,
        "errors": result.errors,
        "errors_by_status": errors.collect::<Map<String, Value>>(),
        "kicks": result.counters.kicks,
        "interrupts": result.counters.interrupts,
        "sleeps": result.counters.sleeps,
        "latency_ns": latency(&result.latencies),
    })
}

fn latency(latencies: &Latencies) -> Value {
    let mut object = Map::new();
    object.insert("min".into(), json!(latencies.min()));
    object.insert("mean".into(), json!(latencies.mean()));
    for (share, name) in QUANTILES {
        object.insert(name.replace('.', "_"), json!(latencies.quantile(share)));
    }
    object.insert("max".into(), json!(latencies.max()));
    object.into()
}
