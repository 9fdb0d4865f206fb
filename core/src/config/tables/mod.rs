//! Each table of the format: which keys it has, their allowed values, and their defaults.
//!
//! | module | holds |
//! |---|---|
//! | `draft` | the parts of all of them that could be read |
//! | `vm` | `[vm]` |
//! | `device` | `[device.NAME]` |
//! | `queues` | the keys of its queues |
//! | `socket` | the key `socket` of a device |
//! | `coalesce` | the key `coalesce` of a device |
mod coalesce;
mod device;
mod draft;
mod queues;
mod socket;
mod vm;

pub(super) use self::draft::{Draft, Entries, Kind};
use self::draft::{TRANSPORT, VHOST_USER};
use super::{
    context::{Context, Purpose},
    diagnostic::{Diagnostic, Spanned},
    model::{Block, Vm, Worker},
    options,
    read::Table,
};
use crate::worker::IdlePolicy;

/// Reads the whole file.
pub(super) fn read(root: Table<'_>, context: &Context<'_>) -> Draft {
    let kind = kind(&root, context.purpose);
    let draft = Draft {
        kind,
        vm: if kind == Kind::Machine { read_vm(&root, context) } else { None },
        workers: entries(&root, "worker", worker),
        blocks: entries(&root, "block", block),
        devices: entries(&root, "device", |name, table| device::device(name, table, kind, context)),
    };
    root.finish("");
    draft
}

/// Determines the purpose of the file, and reports what does not go with it. A file that mixes both kinds is read as
/// the one that leaves fewer mistakes.
fn kind(root: &Table<'_>, purpose: Purpose) -> Kind {
    let vm = root.item("vm", "");
    let devices = root.section_values("device");
    let exports =
        devices.iter().any(|device| device.get(TRANSPORT).is_some_and(|it| it.get_ref().as_str() == Some(VHOST_USER)));
    match (purpose, vm, exports) {
        (Purpose::Run, None, true) => {
            let message = "this file describes devices to serve and no machine to run";
            let help = "start it with `pollux serve`, or add [vm] and let the devices have the transport \"pci\"";
            root.report(Diagnostic::error(message).help(help));
            Kind::Exports
        }
        (Purpose::Serve, Some(vm), _) => {
            let help = match exports {
                true => "remove [vm]: devices are served to the machines of other programs".to_owned(),
                false => format!(
                    "start the machine with `pollux run`; or, for the machines of other programs, remove [vm] and \
                     write transport = \"{VHOST_USER}\" in the devices"
                ),
            };
            vm.refuse("`pollux serve` starts no machine, but there is a [vm]".into(), help);
            if exports { Kind::Exports } else { Kind::Machine }
        }
        (Purpose::Serve, None, _) | (Purpose::Any, None, true) => Kind::Exports,
        (Purpose::Run, ..) | (Purpose::Any, ..) => Kind::Machine,
    }
}

fn read_vm(root: &Table<'_>, context: &Context<'_>) -> Option<Vm> {
    let item = root.required_item("vm", "[vm] with `kernel` and `memory` below it")?;
    let Some(table) = item.table() else {
        item.refuse("[vm] must be a table".into(), "write [vm] and its keys below it");
        return None;
    };
    vm::vm(table.named("[vm]"), context)
}

fn entries<T>(
    root: &Table<'_>,
    section: &'static str,
    read: impl Fn(Spanned<String>, Table<'_>) -> Option<T>,
) -> Entries<T> {
    let tables = root.section(section);
    let names = tables.iter().map(|(name, _)| name.value.clone()).collect();
    Entries { names, items: tables.into_iter().filter_map(|(name, table)| read(name, table)).collect() }
}

/// `[worker.NAME]`
fn worker(name: Spanned<String>, table: Table<'_>) -> Option<Worker> {
    let cpu = table.optional::<usize>("cpu", "cpu = 3");
    let policies =
        [("spin", IdlePolicy::Spin), ("adaptive", IdlePolicy::Adaptive), ("interrupt", IdlePolicy::Interrupt)];
    let idle = table.choice("idle", &policies, IdlePolicy::default());
    table.finish("");
    Some(Worker { name, cpu, idle })
}

/// `[block.NAME]`
fn block(name: Spanned<String>, table: Table<'_>) -> Option<Block> {
    let plugin = table.required::<String>("plugin", "plugin = \"uring\"");
    let options = options::read(&table);
    let read_only = table.optional::<bool>("read_only", "read_only = true").is_some_and(|value| value.value);
    table.finish("; what the plugin takes goes into options = { … }");
    Some(Block { name, plugin: plugin?, options, read_only })
}
