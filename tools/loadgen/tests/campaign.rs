//! Rounds of a real backend, and what reports make of them.
mod common;

use common::{Place, limits, options};
use pollux_loadgen::{
    FrontEndOptions, LoadLimits, Workload,
    campaign::{Plan, Run, Target},
    machine::Machine,
    report::{Report, histogram, html, json, summary, verdict},
};
use std::{path::PathBuf, time::Duration};

fn plan(sockets: Vec<PathBuf>) -> Plan {
    Plan {
        targets: sockets.into_iter().map(Target::Socket).collect(),
        depths: vec![1, 8],
        rounds: 1,
        workload: Workload { read_share: 50, ..Workload::default() },
        options: FrontEndOptions { depth: 8, queues: 2, ..options() },
        limits: limits(2000),
        verify: false,
        pair: None,
    }
}

fn report(plan: Plan) -> Report {
    let runs = plan.execute(&mut |_, _| {}).expect("a campaign");
    Report { command: "pollux bench <a> & \"b\"".into(), machine: Machine::new(), plan, runs }
}

#[test]
fn two_backends_are_measured_in_turn_and_compared() {
    let Some(place) = Place::new("two_backends_are_measured_in_turn_and_compared") else { return };
    let (first, second) = (place.null("a", "writable=on"), place.null("b", "writable=on"));
    let plan = Plan { rounds: 3, ..plan(vec![first.socket.clone(), second.socket.clone()]) };
    let mut stages = Vec::new();
    let runs = plan
        .execute(&mut |stage, _| {
            if stages.last() != Some(&stage.index) {
                stages.push(stage.index);
            }
        })
        .expect("a campaign");
    assert_eq!(stages, (0..12).collect::<Vec<_>>());
    let order: Vec<(u16, u32, usize)> = runs.iter().map(|run| (run.depth, run.round, run.target)).collect();
    let expected: Vec<(u16, u32, usize)> = [1, 8]
        .into_iter()
        .flat_map(|depth| (0..3).flat_map(move |round| (0..2).map(move |target| (depth, round, target))))
        .collect();
    assert_eq!(order, expected);
    let report = Report { command: String::new(), machine: Machine::new(), plan, runs };
    let text = summary(&report);
    for words in ["A/B", "Medians of 3 rounds", &format!("A {}", first.socket.display())] {
        assert!(text.contains(words), "{words} in:\n{text}");
    }
    let json = json(&report);
    assert_eq!(json["ratios"].as_array().map(Vec::len), Some(2));
    let ratio = &json["ratios"][0]["iops"];
    assert!(ratio["min"].as_f64() <= ratio["median"].as_f64() && ratio["median"].as_f64() <= ratio["max"].as_f64());
    assert_eq!(json["summaries"].as_array().map(Vec::len), Some(4));
}

