//! What is said of a configuration file, and what becomes of a good one.
mod exports;

use pollux_core::{
    config::{
        Config, Console, Context, DeviceKind, Diagnostic, Host, MachineLimits, Purpose, Reboot, Transport, parse,
        read_file,
    },
    queue::{QueueOptions, coalescing::Coalescing},
    worker::IdlePolicy,
};
use pollux_testing::host::{self, host};
use std::{fs, path::Path};

/// A folder with a kernel and an initrd, and a host of four CPUs of which three may be used.
struct Bench {
    folder: tempfile::TempDir,
    host: Host,
    limits: MachineLimits,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("vmlinuz"), "kernel").expect("kernel");
        fs::write(folder.path().join("initrd.img"), "initrd").expect("initrd");
        let limits = MachineLimits { cmdline_bytes_max: 40, pci_devices_max: 3, mmio_devices_max: 1, ..host::limits() };
        Bench { folder, host: host(), limits }
    }

    fn parse(&self, text: &str) -> (Option<Config>, Vec<Diagnostic>) {
        self.parse_for(Purpose::Any, text)
    }

    fn parse_for(&self, purpose: Purpose, text: &str) -> (Option<Config>, Vec<Diagnostic>) {
        parse(text, &Context { purpose, folder: self.folder.path(), host: &self.host, limits: &self.limits })
    }

    /// What is said of `text`: severity, what the first label points at, message and help.
    fn said(&self, text: &str) -> Vec<String> {
        self.said_for(Purpose::Any, text)
    }

    fn said_for(&self, purpose: Purpose, text: &str) -> Vec<String> {
        let (config, diagnostics) = self.parse_for(purpose, text);
        assert_eq!(config.is_none(), diagnostics.iter().any(Diagnostic::is_error), "{diagnostics:?}");
        let line = |diagnostic: &Diagnostic| {
            let severity = if diagnostic.is_error() { "error" } else { "warning" };
            let place = diagnostic.labels.first().map_or("", |label| &text[label.span.clone()]);
            let help = diagnostic.help.as_deref().expect("every message says what to write");
            format!("{severity} at {place}: {}: {help}", diagnostic.message)
        };
        diagnostics.iter().map(line).collect()
    }
}

const VM: &str = "[vm]\nmemory = \"1G\"\nkernel = \"vmlinuz\"\n";

/// Checks each pair of a file's text and the one thing that is said of it.
fn expect(bench: &Bench, cases: &[(&str, &str)]) {
    for (text, message) in cases {
        assert_eq!(bench.said(text), [*message], "{text}");
    }
}

