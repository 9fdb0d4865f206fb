//! Checks across several tables: references, CPUs, what is shared and what is unused.
use super::{
    context::Context,
    diagnostic::{Diagnostic, Diagnostics, Span, Spanned},
    model::{Block, Device, Transport},
    suggest,
    tables::{Draft, Entries, Kind},
};
use crate::{cpus, transport::vhost_user::socket::SocketSpec, worker::IdlePolicy};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

/// Checks the tables that could be read.
pub(super) fn check(draft: &Draft, context: &Context<'_>, diagnostics: &Diagnostics) {
    check_cpus(draft, context, diagnostics);
    check_references(draft, diagnostics);
    check_sharing(draft, diagnostics);
    check_room(draft, context, diagnostics);
    check_exports(draft, diagnostics);
    if !diagnostics.has_errors() {
        // After errors, what seems to be missing or unused may be in the tables that could not be read.
        check_spinning(draft, context, diagnostics);
        check_unused(draft, diagnostics);
        if draft.kind == Kind::Exports && draft.devices.names.is_empty() {
            let help = "add [device.blk0] with transport = \"vhost-user\" and socket = \"/run/pollux/blk0.sock\"";
            diagnostics.push(Diagnostic::error("there is no device to serve").help(help));
        }
    }
}

/// A thread that wants a CPU for itself.
struct Claim<'d> {
    /// `worker io0`, `vCPU 1`
    who: String,
    cpu: &'d Spanned<usize>,
    /// Whether it is a worker, and whether that one ever rests.
    worker: Option<IdlePolicy>,
}

fn claims(draft: &Draft) -> Vec<Claim<'_>> {
    let vcpus = draft.vm.iter().flat_map(|vm| vm.vcpus.iter().enumerate());
    let pins = vcpus.filter_map(|(index, pin)| {
        let cpu = pin.as_ref()?;
        Some(Claim { who: format!("vCPU {index}"), cpu, worker: None })
    });
    let workers = draft.workers.items.iter().filter_map(|worker| {
        let cpu = worker.cpu.as_ref()?;
        Some(Claim { who: format!("worker {}", worker.name.value), cpu, worker: Some(worker.idle) })
    });
    pins.chain(workers).collect()
}

fn check_cpus(draft: &Draft, context: &Context<'_>, diagnostics: &Diagnostics) {
    let claims = claims(draft);
    let mut usable = Vec::new();
    for claim in &claims {
        match unusable(claim.cpu.value, context) {
            Some((message, help)) => diagnostics.push(Diagnostic::error(message).at(&claim.cpu.span, "").help(help)),
            None => usable.push(claim),
        }
    }
    for (index, claim) in usable.iter().enumerate() {
        if let Some(first) = usable[..index].iter().find(|other| other.cpu.value == claim.cpu.value) {
            diagnostics.push(clash(first, claim));
        }
    }
}

/// Why a CPU is not available, and what to write instead.
fn unusable(cpu: usize, context: &Context<'_>) -> Option<(String, String)> {
    let host = context.host;
    if host.cpus_usable.contains(&cpu) {
        return None;
    }
    let usable = cpus::list(&host.cpus_usable);
    if host.cpus_online.contains(&cpu) {
        let message = format!("CPU {cpu} is not among those that this process may use ({usable})");
        return Some((message, "choose one of those, or start pollux in a wider cpuset".into()));
    }
    let online = cpus::list(&host.cpus_online);
    if host.cpus_present.contains(&cpu) {
        let help = format!("choose one of {usable}, or switch it on: echo 1 > /sys/devices/system/cpu/cpu{cpu}/online");
        return Some((format!("CPU {cpu} is switched off"), help));
    }
    Some((format!("there is no CPU {cpu} on this host"), format!("CPUs are counted from 0; write one of {online}")))
}

