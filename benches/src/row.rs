//! A row of the table of targets: what was measured, against what, what was aimed at, and whether that was reached.
use pollux_loadgen::campaign::Spread;
use serde::Serialize;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Requests per second.
    PerSecond,
    /// Nanoseconds.
    Nanoseconds,
    /// Nothing: one value divided by another.
    Ratio,
}

impl Unit {
    /// A value as text, without its unit: requests in thousands.
    fn digits(self, value: f64) -> String {
        let value = if self == Unit::PerSecond { value / 1e3 } else { value };
        match value.abs() {
            _ if self == Unit::Ratio => format!("{value:.2}"),
            100.0.. => format!("{value:.0}"),
            10.0..100.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::PerSecond => " k/s",
            Unit::Nanoseconds => " ns",
            Unit::Ratio => "",
        }
    }
}

/// Some measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured; empty where the row says it.
    pub name: String,
    /// What it counts.
    pub unit: Unit,
    /// Median, least and greatest.
    #[serde(flatten)]
    pub spread: Spread,
}

impl Figure {
    /// Of these measurements.
    pub fn new(name: impl Into<String>, unit: Unit, spread: Spread) -> Self {
        Figure { name: name.into(), unit, spread }
    }

    /// Median, unit, least and greatest: `831 k/s (819 to 1015)`.
    pub fn text(&self) -> String {
        let [median, min, max] =
            [self.spread.median, self.spread.min, self.spread.max].map(|value| self.unit.digits(value));
        format!("{median}{} ({min} to {max})", self.unit.name())
    }
}

/// What a result should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Goal {
    /// The value at which it is just reached.
    pub fn value(self) -> f64 {
        let (Goal::AtLeast(value) | Goal::AtMost(value)) = self;
        value
    }

    /// By what share of the goal `value` misses it; `None`: it is reached.
    pub fn missed_by(self, value: f64) -> Option<f64> {
        let reached = match self {
            Goal::AtLeast(goal) => value >= goal,
            Goal::AtMost(goal) => value <= goal,
        };
        // What is no number has reached nothing.
        (!reached).then(|| (value - self.value()).abs() / self.value())
    }
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The work.
    pub work: String,
    /// Requests in flight, where the work has any.
    pub depth: Option<u16>,
    /// The kind of what it is compared with, the same at all depths; empty where there is one depth only.
    pub against: &'static str,
    /// Ours.
    pub ours: Figure,
    /// What it is compared with.
    pub other: Figure,
    /// What comes of it: the ratio of each round, or a value that stands for itself.
    pub result: Figure,
    /// What its median should be.
    pub goal: Option<Goal>,
    /// Round trip of a cache line meanwhile, in nanoseconds, where two CPUs took part.
    pub round_trip_ns: Option<Spread>,
}

impl Row {
    /// Whether the median of the result reaches the goal. `None`: there is no goal.
    pub fn is_reached(&self) -> Option<bool> {
        self.goal.map(|goal| goal.missed_by(self.result.spread.median).is_none())
    }

    fn goal_text(&self) -> String {
        let Some(goal) = self.goal else { return String::new() };
        let bound = if matches!(goal, Goal::AtLeast(_)) { "at least" } else { "at most" };
        format!("{bound} {}{}", goal.value(), self.result.unit.name())
    }

    fn verdict(&self) -> String {
        match self.goal.map(|goal| goal.missed_by(self.result.spread.median)) {
            None => String::new(),
            Some(None) => "reached".into(),
            Some(Some(share)) if share >= 0.1 => format!("missed by {:.0} %", 100.0 * share),
            // Never 0: it is missed.
            Some(Some(share)) => format!("missed by {:.1} %", (100.0 * share).max(0.1)),
        }
    }

    /// The cells of the row, in the order of [`HEADINGS`].
    pub fn cells(&self) -> Vec<String> {
        let trip = self.round_trip_ns.map(|spread| Figure::new("", Unit::Nanoseconds, spread).text());
        vec![
            self.work.clone(),
            self.depth.map_or_else(String::new, |depth| depth.to_string()),
            self.ours.name.clone(),
            self.ours.text(),
            self.other.name.clone(),
            self.other.text(),
            self.result.text(),
            self.goal_text(),
            self.verdict(),
            trip.unwrap_or_default(),
        ]
    }
}

