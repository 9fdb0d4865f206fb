//! Each table of the format: which keys it has, what they may be, and what they are when they are left out.
use super::{
    Blk, Block, Config, Console, Context, Device, DeviceKind, Reboot, Transport, Vm, Worker,
    diagnostic::{Diagnostic, Span, Spanned},
    options,
    read::Table,
    suggest,
};
use crate::worker::IdlePolicy;
use pollux_abi::options::Size;
use std::{fs, fs::File, io, path::PathBuf};

/// What could be read of a file, however much is wrong with it.
pub(super) struct Draft {
    pub(super) vm: Option<Vm>,
    pub(super) workers: Entries<Worker>,
    pub(super) blocks: Entries<Block>,
    pub(super) devices: Entries<Device>,
}

/// The tables of one section.
pub(super) struct Entries<T> {
    /// The names of all of them: a reference to a table that could not be read is no second mistake.
    pub(super) names: Vec<String>,
    /// Those that could be read.
    pub(super) items: Vec<T>,
}

impl Draft {
    /// The configuration, if every table could be read.
    pub(super) fn finish(self) -> Option<Config> {
        Some(Config {
            vm: self.vm?,
            workers: self.workers.items,
            blocks: self.blocks.items,
            devices: self.devices.items,
        })
    }
}