fn clash(first: &Claim<'_>, second: &Claim<'_>) -> Diagnostic {
    let message = format!("{} and {} share CPU {}", first.who, second.who, second.cpu.value);
    let spins = [first, second].iter().any(|claim| claim.worker == Some(IdlePolicy::Spin));
    let are_workers = first.worker.is_some() && second.worker.is_some();
    let diagnostic = if are_workers && spins { Diagnostic::error(message) } else { Diagnostic::warning(message) };
    let help = match (are_workers, spins) {
        (true, true) => {
            "a worker that spins never gives its CPU away: give each its own, or write idle = \"adaptive\" in both"
        }
        (false, true) => "a worker that spins leaves a vCPU half of the time at most: give each a CPU of its own",
        _ => "each waits while the other runs: give each a CPU of its own",
    };
    diagnostic.at(&second.cpu.span, "").at(&first.cpu.span, format!("{} is here", first.who)).help(help)
}

/// Warns if workers spin on CPUs where other threads want to run.
fn check_spinning(draft: &Draft, context: &Context<'_>, diagnostics: &Diagnostics) {
    for worker in &draft.workers.items {
        if worker.cpu.is_none() && worker.idle == IdlePolicy::Spin {
            let message = format!("worker {} spins on whichever CPU the scheduler picks", worker.name.value);
            let help = "give it a CPU of its own with cpu = N, or write idle = \"adaptive\"";
            diagnostics.push(Diagnostic::warning(message).at(&worker.name.span, "").help(help));
        }
    }
    let spinning: Vec<&Spanned<usize>> = draft
        .workers
        .items
        .iter()
        .filter(|worker| worker.idle == IdlePolicy::Spin)
        .filter_map(|worker| worker.cpu.as_ref())
        .collect();
    let usable = &context.host.cpus_usable;
    let is_taken = |cpu: &usize| spinning.iter().any(|worker| worker.value == *cpu);
    if let Some(last) = spinning.last()
        && usable.iter().all(is_taken)
    {
        let message = format!("workers spin on every CPU that this process may use ({})", cpus::list(usable));
        let others = match draft.kind {
            Kind::Machine => "the vCPUs",
            Kind::Exports => "the guests",
        };
        let help = format!("leave one for {others}, or write idle = \"adaptive\" in one of the workers");
        diagnostics.push(Diagnostic::warning(message).at(&last.span, "").help(help));
    }
}

/// The devices that have a block backend, and its name.
fn users(draft: &Draft) -> impl Iterator<Item = (&Device, &Spanned<String>)> {
    draft.devices.items.iter().filter_map(|device| Some((device, device.block()?)))
}

fn check_references(draft: &Draft, diagnostics: &Diagnostics) {
    let (blocks, workers) = (names(&draft.blocks), names(&draft.workers));
    for device in &draft.devices.items {
        if let Some(block) = device.block() {
            check_reference("block", block, &blocks, diagnostics);
        }
        for worker in &device.workers {
            check_reference("worker", worker, &workers, diagnostics);
        }
    }
}

fn names<T>(entries: &Entries<T>) -> BTreeSet<&str> {
    entries.names.iter().map(String::as_str).collect()
}

fn check_reference(section: &str, name: &Spanned<String>, names: &BTreeSet<&str>, diagnostics: &Diagnostics) {
    if names.contains(name.value.as_str()) {
        return;
    }
    let help = match suggest::nearest(&name.value, names.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("add a table [{section}.{}]", name.value),
    };
    let message = format!("there is no [{section}.{}]", name.value);
    diagnostics.push(Diagnostic::error(message).at(&name.span, "").help(help));
}

/// Two devices may share a medium only if neither writes to it.
fn check_sharing(draft: &Draft, diagnostics: &Diagnostics) {
    let blocks: HashMap<&str, &Block> =
        draft.blocks.items.iter().map(|block| (block.name.value.as_str(), block)).collect();
    let mut used: HashMap<&str, (&Device, &Spanned<String>)> = HashMap::new();
    for (device, block_name) in users(draft) {
        let name = block_name.value.as_str();
        let Some((first, first_name)) = used.get(name) else {
            used.insert(name, (device, block_name));
            continue;
        };
        let Some(block) = blocks.get(name) else { continue };
        if !block.read_only {
            let name = &block.name.value;
            let message = format!("{} and {} would both write to block {name}", first.name.value, device.name.value);
            let help = format!("give each device a block of its own, or write read_only = true in [block.{name}]");
            diagnostics.push(
                Diagnostic::error(message)
                    .at(&block_name.span, "")
                    .at(&first_name.span, "used here already")
                    .help(help),
            );
        }
    }
}

