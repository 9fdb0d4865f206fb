//! How statistics are shown to people: rows for devices and for workers, a line for each backend.
use crate::units;
use nix::errno::Errno;
use pollux_core::stats::{BackendSnapshot, BlkStats, QueueSnapshot, Schedule, Snapshot, WorkerStats};
use std::{collections::BTreeMap, num::Saturating};

/// The quantiles that are shown, and their names in JSON.
pub(crate) const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99_9")];

/// What the queues of one device did that one worker serves. The counts of another process may be anything.
#[derive(Default)]
struct Row {
    device: String,
    worker: String,
    requests: Saturating<u64>,
    errors: Saturating<u64>,
    /// Those of them that are told apart, by their errno.
    errors_by_number: BTreeMap<u16, Saturating<u64>>,
    batches: Saturating<u64>,
    in_flight: Saturating<u64>,
    /// Read and written. `None`: it is of a kind that this program knows nothing more of.
    bytes: Option<[Saturating<u64>; 2]>,
    kicks: Saturating<u64>,
    kicks_avoided: Saturating<u64>,
    interrupts: Saturating<u64>,
    interrupts_suppressed: Saturating<u64>,
    interrupts_merged: Saturating<u64>,
    /// Number of sampled latencies by their bucket's greatest value.
    latency: BTreeMap<u64, Saturating<u64>>,
}

impl Row {
    fn add(&mut self, queue: &QueueSnapshot) {
        self.requests += queue.requests.get();
        self.errors += queue.errors.get();
        self.batches += queue.batches.get();
        self.in_flight += queue.in_flight.get();
        self.kicks += queue.kicks.get();
        self.kicks_avoided += queue.kicks_avoided();
        self.interrupts += queue.interrupts.get();
        self.interrupts_suppressed += queue.interrupts_suppressed.get();
        self.interrupts_merged += queue.interrupts_merged.get();
        if let Some(blk) = queue.blk() {
            self.add_blk(blk);
        }
    }

    fn add_blk(&mut self, blk: &BlkStats) {
        for (number, count) in blk.errors_by_number() {
            *self.errors_by_number.entry(number).or_default() += count;
        }
        let [read, written] = self.bytes.get_or_insert_default();
        *read += blk.bytes_read.get();
        *written += blk.bytes_written.get();
        for (value, count) in blk.latency.buckets().filter(|(_, count)| *count > 0) {
            *self.latency.entry(value).or_default() += count;
        }
    }

    /// The latency in nanoseconds that `share` of all requests do not exceed.
    fn quantile(&self, share: f64) -> Option<u64> {
        let total = sum(self.latency.values());
        let rank = Saturating((total.0 as f64 * share).ceil() as u64);
        let mut seen = Saturating(0);
        let reached = self.latency.iter().find(|(_, count)| {
            seen += *count;
            seen >= rank
        });
        reached.map(|(value, _)| *value)
    }

    /// A line about the requests that failed, if there are any: the most frequent reason first.
    fn failures(&self) -> Option<String> {
        let mut reasons: Vec<(u64, String)> =
            self.errors_by_number.iter().map(|(&number, &count)| (count.0, error_words(number))).collect();
        reasons.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let others = (self.errors - sum(self.errors_by_number.values())).0;
        if others > 0 {
            reasons.push((others, "for another reason".into()));
        }
        let reasons: Vec<String> =
            reasons.into_iter().map(|(count, words)| format!("{} {words}", units::count(count))).collect();
        (self.errors.0 > 0).then(|| format!("{} on {}: failed: {}\n", self.device, self.worker, reasons.join(", ")))
    }

    fn cells(&self, period: Option<f64>) -> Vec<String> {
        let count = |number: Saturating<u64>| units::count(rate(number.0, period));
        let pair = |one, other| format!("{} ({})", count(one), count(other));
        let bytes = |index: usize| match &self.bytes {
            Some(bytes) => units::bytes(rate(bytes[index].0, period)),
            None => "-".into(),
        };
        let mut cells = vec![
            self.device.clone(),
            self.worker.clone(),
            count(self.requests),
            units::count(self.errors.0),
            count(self.batches),
            bytes(0),
            bytes(1),
            pair(self.kicks, self.kicks_avoided),
            format!(
                "{} ({}/{})",
                count(self.interrupts),
                count(self.interrupts_merged),
                count(self.interrupts_suppressed)
            ),
        ];
        if period.is_some() {
            cells.push(units::count(self.in_flight.0));
        }
        cells.extend(QUANTILES.map(|(share, _)| self.quantile(share).map_or_else(|| "-".into(), units::time)));
        cells
    }
}

