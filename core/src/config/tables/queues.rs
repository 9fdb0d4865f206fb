//! The keys of a device's queues, which all devices have.
use super::{coalesce, draft::Kind};
use crate::{
    config::{
        diagnostic::{Diagnostic, Span, Spanned},
        read::Table,
    },
    queue::QueueOptions,
};

/// The default on a bus, where the driver can choose less.
const QUEUE_SIZE_ON_BUS: u16 = 256;
/// The front end chooses the size, and QEMU's own default is 128: a device with this size offers no requests with more
/// segments than such a ring has room for.
const QUEUE_SIZE_EXPORTED: u16 = 128;
const QUEUES_MAX: u64 = 64;
const QUEUE_SIZES: std::ops::RangeInclusive<u64> = 4..=32768;

/// How the queues are set up. The place is that of their number.
pub(super) fn queues(table: &Table<'_>, kind: Kind) -> Spanned<QueueOptions> {
    let size = match kind {
        Kind::Machine => QUEUE_SIZE_ON_BUS,
        Kind::Exports => QUEUE_SIZE_EXPORTED,
    };
    let count = number(table, "queues", "queues = 1", 1, |queues| {
        let help = format!("write a number from 1 to {QUEUES_MAX}");
        (!(1..=QUEUES_MAX).contains(&queues)).then(|| (format!("a device cannot have {queues} queues"), help))
    });
    let size = number(table, "queue_size", "queue_size = 256", size.into(), |size| {
        let fits = QUEUE_SIZES.contains(&size) && size.is_power_of_two();
        let near = size.clamp(*QUEUE_SIZES.start(), *QUEUE_SIZES.end()).next_power_of_two();
        let help = format!("write a power of two from 4 to 32768, such as {near}");
        (!fits).then(|| (format!("a queue cannot have {size} entries"), help))
    });
    let latency_sample = number(table, "latency_sample", "latency_sample = 16", 16, |sample| {
        let help = "write a smaller number, or 0 for no measurement".to_owned();
        (sample > u32::MAX.into()).then(|| ("`latency_sample` is too large".to_owned(), help))
    });
    let options = QueueOptions {
        count: count.0 as usize,
        size: size.0 as u16,
        latency_sample: latency_sample.0 as u32,
        coalescing: coalesce::coalesce(table),
        in_order: table.optional::<bool>("in_order", "in_order = true").is_some_and(|value| value.value),
    };
    Spanned::new(options, count.1.unwrap_or_else(|| table.span().clone()))
}

/// A number and where it was written, or its default. `wrong` says what is wrong with it, and what to write.
fn number(
    table: &Table<'_>,
    key: &'static str,
    example: &'static str,
    default: u64,
    wrong: impl Fn(u64) -> Option<(String, String)>,
) -> (u64, Option<Span>) {
    let Some(number) = table.optional::<u64>(key, example) else { return (default, None) };
    match wrong(number.value) {
        None => (number.value, Some(number.span)),
        Some((message, help)) => {
            table.report(Diagnostic::error(message).at(&number.span, "").help(help));
            (default, None)
        }
    }
}

/// The workers that serve the queues, in turn.
pub(super) fn workers(table: &Table<'_>) -> Option<Vec<Spanned<String>>> {
    let workers = table.required::<Vec<Spanned<String>>>("workers", "workers = [\"io0\"]")?;
    if workers.value.is_empty() {
        let message = format!("{} has no worker to serve it", table.name());
        let help = "name at least one: workers = [\"io0\"]";
        table.report(Diagnostic::error(message).at(&workers.span, "").help(help));
        return None;
    }
    for (index, worker) in workers.value.iter().enumerate() {
        if let Some(first) = workers.value[..index].iter().find(|other| other.value == worker.value) {
            let message = format!("worker {} is named twice", worker.value);
            let help = "name it once: queues are dealt out to the workers in turn";
            table.report(Diagnostic::error(message).at(&worker.span, "again").at(&first.span, "first here").help(help));
        }
    }
    Some(workers.value)
}
