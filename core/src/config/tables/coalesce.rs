//! The key `coalesce` of a device: a word, or limits for merging.
use crate::{
    config::{
        diagnostic::{Diagnostic, Spanned},
        read::{Table, with_article},
        suggest,
    },
    queue::coalescing::Coalescing,
};

const WORDS: [(&str, Coalescing); 2] = [("off", Coalescing::Off), ("adaptive", Coalescing::Adaptive)];
/// No queue has more requests than this.
const COUNT_MAX: u32 = 32768;
/// One second. Some drivers give up on a disk after a few more.
const TIME_US_MAX: u32 = 1_000_000;

/// Reads `coalesce`.
pub(super) fn coalesce(table: &Table<'_>) -> Coalescing {
    let Some(item) = table.item("coalesce", "") else { return Coalescing::default() };
    if let Some(limits) = item.table() {
        return read_limits(limits).unwrap_or_default();
    }
    let all = "write \"off\", \"adaptive\" or { count = 32, time_us = 50 }".to_owned();
    let Some(word) = item.value.as_str() else {
        let message = format!("`coalesce` must be a string or a table, not {}", with_article(item.value));
        item.refuse(message, all);
        return Coalescing::default();
    };
    if let Some((_, coalescing)) = WORDS.iter().find(|(known, _)| *known == word) {
        return *coalescing;
    }
    let near = suggest::nearest(word, WORDS.map(|(known, _)| known));
    item.refuse(
        format!("`coalesce` cannot be \"{word}\""),
        near.map_or(all, |near| format!("did you mean \"{near}\"?")),
    );
    Coalescing::default()
}

/// `{ count = 32, time_us = 50 }`
fn read_limits(table: Table<'_>) -> Option<Coalescing> {
    let count = table.required::<u64>("count", "count = 32");
    let time_us = table.required::<u64>("time_us", "time_us = 50");
    let count = count.and_then(|count| bounded(&table, &count, COUNT_MAX, "requests"));
    let time_us = time_us.and_then(|time| bounded(&table, &time, TIME_US_MAX, "µs"));
    table.finish("");
    Some(Coalescing::Limits { count: count?, time_us: time_us? })
}

/// A number from 1 to `most`, or a report.
fn bounded(table: &Table<'_>, number: &Spanned<u64>, most: u32, unit: &str) -> Option<u32> {
    let bounded = u32::try_from(number.value).ok().filter(|number| (1..=most).contains(number));
    if bounded.is_none() {
        let message = format!("an interrupt cannot be held for {} {unit}", number.value);
        let help = format!("write a number from 1 to {most}, or coalesce = \"off\"");
        table.report(Diagnostic::error(message).at(&number.span, "").help(help));
    }
    bounded
}