#[test]
fn a_whole_file_becomes_typed_values() {
    let bench = Bench::new();
    let text = r#"
        [vm]
        cpus = { count = 2, pin = [0, 1] }
        memory = { size = "1G", hugepages = "2M" }
        kernel = "vmlinuz"
        initrd = "initrd.img"
        cmdline = "console=ttyS0 root=/dev/vda rw"
        console = { file = "console.log" }
        reboot = "exit"
        [worker.io0]
        cpu = 2
        idle = "adaptive"
        [block.zero]
        plugin = "null"
        read_only = true
        [block.disk0]
        plugin = "uring"
        [block.disk0.options]
        path = "disk.img"
        direct = true
        depth = 0x10
        ratio = 0.5
        tags = ["a", 1979-05-27]
        deep = { a.b = -1 }
        [device.root]
        type = "blk"
        block = "disk0"
        workers = ["io0"]
        queues = 4
        queue_size = 1024
        serial = "root disk"
        latency_sample = 0
        coalesce = { count = 32, time_us = 50 }
        in_order = true
        [device.extra]
        type = "blk"
        block = "zero"
        workers = ["io0"]
        transport = "mmio"
        coalesce = "adaptive"
    "#;
    let (config, diagnostics) = bench.parse(text);
    assert_eq!(diagnostics, []);
    let config = config.expect("nothing is wrong");
    let vm = config.vm.expect("a machine");
    let pins: Vec<_> = vm.vcpus.iter().map(|pin| pin.as_ref().map(|pin| pin.value)).collect();
    assert_eq!(pins, [Some(0), Some(1)]);
    assert_eq!((vm.memory_bytes, vm.hugepages), (1 << 30, Some(2 << 20)));
    assert_eq!(vm.kernel.value, bench.folder.path().join("vmlinuz"));
    assert_eq!(vm.initrd.map(|initrd| initrd.value), Some(bench.folder.path().join("initrd.img")));
    assert_eq!(vm.cmdline, "console=ttyS0 root=/dev/vda rw");
    assert_eq!(vm.console, Console::File(bench.folder.path().join("console.log")));
    assert_eq!(vm.reboot, Reboot::Exit);
    let worker = &config.workers[0];
    assert_eq!((worker.name.value.as_str(), worker.idle), ("io0", IdlePolicy::Adaptive));
    assert_eq!(worker.cpu.as_ref().map(|cpu| cpu.value), Some(2));
    let blocks: Vec<_> = config.blocks.iter().map(|block| (block.name.value.as_str(), block.read_only)).collect();
    assert_eq!(blocks, [("zero", true), ("disk0", false)], "in the order of the file");
    assert_eq!(
        config.blocks[1].options.json,
        r#"{"deep":{"a":{"b":-1}},"depth":16,"direct":true,"path":"disk.img","ratio":0.5,"tags":["a","1979-05-27"]}"#
    );
    assert_eq!(config.blocks[0].options.json, "{}");
    let devices: Vec<_> =
        config.devices.iter().map(|device| (device.name.value.as_str(), device.transport.clone())).collect();
    assert_eq!(devices, [("root", Transport::Pci), ("extra", Transport::Mmio)], "in the order of the file");
    let DeviceKind::Blk(root) = &config.devices[0].kind;
    assert_eq!((root.serial.as_str(), root.block.value.as_str()), ("root disk", "disk0"));
    assert_eq!(config.devices[0].workers[0].value, "io0");
    let coalescing = Coalescing::Limits { count: 32, time_us: 50 };
    let queues = QueueOptions { count: 4, size: 1024, latency_sample: 0, coalescing, in_order: true };
    assert_eq!(config.devices[0].queues.value, queues);
    assert_eq!(config.devices[1].queues.value.coalescing, Coalescing::Adaptive);
}

#[test]
fn what_is_left_out_has_a_default() {
    let text = format!(
        "{VM}[worker.io0]\ncpu = 0\n[block.d]\nplugin = \"null\"\n\
         [device.d]\ntype = \"blk\"\nblock = \"d\"\nworkers = [\"io0\"]\n"
    );
    let (config, diagnostics) = Bench::new().parse(&text);
    assert_eq!(diagnostics, []);
    let config = config.expect("nothing is wrong");
    let vm = config.vm.expect("a machine");
    assert_eq!(vm.vcpus, [None]);
    assert_eq!((vm.hugepages, vm.initrd), (None, None));
    assert_eq!((vm.console, vm.reboot), (Console::Terminal, Reboot::Restart));
    assert_eq!(config.workers[0].idle, IdlePolicy::Spin);
    assert!(!config.blocks[0].read_only);
    assert_eq!(config.devices[0].transport, Transport::Pci);
    let DeviceKind::Blk(blk) = &config.devices[0].kind;
    let queues = QueueOptions { count: 1, size: 256, latency_sample: 16, coalescing: Coalescing::Off, in_order: false };
    assert_eq!((blk.serial.as_str(), config.devices[0].queues.value), ("", queues));
}