/// Reads the whole file.
pub(super) fn read(root: Table<'_>, context: &Context<'_>) -> Draft {
    let item = root.required_item("vm", "[vm] with `kernel` and `memory` below it");
    let table = item.as_ref().and_then(|item| item.table().map(|table| table.named("[vm]")));
    if let (Some(item), None) = (&item, &table) {
        item.refuse("[vm] must be a table".into(), "write [vm] and its keys below it");
    }
    let draft = Draft {
        vm: table.and_then(|table| vm(table, context)),
        workers: entries(&root, "worker", worker),
        blocks: entries(&root, "block", block),
        devices: entries(&root, "device", device),
    };
    root.finish("");
    draft
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

/// `[vm]`
fn vm(table: Table<'_>, context: &Context<'_>) -> Option<Vm> {
    let vcpus = vcpus(&table, context);
    let memory = memory(&table, context);
    let kernel = table.required::<String>("kernel", "kernel = \"vmlinuz\"");
    let kernel = kernel.map(|kernel| file(&table, "kernel", &kernel, context));
    let initrd = table.optional::<String>("initrd", "initrd = \"initrd.img\"");
    let initrd = initrd.map(|initrd| file(&table, "initrd", &initrd, context));
    let cmdline = cmdline(&table, context);
    let console = console(&table, context);
    let reboot = table.choice("reboot", &[("restart", Reboot::Restart), ("exit", Reboot::Exit)], Reboot::Restart);
    table.finish("");
    let (memory_bytes, hugepages) = memory?;
    Some(Vm { vcpus: vcpus?, memory_bytes, hugepages, kernel: kernel?, initrd, cmdline, console, reboot })
}

/// `cpus = 2`, or `cpus = { count = 2, pin = [4, 5] }`
fn vcpus(table: &Table<'_>, context: &Context<'_>) -> Option<Vec<Option<Spanned<usize>>>> {
    let Some(item) = table.item("cpus", "cpus = 2") else { return Some(vec![None]) };
    let (count, pins) = match item.table() {
        None => (item.read::<usize>()?, None),
        Some(inner) => {
            let count = inner.optional::<usize>("count", "count = 2");
            let pins = inner.optional::<Vec<Spanned<usize>>>("pin", "pin = [4, 5]");
            if count.is_none() && pins.is_none() && inner.is_empty() {
                item.refuse("`cpus` needs the key `count`".into(), "write cpus = { count = 2, pin = [4, 5] }");
            }
            inner.finish("");
            let pinned = pins.as_ref().map(|pins| Spanned::new(pins.value.len(), pins.span.clone()));
            (count.or(pinned)?, pins)
        }
    };
    let most = context.limits.vcpus_max;
    if !(1..=most).contains(&count.value) {
        let message = format!("a machine cannot have {} vCPUs", count.value);
        table.report(Diagnostic::error(message).at(&count.span, "").help(format!("write a number from 1 to {most}")));
        return None;
    }
    let Some(pins) = pins else { return Some(vec![None; count.value]) };
    if pins.value.len() != count.value {
        let message = format!("`pin` names {} CPUs for {} vCPUs", pins.value.len(), count.value);
        let help = "name one CPU for each vCPU, or leave `pin` out";
        table.report(Diagnostic::error(message).at(&pins.span, "").at(&count.span, "the number of vCPUs").help(help));
        return None;
    }
    Some(pins.value.into_iter().map(Some).collect())
}

/// The page sizes that x86-64 has beside the usual one.
const HUGEPAGES: [(&str, u64); 2] = [("2M", 2 << 20), ("1G", 1 << 30)];

/// `memory = "1G"`, or `memory = { size = "1G", hugepages = "2M" }`: size and page size in bytes.
fn memory(table: &Table<'_>, context: &Context<'_>) -> Option<(u64, Option<u64>)> {
    let item = table.required_item("memory", "memory = \"1G\"")?;
    let (size, hugepages) = match item.table() {
        None => (item.read::<Size>(), None),
        Some(inner) => {
            let size = inner.required::<Size>("size", "size = \"1G\"");
            let pages = inner.optional::<Size>("hugepages", "hugepages = \"2M\"");
            inner.finish("");
            (size, pages.and_then(|pages| hugepage_size(table, &pages)))
        }
    };
    let size = size?;
    let (bytes, least) = (size.value.bytes(), context.limits.memory_bytes_min);
    let refuse = |message: String, help: String| {
        table.report(Diagnostic::error(message).at(&size.span, "").help(help));
        None
    };
    if bytes < least {
        let least = Size::from_bytes(least);
        return refuse(
            format!("{bytes} bytes are too little memory for a machine"),
            format!("write at least \"{least}\""),
        );
    }
    let page = hugepages.as_ref().map_or(4096, |pages| pages.value);
    if !bytes.is_multiple_of(page) {
        let near = Size::from_bytes(bytes.checked_next_multiple_of(page).unwrap_or(bytes / page * page));
        let message = format!("{} bytes are not whole pages of {}", bytes, Size::from_bytes(page));
        return refuse(message, format!("write \"{near}\""));
    }
    if bytes > 1 << 46 {
        return refuse("no processor has room for that much memory".into(), "write \"64T\" at most".into());
    }
    let host = context.host.memory_bytes;
    if host != 0 && bytes > host {
        let message = format!("the machine's memory is larger than this host's, {} MiB", host >> 20);
        let help = "write less, or the guest may be killed when it uses it";
        table.report(Diagnostic::warning(message).at(&size.span, "").help(help));
    }
    if let Some(pages) = &hugepages {
        check_hugepages(table, bytes, pages, context);
    }
    Some((bytes, hugepages.map(|pages| pages.value)))
}

fn hugepage_size(table: &Table<'_>, size: &Spanned<Size>) -> Option<Spanned<u64>> {
    if let Some((_, bytes)) = HUGEPAGES.iter().find(|(_, bytes)| *bytes == size.value.bytes()) {
        return Some(Spanned::new(*bytes, size.span.clone()));
    }
    let words = HUGEPAGES.map(|(word, _)| word);
    let message = format!("there are no huge pages of {}", size.value);
    let help = format!("write {}", suggest::alternatives(&words));
    table.report(Diagnostic::error(message).at(&size.span, "").help(help));
    None
}

fn check_hugepages(table: &Table<'_>, memory_bytes: u64, pages: &Spanned<u64>, context: &Context<'_>) {
    let name = Size::from_bytes(pages.value);
    let Some(pool) = context.host.hugepage_pool(pages.value) else {
        let message = format!("this host has no huge pages of {name}");
        let others: Vec<String> =
            context.host.hugepages.iter().map(|pool| format!("\"{}\"", Size::from_bytes(pool.page_bytes))).collect();
        let help = match others.as_slice() {
            [] => "leave `hugepages` out".to_owned(),
            _ => format!("write {}, or leave `hugepages` out", others.join(" or ")),
        };
        return table.report(Diagnostic::error(message).at(&pages.span, "").help(help));
    };
    let needed = memory_bytes / pages.value;
    if pool.available < needed {
        // No error: a machine that is running with this very file may have them.
        let message = format!("{needed} huge pages of {name} are needed, but {} are free now", pool.available);
        let file = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", pages.value >> 10);
        let help = format!("reserve more as root: echo N > {file}");
        table.report(Diagnostic::warning(message).at(&pages.span, "").help(help));
    }
}

/// The path of a file that must be there, with something in it.
fn file(table: &Table<'_>, key: &str, name: &Spanned<String>, context: &Context<'_>) -> Spanned<PathBuf> {
    let path = context.path(&name.value);
    let problem = match fs::metadata(&path) {
        Err(error) => Some(reason(&error)),
        Ok(metadata) if metadata.is_dir() => Some("it is a folder".into()),
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => Some("it is empty".into()),
        // Opening anything else could block.
        Ok(metadata) if !metadata.is_file() => Some("it is not a regular file".into()),
        Ok(_) => File::open(&path).err().map(|error| reason(&error)),
    };
    if let Some(problem) = problem {
        let message = format!("cannot use the {key} {}: {problem}", path.display());
        let help = match key {
            "kernel" => "name a bzImage such as /boot/vmlinuz, or an ELF file (vmlinux)",
            _ => "name an initial RAM disk such as /boot/initrd.img, or leave `initrd` out",
        };
        table.report(Diagnostic::error(message).at(&name.span, "").help(help));
    }
    Spanned::new(path, name.span.clone())
}

/// The system's words without the error number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn cmdline(table: &Table<'_>, context: &Context<'_>) -> String {
    let Some(cmdline) = table.optional::<String>("cmdline", "cmdline = \"console=ttyS0\"") else {
        return String::new();
    };
    let most = context.limits.cmdline_bytes_max;
    let report = |message: String, help: &str| {
        table.report(Diagnostic::error(message).at(&cmdline.span, "").help(help));
    };
    if cmdline.value.len() > most {
        let message = format!("the command line has {} bytes, kernels take {most}", cmdline.value.len());
        report(message, "shorten it");
    }
    if cmdline.value.chars().any(|character| character.is_control()) {
        report("the command line has a control character in it".into(), "write it in one line");
    }
    cmdline.value
}