/// What a request has failed of: `with ENOSPC (No space left on device)`.
fn error_words(number: u16) -> String {
    match number {
        BlkStats::REFUSED => "refused by the device".into(),
        number => format!("with {} ({})", error_name(number), Errno::from_raw(number.into()).desc()),
    }
}

/// The name of an errno, or its number if it has none.
pub(crate) fn error_name(number: u16) -> String {
    match Errno::from_raw(number.into()) {
        Errno::UnknownErrno => format!("errno {number}"),
        errno => format!("{errno:?}"),
    }
}

fn sum<'c>(counts: impl Iterator<Item = &'c Saturating<u64>>) -> Saturating<u64> {
    counts.fold(Saturating(0), |sum, count| sum + count)
}

/// A number per second, if it is of a period.
fn rate(number: u64, period: Option<f64>) -> u64 {
    period.map_or(number, |seconds| (number as f64 / seconds).round() as u64)
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
    "interrupts (merged/not wanted)",
    "p50",
    "p99",
    "p99.9",
];
/// The same of a period, in which all but errors, requests in flight and latencies is per second.
const RATE_HEADINGS: [&str; 13] = [
    "device",
    "worker",
    "requests/s",
    "errors",
    "batches/s",
    "read/s",
    "written/s",
    "kicks/s (avoided)",
    "interrupts/s (merged/not wanted)",
    "in flight",
    "p50",
    "p99",
    "p99.9",
];
const WORKER_HEADINGS: [&str; 11] = [
    "worker",
    "CPU",
    "idle",
    "tasks",
    "turns",
    "busy",
    "asleep",
    "sleeps",
    "woken by kick/backend/command/deadline",
    "stolen",
    "preempted",
];

/// A table of the devices, one of the workers, and a line for each backend whose plugin counts something: as they
/// stand, or of a `period` in seconds, with rates. Empty without any. What plugins count is as it stands in any case:
/// whether a number counts up is known to the plugin alone.
pub(crate) fn tables(stats: &Snapshot, period: Option<f64>) -> String {
    let mut text = table(stats, period);
    if !stats.workers.is_empty() {
        text += if text.is_empty() { "" } else { "\n" };
        text += &workers_table(stats, period);
    }
    let backends: String = stats.backends.iter().filter_map(backend_line).collect();
    if !backends.is_empty() {
        text += if text.is_empty() { "" } else { "\n" };
        text += &backends;
    }
    text
}

/// `backend disk (uring): submissions 12, retries 0`, if there is anything.
fn backend_line(backend: &BackendSnapshot) -> Option<String> {
    let counters = backend.counters.iter().map(|counter| format!("{} {}", counter.name, units::count(counter.value)));
    let omitted = (backend.omitted > 0).then(|| format!("and {} more", units::count(backend.omitted)));
    let counters: Vec<String> = counters.chain(omitted).collect();
    let line = || format!("backend {} ({}): {}\n", backend.backend, backend.plugin, counters.join(", "));
    (!counters.is_empty()).then(line)
}

/// A row for each device and worker; empty without queues.
fn table(stats: &Snapshot, period: Option<f64>) -> String {
    let mut rows: Vec<Row> = Vec::new();
    for queue in &stats.queues {
        let (device, worker) = (queue.device(), queue.worker());
        let index = rows.iter().position(|row| row.device == device && row.worker == worker);
        let index = index.unwrap_or_else(|| {
            rows.push(Row { device, worker, ..Row::default() });
            rows.len() - 1
        });
        rows[index].add(queue);
    }
    if rows.is_empty() {
        return String::new();
    }
    let headings = if period.is_some() { &RATE_HEADINGS[..] } else { &HEADINGS };
    let mut lines = vec![headings.iter().map(|&heading| heading.to_owned()).collect()];
    lines.extend(rows.iter().map(|row| row.cells(period)));
    // The first two columns are names, the others numbers.
    align(&lines, 2) + &rows.iter().filter_map(Row::failures).collect::<String>()
}