#[test]
fn json_holds_everything_and_its_parts_add_up() {
    let Some(place) = Place::new("json_holds_everything_and_its_parts_add_up") else { return };
    let backend = place.null("s", "writable=on");
    let report = report(plan(vec![backend.socket.clone()]));
    let json = json(&report);
    assert_eq!(json["version"], 1);
    let keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
    let expected = ["command", "machine", "plan", "ratios", "runs", "summaries", "targets", "version", "workload"];
    assert_eq!(keys, expected);
    assert_eq!(json["targets"][0]["device"]["capacity"], 64 << 20);
    assert_eq!(json["workload"]["order"], "random");
    let runs = json["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2);
    for run in runs {
        let total = &run["total"];
        assert_eq!((&total["requests"], &total["errors"]), (&2000.into(), &0.into()));
        let sum = |key: &str| -> u64 {
            run["queues"].as_array().expect("queues").iter().filter_map(|queue| queue[key].as_u64()).sum()
        };
        for key in ["requests", "reads", "writes", "kicks", "interrupts"] {
            assert_eq!(Some(sum(key)), total[key].as_u64(), "{key}");
        }
        let buckets = run["histogram"].as_array().expect("a histogram");
        assert_eq!(buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum::<u64>(), 2000);
        let latency = |name: &str| total["latency_ns"][name].as_u64().expect(name);
        let ordered = ["min", "p50", "p90", "p99", "p99_9", "p99_99"].map(latency);
        assert!(ordered.is_sorted() && ordered[0] > 0, "{ordered:?}");
        assert!(run["round_trip_ns"].is_null() && run["verified"].is_null());
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let Some(place) = Place::new("the_page_needs_nothing_else") else { return };
    let backend = place.null("s", "writable=on");
    let page = html(&report(plan(vec![backend.socket.clone()])));
    for outside in ["http://", "https://", "//", "@import", "url(", "<script", "<link", "<img"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("<svg").count(), 3, "percentiles, histogram, throughput");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    for words in ["depth 1", "depth 8", "p99.99", "pollux bench &lt;a&gt; &amp; &quot;b&quot;", &Machine::new().kernel]
    {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("NaN"), "every point has a place");
}

#[test]
fn a_measurement_by_time_fills_its_time_and_the_warm_up_is_not_in_it() {
    let Some(place) = Place::new("a_measurement_by_time_fills_its_time_and_the_warm_up_is_not_in_it") else { return };
    let backend = place.null("s", "writable=on");
    let (duration, warm_up) = (Duration::from_millis(200), Duration::from_millis(100));
    let limits = LoadLimits { requests: None, duration: Some(duration), warm_up, ..limits(0) };
    let mut last = 0;
    let plan = Plan { depths: vec![8], limits, ..plan(vec![backend.socket.clone()]) };
    let runs = plan.execute(&mut |_, progress| last = progress.requests).expect("a campaign");
    let Run { total, .. } = &runs[0];
    assert_eq!(total.elapsed_ns, 200_000_000);
    assert!(total.requests > 0 && total.requests < last, "{} of {last}", total.requests);
    assert!(total.latencies.max() < Some(duration.as_nanos() as u64 + warm_up.as_nanos() as u64 + 20_000_000_000));
    let (step, rates) = total.series.rates(total.elapsed_ns);
    let sum: f64 = rates.iter().map(|rate| rate * step).sum();
    assert!((sum - total.requests as f64).abs() < 0.5, "{sum} of {}", total.requests);
    assert!(histogram(&total.latencies).lines().count() > 2);
    // With both, what comes first ends it, and the time is what it took.
    let limits = LoadLimits { requests: Some(500), duration: Some(Duration::from_secs(60)), ..LoadLimits::default() };
    let plan = Plan { limits, ..plan };
    let total = plan.execute(&mut |_, _| {}).expect("a campaign").remove(0).total;
    assert!(
        total.requests == 500 && total.elapsed_ns < 60_000_000_000,
        "{} in {} ns",
        total.requests,
        total.elapsed_ns
    );
}

#[test]
fn wrong_data_is_told_with_sector_and_generations() {
    let Some(place) = Place::new("wrong_data_is_told_with_sector_and_generations") else { return };
    // The device takes every write and keeps none.
    let backend = place.null("s", "writable=on");
    let workload = Workload { read_share: 0, size: Some(1 << 20), ..Workload::default() };
    let report = report(Plan { verify: true, depths: vec![8], workload, ..plan(vec![backend.socket.clone()]) });
    let verified = report.runs[0].verified.as_ref().expect("a check");
    // Whatever the memory of a read held before.
    assert_eq!(verified.fault_count, 8 * verified.blocks);
    let text = verdict(&report);
    assert!(text.contains(": expected generation ") && text.contains("found no record"), "{text}");
    assert!(text.contains("NOT verified: "), "{text}");
    assert!(text.contains("and ") && text.contains(" more\n"), "{text}");
}

#[test]
fn a_rate_is_kept_and_not_exceeded() {
    let Some(place) = Place::new("a_rate_is_kept_and_not_exceeded") else { return };
    let backend = place.null("s", "writable=on");
    let limits = LoadLimits { rate: Some(5000.0), ..limits(1000) };
    let plan = Plan { depths: vec![8], limits, ..plan(vec![backend.socket.clone()]) };
    let runs = plan.execute(&mut |_, _| {}).expect("a campaign");
    let total = &runs[0].total;
    assert_eq!(total.requests, 1000);
    // The last of 500 on each of two queues is due after 499 steps of 400 µs.
    assert!(total.elapsed_ns >= 199_600_000, "{} ns", total.elapsed_ns);
    assert!(total.iops() <= 5010.0, "{} per second", total.iops());
}
