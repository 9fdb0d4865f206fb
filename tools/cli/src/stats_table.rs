//! How statistics are shown: a row for each device and worker, or a JSON record for each queue.
use crate::units;
use pollux_core::stats::{QueueStats, StatsSegment};
use pollux_vmm::ExitCounts;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The quantiles that are shown, and their names in JSON.
const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99_9")];

/// What the queues of one device did that one worker serves.
#[derive(Default)]
struct Row {
    device: String,
    worker: String,
    requests: u64,
    errors: u64,
    batches: u64,
    bytes_read: u64,
    bytes_written: u64,
    kicks: u64,
    kicks_avoided: u64,
    interrupts: u64,
    interrupts_suppressed: u64,
    /// Number of sampled latencies by their bucket's greatest value.
    latency: BTreeMap<u64, u64>,
}

impl Row {
    fn add(&mut self, queue: &QueueStats) {
        self.requests += queue.requests();
        self.errors += queue.errors.get();
        self.batches += queue.batches.get();
        self.bytes_read += queue.bytes_read.get();
        self.bytes_written += queue.bytes_written.get();
        self.kicks += queue.kicks.get();
        self.kicks_avoided += queue.kicks_avoided();
        self.interrupts += queue.interrupts.get();
        self.interrupts_suppressed += queue.interrupts_suppressed.get();
        for (value, count) in queue.latency.buckets().filter(|(_, count)| *count > 0) {
            *self.latency.entry(value).or_default() += count;
        }
    }

    /// The latency in nanoseconds that `share` of all requests do not exceed.
    fn quantile(&self, share: f64) -> Option<u64> {
        let total: u64 = self.latency.values().sum();
        let rank = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let reached = self.latency.iter().find(|(_, count)| {
            seen += **count;
            seen >= rank
        });
        reached.map(|(value, _)| *value)
    }

    fn cells(&self) -> Vec<String> {
        let pair = |one, other| format!("{} ({})", units::count(one), units::count(other));
        let mut cells = vec![
            self.device.clone(),
            self.worker.clone(),
            units::count(self.requests),
            units::count(self.errors),
            units::count(self.batches),
            units::bytes(self.bytes_read),
            units::bytes(self.bytes_written),
            pair(self.kicks, self.kicks_avoided),
            pair(self.interrupts, self.interrupts_suppressed),
        ];
        cells.extend(QUANTILES.map(|(share, _)| self.quantile(share).map_or_else(|| "-".into(), units::time)));
        cells
    }
}

const HEADINGS: [&str; 12] = [
    "device",
    "worker",
    "requests",
    "errors",
    "batches",
    "read",
    "written",
    "kicks (avoided)",
    "interrupts (avoided)",
    "p50",
    "p99",
    "p99.9",
];
/// The first columns are names, the others numbers.
const NAME_COLUMNS: usize = 2;

/// The table, a row for each device and worker; empty without queues.
pub(crate) fn table(stats: &StatsSegment) -> String {
    let mut rows: Vec<Row> = Vec::new();
    for queue in stats.records() {
        let name = queue.name();
        let (device, _, worker) = parts(&name);
        let index = rows.iter().position(|row| row.device == device && row.worker == worker).unwrap_or_else(|| {
            rows.push(Row { device: device.into(), worker: worker.into(), ..Row::default() });
            rows.len() - 1
        });
        rows[index].add(&queue);
    }
    if rows.is_empty() {
        return String::new();
    }
    let mut lines = vec![HEADINGS.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            ..NAME_COLUMNS => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<String>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The device, queue index and worker in a record's name, such as `blk0/1 io0`.
fn parts(name: &str) -> (&str, usize, &str) {
    let (queue, worker) = name.split_once(' ').unwrap_or((name, ""));
    let (device, index) = queue.rsplit_once('/').unwrap_or((queue, "0"));
    (device, index.parse().unwrap_or(0), worker)
}

/// `{"queues": […], "vcpus": […]}`: latencies are in nanoseconds, of sampled requests; exits are those to this process.
pub(crate) fn json(stats: &StatsSegment, exits: &[ExitCounts]) -> Value {
    let queues: Vec<Value> = stats.records().map(|queue| queue_json(&queue)).collect();
    let vcpus: Vec<Value> = exits.iter().map(|counts| json!({ "exits": counts.total() })).collect();
    json!({ "queues": queues, "vcpus": vcpus })
}

fn queue_json(queue: &QueueStats) -> Value {
    let name = queue.name();
    let (device, index, worker) = parts(&name);
    let mut latency = json!({ "samples": queue.latency.count() });
    for (share, key) in QUANTILES {
        latency[key] = queue.latency.quantile(share).into();
    }
    json!({
        "device": device,
        "queue": index,
        "worker": worker,
        "requests": queue.requests(),
        "reads": queue.reads.get(),
        "writes": queue.writes.get(),
        "flushes": queue.flushes.get(),
        "others": queue.others.get(),
        "errors": queue.errors.get(),
        "bytes_read": queue.bytes_read.get(),
        "bytes_written": queue.bytes_written.get(),
        "batches": queue.batches.get(),
        "kicks": queue.kicks.get(),
        "kicks_avoided": queue.kicks_avoided(),
        "interrupts": queue.interrupts.get(),
        "interrupts_suppressed": queue.interrupts_suppressed.get(),
        "latency_ns": latency,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> StatsSegment {
        let segment = StatsSegment::anonymous(4).expect("segment");
        for (name, requests) in [("blk0/0 io0", 1000), ("blk0/1 io1", 0), ("blk0/2 io0", 234_000), ("a/b/0 io0", 1)] {
            let queue = segment.add(name).expect("room");
            queue.reads.add(requests);
            queue.bytes_read.add(requests * 4096);
            queue.batches.add(requests / 10);
            queue.kicks.add(requests / 1000);
            queue.interrupts.add(requests / 100);
            queue.interrupts_suppressed.add(requests / 50);
            for index in 0..requests {
                queue.latency.record(if index % 100 < 98 { 1000 } else { 50_000 });
            }
        }
        segment
    }

    #[test]
    fn a_row_adds_up_the_queues_of_a_device_and_worker() {
        let expected = "\
device  worker  requests  errors  batches      read  written  kicks (avoided)  interrupts (avoided)      p50      p99    p99.9
blk0    io0      235,000       0   23,500   918 MiB      0 B     235 (23,265)         2,350 (4,700)  1.02 µs  53.2 µs  53.2 µs
blk0    io1            0       0        0       0 B      0 B            0 (0)                 0 (0)        -        -        -
a/b     io0            1       0        0  4.00 KiB      0 B            0 (0)                 0 (0)  1.02 µs  1.02 µs  1.02 µs
";
        assert_eq!(table(&segment()), expected);
        assert_eq!(table(&StatsSegment::anonymous(1).expect("segment")), "");
    }

    #[test]
    fn json_has_a_record_a_queue() {
        let json = json(&segment(), &[ExitCounts::default()]);
        assert_eq!(json["queues"].as_array().map(Vec::len), Some(4));
        let queue = &json["queues"][2];
        assert_eq!((&queue["device"], &queue["queue"], &queue["worker"]), (&"blk0".into(), &2.into(), &"io0".into()));
        assert_eq!((&queue["requests"], &queue["kicks_avoided"]), (&234_000.into(), &23_166.into()));
        assert_eq!(queue["latency_ns"]["p50"], 1023);
        assert_eq!(json["queues"][1]["latency_ns"]["p50"], Value::Null);
        assert_eq!(json["vcpus"][0]["exits"], 0);
    }
}