fn workers_table(stats: &Snapshot, period: Option<f64>) -> String {
    let mut headings = WORKER_HEADINGS.map(str::to_owned).to_vec();
    if period.is_some() {
        [4, 7, 10].iter().for_each(|&column: &usize| headings[column] += "/s");
    }
    let mut lines = vec![headings];
    for (worker, schedule) in stats.workers.iter().zip(&stats.schedules) {
        lines.push(worker_cells(stats, worker, *schedule, period));
    }
    align(&lines, 3)
}

fn worker_cells(
    stats: &Snapshot,
    worker: &WorkerStats,
    schedule: Option<Schedule>,
    period: Option<f64>,
) -> Vec<String> {
    let count = |number| units::count(rate(number, period));
    let unknown = || "-".to_owned();
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let slept_ns = stats.nanoseconds(worker.slept_ticks.get());
    let asleep = match period {
        // A sleep is counted when it ends.
        Some(_) if worker.turns.get() == 0 && worker.policy.get() != 0 => percent(1.0),
        Some(seconds) => percent((slept_ns as f64 / 1e9 / seconds).min(1.0)),
        None => units::time(slept_ns),
    };
    let wakes = [&worker.wakes_by_kick, &worker.wakes_by_backend, &worker.wakes_by_command, &worker.wakes_by_deadline];
    vec![
        worker.name(),
        worker.cpu.get().checked_sub(1).map_or_else(|| "any".into(), |cpu| cpu.to_string()),
        policy(worker).into(),
        format!("{} ({} at rest)", worker.tasks.get(), worker.resting.get()),
        count(worker.turns.get()),
        worker.busy_share().map_or_else(unknown, percent),
        asleep,
        count(worker.sleeps.get()),
        wakes.map(|counter| count(counter.get())).join("/"),
        schedule.map_or_else(unknown, |schedule| match period {
            Some(seconds) => percent(schedule.stolen_ns as f64 / 1e9 / seconds),
            None => units::time(schedule.stolen_ns),
        }),
        schedule.map_or_else(unknown, |schedule| count(schedule.switches_involuntary)),
    ]
}

pub(crate) fn policy(worker: &WorkerStats) -> &'static str {
    ["spin", "adaptive", "interrupt"].get(worker.policy.get() as usize).copied().unwrap_or("?")
}