#[test]
fn cpus_must_be_there_and_free() {
    let worker = |name: &str, cpu: usize, idle: &str| {
        format!(
            "[worker.{name}]\ncpu = {cpu}\nidle = \"{idle}\"\n[block.{name}]\nplugin = \"null\"\n\
             [device.{name}]\ntype = \"blk\"\nblock = \"{name}\"\nworkers = [\"{name}\"]\n"
        )
    };
    let pinned = VM.replace("[vm]\n", "[vm]\ncpus = { pin = [1, 2] }\n");
    let (bench, a, b) = (Bench::new(), worker("a", 0, "spin"), worker("b", 0, "spin"));
    expect(
        &bench,
        &[
            (
                &format!("{VM}{}", worker("a", 9, "spin")),
                "error at 9: there is no CPU 9 on this host: CPUs are counted from 0; write one of 0-3",
            ),
            (
                &format!("{VM}{}", worker("a", 3, "spin")),
                "error at 3: CPU 3 is not among those that this process may use (0-2): \
                 choose one of those, or start pollux in a wider cpuset",
            ),
            (
                &format!("{VM}{}", worker("a", 4, "spin")),
                "error at 4: CPU 4 is switched off: \
                 choose one of 0-2, or switch it on: echo 1 > /sys/devices/system/cpu/cpu4/online",
            ),
            (
                &format!("{VM}{a}{b}"),
                "error at 0: worker a and worker b share CPU 0: a worker that spins never gives its CPU away: \
                 give each its own, or write idle = \"adaptive\" in both",
            ),
            (
                &format!("{VM}{}{}", worker("a", 0, "adaptive"), worker("b", 0, "adaptive")),
                "warning at 0: worker a and worker b share CPU 0: each waits while the other runs: \
                 give each a CPU of its own",
            ),
            (
                &format!("{pinned}{}", worker("a", 2, "spin")),
                "warning at 2: vCPU 1 and worker a share CPU 2: a worker that spins leaves a vCPU half of the time \
                 at most: give each a CPU of its own",
            ),
            (
                &format!("{VM}{}{}{}", worker("a", 0, "spin"), worker("b", 1, "spin"), worker("c", 2, "spin")),
                "warning at 2: workers spin on every CPU that this process may use (0-2): \
                 leave one for the vCPUs, or write idle = \"adaptive\" in one of the workers",
            ),
            (
                &VM.replace("[vm]", "[vm]\ncpus = { count = 2, pin = [1, 7] }"),
                "error at 7: there is no CPU 7 on this host: CPUs are counted from 0; write one of 0-3",
            ),
            (
                &VM.replace("[vm]", "[vm]\ncpus = { count = 3, pin = [1, 2] }"),
                "error at [1, 2]: `pin` names 2 CPUs for 3 vCPUs: name one CPU for each vCPU, or leave `pin` out",
            ),
            (
                &VM.replace("[vm]", "[vm]\ncpus = 9"),
                "error at 9: a machine cannot have 9 vCPUs: write a number from 1 to 8",
            ),
        ],
    );
}

