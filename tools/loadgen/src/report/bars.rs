//! A latency histogram made of characters.
use crate::{latency::Latencies, units};

/// Widest bar, in characters.
const WIDTH: usize = 50;
/// Steps in each power of ten: as many as fit [`LINES`].
const STEPS: [u32; 5] = [20, 10, 5, 2, 1];
/// Most lines.
const LINES: usize = 32;
/// Parts of a character, in eighths.
const EIGHTHS: [char; 8] =
    ['\u{258f}', '\u{258e}', '\u{258d}', '\u{258c}', '\u{258b}', '\u{258a}', '\u{2589}', '\u{2588}'];

/// The histogram: a logarithmic scale of time from top to bottom, bars for the share of each step, and how many
/// requests were answered by then. Empty without latencies.
pub fn histogram(latencies: &Latencies) -> String {
    let buckets = STEPS
        .iter()
        .map(|&steps| latencies.log_buckets(steps))
        .find(|buckets| buckets.len() <= LINES)
        .unwrap_or_else(|| latencies.log_buckets(1));
    let all = latencies.count() as f64;
    let most = buckets.iter().map(|bucket| bucket.2).max().unwrap_or(0);
    let mut text = String::new();
    let mut seen = 0;
    for (lower, upper, count) in buckets {
        seen += count;
        let share = percent(count as f64 / all);
        let until = cumulative(seen as f64 / all, seen == latencies.count());
        let range = format!("{:>7} to {:>7}", units::time(lower.round() as u64), units::time(upper.round() as u64));
        text += &format!("{range}  {share:>7}  {until:>9}  {}", bar(count, most));
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "-".into(),
        value if value < 0.001 => "<0.001%".into(),
        value if value < 0.1 => format!("{value:.3}%"),
        value => format!("{value:.1}%"),
    }
}

/// Never rounded up to all.
fn cumulative(share: f64, is_all: bool) -> String {
    if is_all {
        return "100%".into();
    }
    format!("{:.4}%", (share * 1e6).floor() / 1e4)
}

fn bar(count: u64, most: u64) -> String {
    if count == 0 {
        return String::new();
    }
    let eighths = ((count as f64 / most as f64) * (WIDTH * 8) as f64).round().max(1.0) as usize;
    let mut text = EIGHTHS[7].to_string().repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        text.push(EIGHTHS[eighths % 8 - 1]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_in_a_line_and_the_tail_is_seen() {
        let mut latencies = Latencies::default();
        (0..100_000).for_each(|_| latencies.record(1_000));
        latencies.record(80_000_000);
        let text = histogram(&latencies);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() <= LINES, "{text}");
        assert!(lines[0].contains("100.0%") && lines[0].contains(&"\u{2588}".repeat(WIDTH)), "{text}");
        assert!(lines[0].contains("99.9990%"), "not all yet:\n{text}");
        let last = lines[lines.len() - 1];
        assert!(last.contains("<0.001%") && last.contains("100%") && last.ends_with(EIGHTHS[0]), "{text}");
        assert_eq!(histogram(&Latencies::default()), "");
    }
}