/// What the columns are.
pub const HEADINGS: [&str; 10] =
    ["work", "depth", "ours", "", "against", "", "result", "target", "", "core to core and back"];
/// The column that says whether a target is reached.
pub const VERDICT: usize = 8;

/// The headings as cells.
pub fn headings() -> Vec<String> {
    HEADINGS.map(str::to_owned).into()
}

/// The rows for a terminal.
pub fn text(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = [headings()].into_iter().chain(rows.iter().map(Row::cells)).collect();
    pollux_loadgen::report::align(&cells, HEADINGS.len())
}

/// The rows as a table in Markdown. A work is named in its first row.
pub fn markdown(rows: &[Row]) -> String {
    let line = |cells: Vec<String>| {
        let cells = cells.into_iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>();
        // No spaces where a cell is empty, as the other tables of docs/figures.md have it.
        cells.iter().fold("|".to_owned(), |text, cell| match cell.as_str() {
            "" => text + " |",
            cell => text + &format!(" {cell} |"),
        }) + "\n"
    };
    let mut text = line(headings());
    text += &format!("{}\n", "|---".repeat(HEADINGS.len()) + "|");
    let mut before = (None, None);
    for row in rows {
        let mut cells = row.cells();
        let names = (Some((&row.work, &row.ours.name)), Some(&row.other.name));
        if before.0 == names.0 {
            cells[0].clear();
            cells[2].clear();
        }
        if before == names {
            cells[4].clear();
        }
        before = names;
        text += &line(cells);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64) -> Spread {
        Spread { median, min: median / 2.0, max: median * 2.0 }
    }

    fn row(ratio: f64, goal: Option<Goal>) -> Row {
        Row {
            work: "null".into(),
            depth: Some(8),
            against: "a|b",
            ours: Figure::new("Pollux", Unit::PerSecond, spread(831_000.0)),
            other: Figure::new("a|b", Unit::PerSecond, spread(50_000.0)),
            result: Figure::new("", Unit::Ratio, spread(ratio)),
            goal,
            round_trip_ns: Some(spread(65.0)),
        }
    }

    #[test]
    fn a_goal_is_reached_at_its_value_and_missed_beyond_it() {
        let cases = [
            (Goal::AtLeast(6.0), 6.0, "reached"),
            (Goal::AtLeast(6.0), 5.999, "missed by 0.1 %"),
            (Goal::AtLeast(6.0), 3.0, "missed by 50 %"),
            (Goal::AtLeast(6.0), 17.0, "reached"),
            (Goal::AtMost(1.3), 1.3, "reached"),
            (Goal::AtMost(1.3), 1.365, "missed by 5.0 %"),
            (Goal::AtMost(2.0), -0.3, "reached"),
        ];
        for (goal, value, verdict) in cases {
            let row = row(value, Some(goal));
            assert_eq!(row.verdict(), verdict, "{goal:?}, {value}");
            assert_eq!(row.is_reached(), Some(verdict == "reached"));
        }
        assert_eq!(row(f64::NAN, Some(Goal::AtMost(1.0))).is_reached(), Some(false));
        assert_eq!((row(1.0, None).is_reached(), row(1.0, None).verdict()), (None, String::new()));
    }

    #[test]
    fn a_row_says_median_least_and_greatest() {
        let cells = row(16.6, Some(Goal::AtLeast(6.0))).cells();
        assert_eq!(cells.len(), HEADINGS.len());
        assert_eq!(cells[3], "831 k/s (416 to 1662)");
        assert_eq!(cells[5..8], ["50.0 k/s (25.0 to 100)", "16.60 (8.30 to 33.20)", "at least 6"]);
        assert_eq!(cells[9], "65.0 ns (32.5 to 130)");
        assert_eq!(cells[VERDICT], "reached");
    }

    #[test]
    fn markdown_names_what_is_new_and_keeps_its_columns() {
        let rows = [row(1.0, None), row(2.0, None)];
        let text = markdown(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[2].starts_with("| null | 8 | Pollux | 831 k/s"), "{text}");
        assert!(lines[3].starts_with("| | 8 | | 831 k/s"), "{text}");
        for line in lines {
            assert_eq!(line.replace("\\|", "").matches('|').count(), HEADINGS.len() + 1, "{line}");
        }
    }
}