#[test]
fn memory_must_be_whole_pages_that_the_host_has() {
    let with = |memory: &str| VM.replace("\"1G\"", memory);
    expect(
        &Bench::new(),
        &[
            (
                &with("\"1M\""),
                "error at \"1M\": 1048576 bytes are too little memory for a machine: write at least \"4M\"",
            ),
            (
                &with("1073741825"),
                "error at 1073741825: 1073741825 bytes are not whole pages of 4K: write \"1048580K\"",
            ),
            (
                &with("{ size = \"33M\", hugepages = \"2M\" }"),
                "error at \"33M\": 34603008 bytes are not whole pages of 2M: write \"34M\"",
            ),
            (
                &with("{ size = \"32M\", hugepages = \"4M\" }"),
                "error at \"4M\": there are no huge pages of 4M: write \"2M\" or \"1G\"",
            ),
            (
                &with("{ size = \"1G\", hugepages = \"1G\" }"),
                "error at \"1G\": this host has no huge pages of 1G: write \"2M\", or leave `hugepages` out",
            ),
            (
                &with("{ size = \"2G\", hugepages = \"2M\" }"),
                "warning at \"2M\": 1024 huge pages of 2M are needed, but 512 are free now: reserve more as root: \
                 echo N > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            ),
            (
                &with("\"16G\""),
                "warning at \"16G\": the machine's memory is larger than this host's, 8192 MiB: \
                 write less, or the guest may be killed when it uses it",
            ),
            (&with("\"65T\""), "error at \"65T\": no processor has room for that much memory: write \"64T\" at most"),
        ],
    );
}

#[test]
fn a_bus_has_room_for_so_many_devices() {
    let mut text = format!("{VM}[worker.io0]\ncpu = 0\n");
    for index in 0..4 {
        text += &format!(
            "[block.d{index}]\nplugin = \"null\"\n\
             [device.d{index}]\ntype = \"blk\"\nblock = \"d{index}\"\nworkers = [\"io0\"]\n"
        );
    }
    let message = "error at d3: d3 is one device too many on pci, which has room for 3: \
                   write transport = \"mmio\" in some of them";
    expect(&Bench::new(), &[(&text, message)]);
}

#[test]
fn deep_and_large_files_are_refused_and_not_followed() {
    let bench = Bench::new();
    let deep_array = format!("{VM}[block.d]\nplugin = \"x\"\noptions.a = {}1{}\n", "[".repeat(9000), "]".repeat(9000));
    let deep_table = format!("{VM}[block.d]\nplugin = \"x\"\noptions{} = 1\n", ".a".repeat(9000));
    for text in [deep_array, deep_table] {
        let said = bench.said(&text);
        assert!(said.iter().any(|line| line.contains("nested too deeply")), "{:.300}", said.concat());
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("large.toml");
    fs::File::create(&path).and_then(|file| file.set_len(5 << 20)).expect("file");
    assert_eq!(read_file(&path).expect_err("too long").message, "the configuration is longer than 4 MiB");
    let endless = read_file(Path::new("/dev/zero")).expect_err("endless");
    assert_eq!(endless.message, "the configuration is longer than 4 MiB");
}

/// Whatever is in the file, the answer is values or messages whose places lie in the text.
#[test]
fn no_text_makes_it_panic() {
    use proptest::prelude::*;
    let bench = Bench::new();
    let good = format!(
        "{VM}[worker.io0]\ncpu = 0\n[block.d]\nplugin = \"null\"\noptions = {{ a = [1, 2.5] }}\n\
         [device.d]\ntype = \"blk\"\nblock = \"d\"\nworkers = [\"io0\"]\nqueues = 2\ncoalesce = {{ count = 8, time_us \
         = 1 }}\n"
    );
    let exported = "[worker.io0]\ncpu = 0\n[block.d]\nplugin = \"null\"\n[device.d]\ntype = \"blk\"\nblock = \"d\"\n\
                    workers = [\"io0\"]\ntransport = \"vhost-user\"\nsocket = { path = \"d.sock\", mode = \"0660\" }\n";
    let texts = prop::sample::select(vec![good, exported.to_owned()]);
    let purpose = prop::sample::select(vec![Purpose::Run, Purpose::Serve, Purpose::Any]);
    let pieces = ["[", "]", "{", "}", "=", "\"", "\n", ".", ",", "vm", "worker", "-1", "1e9", "nan", "#", "é", "[["];
    let edit = (any::<prop::sample::Index>(), 0..4usize, prop::sample::select(pieces.to_vec()));
    proptest!(|(good in texts, purpose in purpose, edits in prop::collection::vec(edit, 0..6))| {
        let mut text: Vec<char> = good.chars().collect();
        for (index, removed, inserted) in edits {
            let start = index.index(text.len());
            let end = (start + removed).min(text.len());
            text.splice(start..end, inserted.chars());
        }
        bench.said_for(purpose, &text.into_iter().collect::<String>());
    });
}
