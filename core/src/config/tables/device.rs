//! `[device.NAME]`
use super::{Kind, TRANSPORT, VHOST_USER, coalesce, socket};
use crate::config::{
    Blk, Context, Device, DeviceKind, Transport,
    diagnostic::{Diagnostic, Span, Spanned},
    read::Table,
};
use crate::transport::vhost_user::socket::SocketSpec;

/// Reads `[device.NAME]`.
pub(super) fn device(name: Spanned<String>, table: Table<'_>, kind: Kind, context: &Context<'_>) -> Option<Device> {
    let Some(device_type) = table.required::<String>("type", "type = \"blk\"") else {
        table.give_up();
        return None;
    };
    if device_type.value != "blk" {
        // Which keys it has depends on the type: no further word about them.
        let message = format!("there is no device type \"{}\"", device_type.value);
        table.report(Diagnostic::error(message).at(&device_type.span, "").help("write \"blk\""));
        return None;
    }
    let transport = match kind {
        Kind::Machine => Some(bus(&table)),
        Kind::Exports => export(&table, context).map(Transport::VhostUser),
    };
    let queue_size = match kind {
        Kind::Machine => QUEUE_SIZE_ON_BUS,
        Kind::Exports => QUEUE_SIZE_EXPORTED,
    };
    let blk = blk(&table, queue_size).map(DeviceKind::Blk);
    table.finish("");
    Some(Device { name, transport: transport?, kind: blk? })
}

/// `transport` of a device of the machine's own.
fn bus(table: &Table<'_>) -> Transport {
    let socket = table.item("socket", "");
    let reserved = table.item(TRANSPORT, "").filter(|item| item.value.as_str() == Some(VHOST_USER));
    if let Some(item) = reserved {
        let message = format!("the transport \"{VHOST_USER}\" is not offered by `pollux run`");
        item.refuse(message, "write \"pci\" or \"mmio\"; or start it with `pollux serve` from a file without [vm]");
        return Transport::Pci;
    }
    if let Some(item) = socket {
        let help = "remove it; sockets are for devices that `pollux serve` starts from a file without [vm]";
        item.refuse(format!("`socket` does not go without transport = \"{VHOST_USER}\""), help);
    }
    table.choice(TRANSPORT, &[("pci", Transport::Pci), ("mmio", Transport::Mmio)], Transport::Pci)
}

/// `transport` and `socket` of a device that is served to others.
fn export(table: &Table<'_>, context: &Context<'_>) -> Option<Spanned<SocketSpec>> {
    let transport = table.required_item(TRANSPORT, "transport = \"vhost-user\"");
    if let Some(item) = &transport
        && let Some(bus @ ("pci" | "mmio")) = item.value.as_str()
    {
        let message = format!("the transport \"{bus}\" is not offered by `pollux serve`");
        item.refuse(
            message,
            format!("write \"{VHOST_USER}\" and a socket; or add [vm] and start it with `pollux run`"),
        );
        // Whoever wants a bus has no socket to name.
        table.item("socket", "");
        return None;
    }
    if transport.is_some() {
        table.choice(TRANSPORT, &[(VHOST_USER, ())], ());
    }
    socket::socket(table, context)
}

/// What a driver gets that says nothing.
const QUEUE_SIZE_ON_BUS: u16 = 256;
/// The front end chooses the size, and QEMU's own default is 128: a device that says so offers no request of more
/// segments than such a ring has room for.
const QUEUE_SIZE_EXPORTED: u16 = 128;
const QUEUES_MAX: u64 = 64;
const QUEUE_SIZES: std::ops::RangeInclusive<u64> = 4..=32768;
/// What GET_ID has room for (virtio 1.3, 5.2.6).
const SERIAL_BYTES_MAX: usize = 20;

/// The keys of `type = "blk"`.
fn blk(table: &Table<'_>, queue_size: u16) -> Option<Blk> {
    let block = table.required::<String>("block", "block = \"disk0\"");
    let workers = table.required::<Vec<Spanned<String>>>("workers", "workers = [\"io0\"]");
    let queues = number(table, "queues", "queues = 1", 1, |queues| {
        let help = format!("write a number from 1 to {QUEUES_MAX}");
        (!(1..=QUEUES_MAX).contains(&queues)).then(|| (format!("a device cannot have {queues} queues"), help))
    });
    let queue_size = number(table, "queue_size", "queue_size = 256", queue_size.into(), |size| {
        let fits = QUEUE_SIZES.contains(&size) && size.is_power_of_two();
        let near = size.clamp(*QUEUE_SIZES.start(), *QUEUE_SIZES.end()).next_power_of_two();
        let help = format!("write a power of two from 4 to 32768, such as {near}");
        (!fits).then(|| (format!("a queue cannot have {size} entries"), help))
    });
    let latency_sample = number(table, "latency_sample", "latency_sample = 16", 16, |sample| {
        let help = "write a smaller number, or 0 for no measurement".to_owned();
        (sample > u32::MAX.into()).then(|| ("`latency_sample` is too large".to_owned(), help))
    });
    let serial = table.optional::<String>("serial", "serial = \"disk-1\"").unwrap_or(Spanned::new(String::new(), 0..0));
    if serial.value.len() > SERIAL_BYTES_MAX || !serial.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let message = "the guest could not read this serial number".to_owned();
        let help = format!("write at most {SERIAL_BYTES_MAX} characters of ASCII");
        table.report(Diagnostic::error(message).at(&serial.span, "").help(help));
    }
    let coalescing = coalesce::coalesce(table);
    let in_order = table.optional::<bool>("in_order", "in_order = true").is_some_and(|value| value.value);
    let queue_span = queues.1.unwrap_or_else(|| table.span().clone());
    Some(Blk {
        block: block?,
        workers: worker_list(table, workers?)?,
        queues: Spanned::new(queues.0 as usize, queue_span),
        queue_size: queue_size.0 as u16,
        serial: serial.value,
        latency_sample: latency_sample.0 as u32,
        coalescing,
        in_order,
    })
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

fn worker_list(table: &Table<'_>, workers: Spanned<Vec<Spanned<String>>>) -> Option<Vec<Spanned<String>>> {
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
