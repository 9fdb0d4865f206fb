//! How statistics are shown to programs: JSON records for queues, workers and backends.
use crate::stats_table::{QUANTILES, error_name, policy};
use pollux_core::stats::{
    BackendSnapshot, BlkStats, KindSnapshot, QueueSnapshot, QueueStats, Schedule, Snapshot, WorkerStats,
};
use pollux_vmm::ExitCounts;
use serde_json::{Map, Value, json};

/// `{"queues": […], "workers": […], "backends": […], "vcpus": […]}`: latencies are in nanoseconds, of sampled requests;
/// exits are those to this process.
pub(crate) fn json(stats: &Snapshot, exits: &[ExitCounts]) -> Value {
    let vcpus: Vec<Value> = exits.iter().map(|counts| json!({ "exits": counts.total() })).collect();
    let backends: Vec<Value> = stats.backends.iter().map(backend_json).collect();
    json!({ "queues": queues_json(stats), "workers": workers_json(stats), "backends": backends, "vcpus": vcpus })
}

pub(crate) fn queues_json(stats: &Snapshot) -> Vec<Value> {
    stats.queues.iter().map(queue_json).collect()
}

pub(crate) fn workers_json(stats: &Snapshot) -> Vec<Value> {
    let workers = stats.workers.iter().zip(&stats.schedules);
    workers.map(|(worker, schedule)| worker_json(stats, worker, *schedule)).collect()
}

fn worker_json(stats: &Snapshot, worker: &WorkerStats, schedule: Option<Schedule>) -> Value {
    json!({
        "worker": worker.name(),
        "thread": worker.thread.get(),
        "cpu": worker.cpu.get().checked_sub(1),
        "idle": policy(worker),
        "ended": worker.ended.get() != 0,
        "tasks": worker.tasks.get(),
        "tasks_resting": worker.resting.get(),
        "turns": worker.turns.get(),
        "turns_empty": worker.empty_turns.get(),
        "busy_share": worker.busy_share(),
        "sleeps": worker.sleeps.get(),
        "sleeps_refused": worker.sleeps_refused.get(),
        "slept_ns": stats.nanoseconds(worker.slept_ticks.get()),
        "wakes_by_kick": worker.wakes_by_kick.get(),
        "wakes_by_backend": worker.wakes_by_backend.get(),
        "wakes_by_command": worker.wakes_by_command.get(),
        "wakes_by_deadline": worker.wakes_by_deadline.get(),
        "commands": worker.commands.get(),
        "spin_ns": stats.nanoseconds(worker.spin_ticks.get()),
        "run_ns": schedule.map(|schedule| schedule.run_ns),
        "stolen_ns": schedule.map(|schedule| schedule.stolen_ns),
        "switches_voluntary": schedule.map(|schedule| schedule.switches_voluntary),
        "switches_involuntary": schedule.map(|schedule| schedule.switches_involuntary),
    })
}

fn queue_json(queue: &QueueSnapshot) -> Value {
    let sizes = queue.batches.sizes();
    let sizes: Vec<Value> = sizes.map(|(size, batches)| json!({ "up_to": size, "batches": batches })).collect();
    let mut value = json!({
        "device": queue.device(),
        "queue": queue.index(),
        "worker": queue.worker(),
        "requests": queue.requests.get(),
        "errors": queue.errors.get(),
        "in_flight": queue.in_flight.get(),
        "batches": queue.batches.get(),
        "batch_sizes": sizes,
        "kicks": queue.kicks.get(),
        "kicks_avoided": queue.kicks_avoided(),
        "interrupts": queue.interrupts.get(),
        "interrupts_suppressed": queue.interrupts_suppressed.get(),
        "interrupts_merged": queue.interrupts_merged.get(),
    });
    match &queue.kind {
        KindSnapshot::Blk(blk) => add_blk(&mut value, queue, blk),
        KindSnapshot::Unknown(device_id) => value["kind"] = (*device_id).into(),
    }
    value
}

/// Adds what the queues of block devices count besides.
fn add_blk(value: &mut Value, queue: &QueueStats, blk: &BlkStats) {
    let mut latency = json!({ "samples": blk.latency.count() });
    for (share, key) in QUANTILES {
        latency[key] = blk.latency.quantile(share).into();
    }
    for (histogram, operation) in blk.latency.operations().iter().zip(["read", "write", "flush", "other"]) {
        latency[operation] = json!({ "samples": histogram.count() });
        for (share, key) in QUANTILES {
            latency[operation][key] = histogram.quantile(share).into();
        }
    }
    value["kind"] = "blk".into();
    value["reads"] = blk.reads.get().into();
    value["writes"] = blk.writes.get().into();
    value["flushes"] = blk.flushes.get().into();
    value["others"] = blk.others(queue).into();
    value["bytes_read"] = blk.bytes_read.get().into();
    value["bytes_written"] = blk.bytes_written.get().into();
    value["errors_by_errno"] = errors_json(queue, blk);
    value["latency_ns"] = latency;
}

/// A plugin's own counters, under its own names.
fn backend_json(backend: &BackendSnapshot) -> Value {
    let counters: Map<String, Value> =
        backend.counters.iter().map(|counter| (counter.name.clone(), counter.value.into())).collect();
    json!({
        "backend": backend.backend,
        "plugin": backend.plugin,
        "counters": counters,
        "counters_omitted": backend.omitted,
        "written_at": backend.written.map(|time| time.as_secs_f64()),
    })
}

/// `{"ENOSPC": 17, "refused": 2, "other": 1}`
fn errors_json(queue: &QueueStats, blk: &BlkStats) -> Value {
    let mut object = Map::new();
    let mut others = queue.errors.get();
    for (number, count) in blk.errors_by_number() {
        let name = if number == BlkStats::REFUSED { "refused".into() } else { error_name(number) };
        object.insert(name, count.into());
        others = others.saturating_sub(count);
    }
    if others > 0 {
        object.insert("other".into(), others.into());
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats_table::tests::segment;

    #[test]
    fn json_has_a_record_a_queue() {
        let json = json(&segment().snapshot(), &[ExitCounts::default()]);
        assert_eq!(json["queues"].as_array().map(Vec::len), Some(4));
        let queue = &json["queues"][2];
        assert_eq!((&queue["device"], &queue["queue"], &queue["worker"]), (&"blk0".into(), &2.into(), &"io0".into()));
        assert_eq!((&queue["requests"], &queue["kicks_avoided"]), (&234_000.into(), &23_166.into()));
        assert_eq!((&queue["kind"], &queue["reads"]), (&"blk".into(), &234_000.into()));
        assert_eq!(queue["latency_ns"]["p50"], 1023);
        assert_eq!(json["queues"][1]["latency_ns"]["p50"], Value::Null);
        assert_eq!(json["vcpus"][0]["exits"], 0);
    }
}