fn check_room(draft: &Draft, context: &Context<'_>, diagnostics: &Diagnostics) {
    let buses = [
        (Transport::Pci, "pci", context.limits.pci_devices_max, "mmio"),
        (Transport::Mmio, "mmio", context.limits.mmio_devices_max, "pci"),
    ];
    for (transport, name, most, other) in buses {
        let on_bus = draft.devices.items.iter().filter(|device| device.transport == transport);
        if let Some(excess) = on_bus.skip(most).map(|device| &device.name).next() {
            let message = format!("{} is one device too many on {name}, which has room for {most}", excess.value);
            let help = format!("write transport = \"{other}\" in some of them");
            diagnostics.push(Diagnostic::error(message).at(&excess.span, "").help(help));
        }
    }
}

/// Each served device needs a socket of its own.
fn check_exports(draft: &Draft, diagnostics: &Diagnostics) {
    let mut folders = HashMap::new();
    let mut used: HashMap<(PathBuf, &OsStr), (&Device, &Spanned<SocketSpec>)> = HashMap::new();
    for device in &draft.devices.items {
        let Transport::VhostUser(socket) = &device.transport else { continue };
        let Some(place) = place(&socket.value.path, &mut folders) else { continue };
        let Some((first, first_socket)) = used.get(&place) else {
            used.insert(place, (device, socket));
            continue;
        };
        let message = format!("{} and {} have the same socket", first.name.value, device.name.value);
        let diagnostic = Diagnostic::error(message).at(&socket.span, "").at(&first_socket.span, "used here already");
        diagnostics.push(diagnostic.help("give each device a socket of its own"));
    }
}

/// Identifies a file by its folder, whatever path leads there, and its name. Each folder is inspected only once.
fn place<'p>(path: &'p Path, folders: &mut HashMap<&'p Path, PathBuf>) -> Option<(PathBuf, &'p OsStr)> {
    let folder = path.parent()?;
    let real = folders.entry(folder).or_insert_with(|| fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned()));
    Some((real.clone(), path.file_name()?))
}

fn check_unused(draft: &Draft, diagnostics: &Diagnostics) {
    let warn = |message: String, span: &Span, help: String| {
        diagnostics.push(Diagnostic::warning(message).at(span, "").help(help));
    };
    let blocks: HashSet<&str> = users(draft).map(|(_, block)| block.value.as_str()).collect();
    let devices = &draft.devices.items;
    let workers: HashSet<&str> =
        devices.iter().flat_map(|device| device.workers.iter().map(|worker| worker.value.as_str())).collect();
    for block in &draft.blocks.items {
        let name = &block.name.value;
        if !blocks.contains(name.as_str()) {
            let help = format!("write block = \"{name}\" in a device, or remove it");
            warn(format!("no device uses block {name}"), &block.name.span, help);
        }
    }
    for worker in &draft.workers.items {
        let name = &worker.name.value;
        if !workers.contains(name.as_str()) {
            let help = format!("write workers = [\"{name}\"] in a device, or remove it");
            warn(format!("worker {name} serves no device"), &worker.name.span, help);
        }
    }
    for device in devices {
        let queues = device.queues.value.count;
        if let Some(idle) = device.workers.get(queues) {
            let name = &device.name.value;
            let help = format!("write queues = {}, or name fewer workers", device.workers.len());
            let plural = if queues == 1 { "queue" } else { "queues" };
            let message = format!("worker {} gets none of the {queues} {plural} of {name}", idle.value);
            warn(message, &idle.span, help);
        }
    }
}
