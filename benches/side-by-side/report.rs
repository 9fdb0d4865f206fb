//! The results as JSON and as a page.
use super::{
    arguments::Arguments,
    turns::{Cpus, Measured},
    work::{Against, DEPTHS},
};
use pollux_benches::row::{self, Row, VERDICT};
use pollux_loadgen::{
    machine::Machine,
    report::{
        page,
        plot::{Axis, Line, Scale, plot},
    },
};
use serde_json::{Value, json};

/// Version of the JSON's schema.
const VERSION: u32 = 1;

/// All that was measured.
pub(crate) struct Report<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) machine: Machine,
    pub(crate) cpus: Cpus,
    /// What their server says it is.
    pub(crate) qemu: Option<String>,
    pub(crate) works: Vec<Measured>,
    pub(crate) rows: Vec<Row>,
}

impl Report<'_> {
    /// Where and how it was measured, in a few lines.
    pub(crate) fn about(&self) -> String {
        let Arguments { rounds, duration, .. } = self.arguments;
        format!(
            "{}\n{}\nservers on CPU {}, driver on CPU {}; 4 KiB random reads, 1 queue; {rounds} rounds of {} ms in \
             turn\n\
             median (least to greatest); k/s: thousand requests a second; result: the ratio of each round",
            self.machine.line(),
            self.qemu.as_deref().unwrap_or("without qemu-storage-daemon"),
            self.cpus.server,
            self.cpus.driver,
            duration.as_millis()
        )
    }

    /// How many targets there are, and which are missed.
    pub(crate) fn verdict(&self) -> String {
        let judged: Vec<bool> = self.rows.iter().filter_map(Row::is_reached).collect();
        let reached = judged.iter().filter(|&&reached| reached).count();
        format!("{reached} of {} targets reached", judged.len())
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let mut value = json!(row);
            value["reached"] = json!(row.is_reached());
            value
        });
        json!({
            "version": VERSION,
            "machine": self.machine,
            "server_cpu": self.cpus.server,
            "driver_cpu": self.cpus.driver,
            "qemu": self.qemu,
            "rounds": self.arguments.rounds,
            "duration_ms": self.arguments.duration.as_millis() as u64,
            "rows": rows.collect::<Vec<Value>>(),
            "works": self.works.iter().map(work).collect::<Vec<Value>>(),
        })
    }

    pub(crate) fn html(&self) -> String {
        let cells: Vec<Vec<String>> = self.rows.iter().map(Row::cells).collect();
        let class = |row: usize, column: usize| match self.rows[row].is_reached() {
            Some(true) if column == VERDICT => "good",
            Some(false) if column == VERDICT => "bad",
            _ => "",
        };
        let mut body = format!("<pre>{}</pre>\n<p>{}</p>\n", page::escape(&self.about()), self.verdict());
        body += &format!(
            "<section class=\"wrap\"><h2>Targets</h2>{}</section>\n",
            page::table(&row::headings(), &cells, class)
        );
        let note = "The broken line of the same colour is the target.";
        body += &self.figure("Against qemu-storage-daemon, the best of its settings", note, &[Against::Qemu]);
        let others = [Against::Ideal, Against::OwnSplitRing];
        body += &self.figure("Against the ideal device, and packed rings against our own split ring", note, &others);
        page::page("Pollux: speed targets", &body)
    }

    /// A plot of the ratios of these comparisons; empty, if there are none.
    fn figure(&self, title: &str, note: &str, kinds: &[Against]) -> String {
        let (mut names, mut lines, mut goals) = (Vec::new(), Vec::new(), Vec::new());
        for measured in &self.works {
            for kind in kinds {
                let (work, against) = (measured.work.name(), kind.name());
                let rows: Vec<&Row> =
                    self.rows.iter().filter(|row| row.work == work && row.against == against).collect();
                if rows.is_empty() {
                    continue;
                }
                let name = if kinds.len() == 1 { work.to_owned() } else { format!("{work} / {against}") };
                let points = |value: &dyn Fn(&Row) -> Option<f64>| -> Vec<(f64, f64)> {
                    rows.iter().filter_map(|row| Some((f64::from(row.depth?), value(row)?))).collect()
                };
                let beside = Some(lines.len());
                let goal = points(&|row| row.goal.map(|goal| goal.value()));
                goals.push(Line { name: format!("{name}: target"), points: goal, filled: false, beside });
                let ratio = points(&|row| Some(row.result.spread.median));
                lines.push(Line { name: name.clone(), points: ratio, filled: false, beside: None });
                names.push(name);
            }
        }
        if names.is_empty() {
            return String::new();
        }
        // Targets below, so that their colours are known by the index of the line that they go with.
        lines.extend(goals);
        let marks = DEPTHS.map(|depth| (f64::from(depth), depth.to_string())).into();
        let depth = Axis { title: "depth", scale: Scale::Log, marks, label: |value| value.to_string() };
        let label = |value: f64| format!("{}", (value * 100.0).round() / 100.0);
        let ratio = Axis { title: "ratio", scale: Scale::Log, marks: Vec::new(), label };
        page::figure(title, &names, &plot(&depth, &ratio, &lines), note)
    }
}

fn work(measured: &Measured) -> Value {
    let samples = measured.samples.iter().map(|sample| {
        json!({
            "side": measured.sides[sample.side].name(),
            "depth": sample.depth,
            "round": sample.round,
            "requests_per_second": sample.rate,
            "round_trip_ns": sample.round_trip_ns,
        })
    });
    json!({ "work": measured.work.name(), "samples": samples.collect::<Vec<Value>>() })
}
