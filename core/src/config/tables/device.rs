//! `[device.NAME]`
use super::{
    draft::{Kind, TRANSPORT, VHOST_USER},
    queues, socket,
};
use crate::{
    config::{
        context::Context,
        diagnostic::{Diagnostic, Spanned},
        model::{Blk, Device, DeviceKind, Transport},
        read::Table,
    },
    transport::vhost_user::socket::SocketSpec,
};

/// The types of devices, each with the function that reads its own keys.
const TYPES: &[(&str, ReadKind)] = &[("blk", blk)];

type ReadKind = fn(&Table<'_>) -> Option<DeviceKind>;

/// Reads `[device.NAME]`.
pub(super) fn device(name: Spanned<String>, table: Table<'_>, kind: Kind, context: &Context<'_>) -> Option<Device> {
    let Some(device_type) = table.required::<String>("type", "type = \"blk\"") else {
        table.give_up();
        return None;
    };
    let Some((_, read_kind)) = TYPES.iter().find(|(name, _)| *name == device_type.value) else {
        // Which keys it has depends on the type: nothing further is reported about them.
        let message = format!("there is no device type \"{}\"", device_type.value);
        let names: Vec<String> = TYPES.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let help = format!("write {}", names.join(" or "));
        table.report(Diagnostic::error(message).at(&device_type.span, "").help(help));
        return None;
    };
    let transport = match kind {
        Kind::Machine => Some(bus(&table)),
        Kind::Exports => export(&table, context).map(Transport::VhostUser),
    };
    let kind_read = read_kind(&table);
    let queues = queues::queues(&table, kind);
    let workers = queues::workers(&table);
    table.finish("");
    Some(Device { name, transport: transport?, workers: workers?, queues, kind: kind_read? })
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
        // A device on a bus has no socket to name.
        table.item("socket", "");
        return None;
    }
    if transport.is_some() {
        table.choice(TRANSPORT, &[(VHOST_USER, ())], ());
    }
    socket::socket(table, context)
}

/// What GET_ID has room for (virtio 1.3, 5.2.6).
const SERIAL_BYTES_MAX: usize = 20;

/// The keys that only `type = "blk"` has.
fn blk(table: &Table<'_>) -> Option<DeviceKind> {
    let block = table.required::<String>("block", "block = \"disk0\"");
    let serial = table.optional::<String>("serial", "serial = \"disk-1\"").unwrap_or(Spanned::new(String::new(), 0..0));
    if serial.value.len() > SERIAL_BYTES_MAX || !serial.value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let message = "the guest could not read this serial number".to_owned();
        let help = format!("write at most {SERIAL_BYTES_MAX} characters of ASCII");
        table.report(Diagnostic::error(message).at(&serial.span, "").help(help));
    }
    Some(DeviceKind::Blk(Blk { block: block?, serial: serial.value }))
}
