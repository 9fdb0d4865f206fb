//! `[vm]`
use crate::config::{
    context::Context,
    diagnostic::{Diagnostic, Spanned, reason},
    model::{Console, Reboot, Vm},
    read::Table,
    suggest,
};
use pollux_abi::options::Size;
use std::{fs, fs::File, path::PathBuf};

/// Reads `[vm]`.
pub(super) fn vm(table: Table<'_>, context: &Context<'_>) -> Option<Vm> {
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

/// The page sizes of x86-64 other than the usual one.
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
        // Not an error: a machine that is already running with this file may be using them.
        let message = format!("{needed} huge pages of {name} are needed, but {} are free now", pool.available);
        let file = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", pages.value >> 10);
        let help = format!("reserve more as root: echo N > {file}");
        table.report(Diagnostic::warning(message).at(&pages.span, "").help(help));
    }
}

/// The path of a file that must exist and must not be empty.
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

/// The path of a file that will be made, in a folder that must exist.
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