/// Columns aligned, the first `names` to the left.
fn align(lines: &[Vec<String>], names: usize) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < names {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<String>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::stats_json;
    use pollux_core::stats::{QueueIdentity, StatsSegment};

    /// The numbers stay as a process that has ended leaves them.
    pub(crate) fn segment() -> StatsSegment {
        let segment = StatsSegment::anonymous(4).expect("segment");
        segment.keep_records();
        let queues =
            [("blk0", 0, "io0", 1000), ("blk0", 1, "io1", 0), ("blk0", 2, "io0", 234_000), ("a/b 0", 0, "io0", 1)];
        for (device, index, worker, requests) in queues {
            let queue = segment.add_queue::<BlkStats>(QueueIdentity { device, index, worker }).expect("room");
            queue.requests.add(requests);
            queue.block.reads.add(requests);
            queue.block.bytes_read.add(requests * 4096);
            (0..requests / 10).for_each(|_| queue.batches.record(10));
            queue.kicks.add(requests / 1000);
            queue.interrupts.add(requests / 100);
            queue.interrupts_suppressed.add(requests / 50);
            queue.interrupts_merged.add(requests / 500);
            for index in 0..requests {
                queue.block.latency.record(0, if index % 100 < 98 { 1000 } else { 50_000 });
            }
        }
        segment
    }

    #[test]
    fn a_row_adds_up_the_queues_of_a_device_and_worker() {
        let expected = include_str!("stats_table/expected.txt");
        assert_eq!(tables(&segment().snapshot(), None), expected);
        assert_eq!(tables(&StatsSegment::anonymous(1).expect("segment").snapshot(), None), "");
    }

    #[test]
    fn counts_that_no_process_can_have_are_shown_all_the_same() {
        let segment = segment();
        for queue in segment.blk_queues() {
            let counts = [&queue.requests, &queue.errors, &queue.block.bytes_read, &queue.kicks, &queue.interrupts];
            counts.into_iter().for_each(|count| count.set(u64::MAX));
        }
        segment.workers().for_each(|worker| worker.slept_ticks.set(u64::MAX));
        let snapshot = segment.snapshot();
        let greatest = units::count(u64::MAX);
        assert!(tables(&snapshot, None).contains(&greatest), "{}", tables(&snapshot, None));
        assert!(tables(&snapshot, Some(0.1)).contains("blk0"));
        assert_eq!(stats_json::json(&snapshot, &[])["queues"][0]["errors"], u64::MAX);
    }

    #[test]
    fn failed_requests_are_told_apart_by_their_errno() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        segment.keep_records();
        for index in 0..2 {
            let queue = QueueIdentity { device: "blk0", index, worker: "io0" };
            let queue = segment.add_queue::<BlkStats>(queue).expect("room");
            queue.errors.add(5);
            [28, 28, 5, BlkStats::REFUSED].iter().for_each(|&number| queue.block.count_error(number));
        }
        let text = tables(&segment.snapshot(), None);
        let line = "blk0 on io0: failed: 4 with ENOSPC (No space left on device), 2 with EIO (I/O error), \
                    2 refused by the device, 2 for another reason";
        assert_eq!(text.lines().last(), Some(line));
        let numbers = stats_json::json(&segment.snapshot(), &[]);
        let expected = serde_json::json!({ "ENOSPC": 2, "EIO": 1, "refused": 1, "other": 1 });
        assert_eq!(numbers["queues"][1]["errors_by_errno"], expected);
    }

    #[test]
    fn a_period_is_shown_with_rates() {
        let segment = segment();
        let before = segment.snapshot();
        let queue = segment.blk_queues().next().expect("a queue");
        queue.requests.add(500);
        queue.block.bytes_read.add(500 * 4096);
        queue.in_flight.set(7);
        queue.block.latency.record(0, 2000);
        let worker = segment.add_worker("io0").expect("room");
        worker.cpu.set(4);
        worker.policy.set(1);
        worker.tasks.set(4);
        worker.turns.add(1000);
        worker.busy_ticks.add(30);
        worker.idle_ticks.add(90);
        worker.wakes_by_kick.add(6);
        let text = tables(&segment.snapshot().since(&before), Some(0.5));
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("a row");
            line.split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect::<Vec<_>>().join("|")
        };
        assert_eq!(row("device"), RATE_HEADINGS.join("|"));
        assert_eq!(row("blk0 "), "blk0|io0|1,000|0|0|3.91 MiB|0 B|0 (0)|0 (0/0)|7|2.05 µs|2.05 µs|2.05 µs");
        assert!(
            row("io0").starts_with("io0|3|adaptive|4 (0 at rest)|2,000|25.0 %|0.0 %|0|12/0/0/0|"),
            "{}",
            row("io0")
        );
    }
    #[test]
    fn what_a_plugin_counts_is_a_line_of_its_backend() {
        let segment = StatsSegment::anonymous(2).expect("segment");
        let mut backend = segment.add_backend("disk", "uring").expect("room");
        let _silent = segment.add_backend("other", "null").expect("room");
        backend.publish([("submissions", 12_000), ("retries", 0)]);
        let before = segment.snapshot();
        let text = tables(&before, None);
        assert_eq!(text, "backend disk (uring): submissions 12,000, retries 0\n");
        assert_eq!(tables(&segment.snapshot().since(&before), Some(1.0)), text, "as it stands in a period, too");
        let json = stats_json::json(&before, &[]);
        assert_eq!(json["backends"][0]["counters"]["submissions"], 12_000);
        assert_eq!(json["backends"][1]["counters"], serde_json::json!({}));
    }
}