fn console(table: &Table<'_>, context: &Context<'_>) -> Console {
    let key = "console";
    let item = table.item(key, "console = \"terminal\"");
    if let Some(inner) = item.and_then(|item| item.table()) {
        let file = inner.required::<String>("file", "file = \"console.log\"");
        inner.finish("");
        return file.map_or(Console::Off, |file| Console::File(output_file(table, &file, context)));
    }
    let choices = [("terminal", Console::Terminal), ("stdout", Console::Stdout), ("off", Console::Off)];
    let choices: Vec<(&str, &Console)> = choices.iter().map(|(word, console)| (*word, console)).collect();
    table.choice(key, &choices, &Console::Terminal).clone()
}

/// The path of a file that will be made, in a folder that must be there.
fn output_file(table: &Table<'_>, name: &Spanned<String>, context: &Context<'_>) -> PathBuf {
    let path = context.path(&name.value);
    let problem = if path.is_dir() {
        Some("it is a folder".to_owned())
    } else {
        path.parent().filter(|folder| !folder.is_dir()).map(|folder| format!("there is no folder {}", folder.display()))
    };
    if let Some(problem) = problem {
        let message = format!("cannot write the console to {}: {problem}", path.display());
        table.report(Diagnostic::error(message).at(&name.span, "").help("name a file in a folder that exists"));
    }
    path
}

/// `[worker.NAME]`
fn worker(name: Spanned<String>, table: Table<'_>) -> Option<Worker> {
    let cpu = table.optional::<usize>("cpu", "cpu = 3");
    let policies = [("spin", IdlePolicy::Spin), ("adaptive", IdlePolicy::Adaptive)];
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

/// `[device.NAME]`
fn device(name: Spanned<String>, table: Table<'_>) -> Option<Device> {
    let Some(kind) = table.required::<String>("type", "type = \"blk\"") else {
        table.give_up();
        return None;
    };
    if kind.value != "blk" {
        // Which keys it has depends on the type: no further word about them.
        let message = format!("there is no device type \"{}\"", kind.value);
        table.report(Diagnostic::error(message).at(&kind.span, "").help("write \"blk\""));
        return None;
    }
    let transport = transport(&table);
    let kind = blk(&table).map(DeviceKind::Blk);
    table.finish("");
    Some(Device { name, transport, kind: kind? })
}

fn transport(table: &Table<'_>) -> Transport {
    let (key, example) = ("transport", "transport = \"pci\"");
    let choices = [("pci", Transport::Pci), ("mmio", Transport::Mmio)];
    let reserved = table.item(key, example).filter(|item| item.value.as_str() == Some("vhost-user"));
    if let Some(item) = reserved {
        let message = "the transport \"vhost-user\" is not offered by `pollux run`".into();
        item.refuse(message, "write \"pci\" or \"mmio\"");
        return Transport::Pci;
    }
    table.choice(key, &choices, Transport::Pci)
}

const QUEUES_MAX: u64 = 64;
const QUEUE_SIZES: std::ops::RangeInclusive<u64> = 4..=32768;
/// What GET_ID has room for (virtio 1.3, 5.2.6).
const SERIAL_BYTES_MAX: usize = 20;

/// The keys of `type = "blk"`.
fn blk(table: &Table<'_>) -> Option<Blk> {
    let block = table.required::<String>("block", "block = \"disk0\"");
    let workers = table.required::<Vec<Spanned<String>>>("workers", "workers = [\"io0\"]");
    let queues = number(table, "queues", "queues = 1", 1, |queues| {
        let help = format!("write a number from 1 to {QUEUES_MAX}");
        (!(1..=QUEUES_MAX).contains(&queues)).then(|| (format!("a device cannot have {queues} queues"), help))
    });
    let queue_size = number(table, "queue_size", "queue_size = 256", 256, |size| {
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
    let queue_span = queues.1.unwrap_or_else(|| table.span().clone());
    Some(Blk {
        block: block?,
        workers: worker_list(table, workers?)?,
        queues: Spanned::new(queues.0 as usize, queue_span),
        queue_size: queue_size.0 as u16,
        serial: serial.value,
        latency_sample: latency_sample.0 as u32,
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
