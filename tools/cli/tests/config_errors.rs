//! Every message about a configuration, word for word: the place, what is wrong, what to write instead.
//!
//! What depends on the host's CPUs and memory is in `core/src/config/tests.rs`, where the host can be chosen.
mod common;

use common::{
    Folder, VM, WORKER,
    cases::{case, refuses},
};

const BLOCK: &str = "[block.disk0]\nplugin = \"null\"\n";
const DEVICE: &str = "[device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\nworkers = [\"io0\"]\n";

#[test]
fn tables_are_known_and_named() {
    refuses(
        VM,
        "",
        &[
            case("[wrker.io0]", "unknown table [wrker]", "wrker", "did you mean [worker]?"),
            case("[net.n0]", "unknown table [net]", "net", "there are [vm], [worker], [block], [device]"),
        ],
    );
    let folder = Folder::new();
    folder
        .refuses("", "vm.toml: error: there is no table [vm]\n  help: add [vm] with `kernel` and `memory` below it\n");
    folder.refuses(
        "vm = 1\n",
        "vm.toml:1:6: error: [vm] must be a table\n  1 | vm = 1\n    |      ^\n  \
         help: write [vm] and its keys below it\n",
    );
    folder.refuses(
        &format!("memory = 1\n{VM}"),
        "vm.toml:1:1: error: `memory` belongs to no table\n  1 | memory = 1\n    | ^^^^^^\n  \
         help: write it below a table such as [vm]\n",
    );
    folder.refuses(
        &format!("{VM}[worker]\ncpu = 0\n"),
        "vm.toml:5:1: error: [worker] has no name, so `cpu` belongs to nothing\n  5 | cpu = 0\n    | ^^^\n  \
         help: write [worker.io0] above it\n",
    );
    folder.refuses(
        &format!("{VM}[[device]]\ntype = \"blk\"\n"),
        "vm.toml:4:1: error: [device] holds tables that have names\n  4 | [[device]]\n    | ^^^^^^^^^^\n  \
         help: write [device.blk0]\n",
    );
}

#[test]
fn names_are_short_and_plain() {
    let help = "use 1 to 20 of the characters A-Z, a-z, 0-9, - and _";
    refuses(
        &format!("{VM}{WORKER}{DEVICE}"),
        "plugin = \"null\"\n[block.disk0]\nplugin = \"null\"\n",
        &[
            case("[block.\"a b\"]", "\"a b\" cannot be a name", "\"a b\"", help),
            case("[block.\"\"]", "\"\" cannot be a name", "\"\"", help),
            case("[block.\"é\"]", "\"é\" cannot be a name", "\"é\"", help),
            case(
                "[block.a12345678901234567890]",
                "\"a12345678901234567890\" cannot be a name",
                "a12345678901234567890",
                help,
            ),
        ],
    );
}

#[test]
fn text_that_is_not_toml_is_shown() {
    let folder = Folder::new();
    folder.refuses(
        &format!("{VM}cpus =\ncmdline = quiet\n"),
        "vm.toml:4:7: error: there is no value\n  4 | cpus =\n    |       ^\n  help: write one after the equals sign\n\
         vm.toml:5:11: error: this string is not in quotes\n  5 | cmdline = quiet\n    |           ^^^^^\n  \
         help: write \"quiet\"\n",
    );
    folder.refuses(
        &format!("{VM}cmdline = \"abc\n"),
        "vm.toml:4:15: error: this is not TOML: invalid basic string, expected `\"`\n  4 | cmdline \
         = \"abc\n    |               ^\n  help: write key = value, with strings in \"quotes\", or [table]\n",
    );
    for (line, key) in [("memory = \"2G\"", "memory"), ("[vm]", "vm")] {
        let ran = folder.check(&format!("{VM}{line}\n"));
        let column = line.find(key).map_or(0, |at| at + 1);
        assert!(
            ran.stderr.starts_with(&format!("vm.toml:4:{column}: error: `{key}` is there twice\n")),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.ends_with("again\n  help: keep one of the two, or choose another name\n"), "{}", ran.stderr);
    }
}

#[test]
fn vm_has_its_keys() {
    refuses(
        VM,
        "",
        &[
            case("cpu = 2", "unknown key `cpu` in [vm]", "cpu", "did you mean `cpus`?"),
            case(
                "disks = 2",
                "unknown key `disks` in [vm]",
                "disks",
                "there are `cpus`, `memory`, `kernel`, `initrd`, `cmdline`, `console`, `reboot`",
            ),
            case("cpus = \"2\"", "`cpus` must be a whole number, not a string", "\"2\"", "write cpus = 2"),
            case("cpus = 1.5", "`cpus` must be a whole number, not a number with a point", "1.5", "write cpus = 2"),
            case("cpus = -1", "`cpus` cannot be negative", "-1", "write cpus = 2"),
            case("cpus = 99999999999999999999", "`cpus` cannot be so large", "99999999999999999999", "write cpus = 2"),
            case("cpus = 0", "a machine cannot have 0 vCPUs", "0", "write a number from 1 to 254"),
            case("cpus = 255", "a machine cannot have 255 vCPUs", "255", "write a number from 1 to 254"),
            case("cpus = {}", "`cpus` needs the key `count`", "{}", "write cpus = { count = 2, pin = [4, 5] }"),
            case("cpus = { count = 2, pin = 0 }", "`pin` must be an array, not a number", "0", "write pin = [0]"),
            case("cpus = { pin = [\"0\"] }", "each of `pin` must be a whole number, not a string", "\"0\"", "write 0"),
            case(
                "cpus = { number = 2, count = 1 }",
                "unknown key `number` in `cpus`",
                "number",
                "there are `count`, `pin`",
            ),
            case("cmdline = 5", "`cmdline` must be a string, not a number", "5", "write cmdline = \"5\""),
            case(
                "cmdline = \"a\\u0000\"",
                "the command line has a control character in it",
                "\"a\\u0000\"",
                "write it in one line",
            ),
            case(
                "console = \"trminal\"",
                "`console` cannot be \"trminal\"",
                "\"trminal\"",
                "did you mean \"terminal\"?",
            ),
            case(
                "console = true",
                "`console` must be a string, not a boolean",
                "true",
                "write \"terminal\", \"stdout\" or \"off\"",
            ),
            case("console = {}", "`console` needs the key `file`", "{}", "add file = \"console.log\""),
            case(
                "console = { file = \"/none/x\" }",
                "cannot write the console to /none/x: there is no folder /none",
                "\"/none/x\"",
                "name a file in a folder that exists",
            ),
            case("reboot = \"never\"", "`reboot` cannot be \"never\"", "\"never\"", "write \"restart\" or \"exit\""),
            case(
                "initrd = \"none.img\"",
                "cannot use the initrd FOLDER/none.img: no such file or directory",
                "\"none.img\"",
                "name an initial RAM disk such as /boot/initrd.img, or leave `initrd` out",
            ),
        ],
    );
}

#[test]
fn memory_is_a_size() {
    let write = "write a whole number of bytes or one with K, M, G or T, such as memory = \"1G\"";
    refuses(
        "[vm]\nkernel = \"vmlinuz\"\n",
        "",
        &[
            case(
                "memory = \"512 MiB\"",
                "`memory` is no size: \"512 MiB\"",
                "\"512 MiB\"",
                "write \"512M\"; K, M, G and T are binary units",
            ),
            case(
                "memory = \"1g\"",
                "`memory` is no size: \"1g\"",
                "\"1g\"",
                "write \"1G\"; K, M, G and T are binary units",
            ),
            case("memory = \"much\"", "`memory` is no size: \"much\"", "\"much\"", write),
            case("memory = \"1.5G\"", "`memory` is no size: \"1.5G\"", "\"1.5G\"", write),
            case("memory = -1", "`memory` cannot be negative", "-1", "write memory = \"1G\""),
            case("memory = [1]", "`memory` must be a size, not an array", "[1]", "write memory = \"1G\""),
            case(
                "memory = 1000000",
                "1000000 bytes are too little memory for a machine",
                "1000000",
                "write at least \"4M\"",
            ),
            case(
                "memory = { hugepages = \"2M\" }",
                "`memory` needs the key `size`",
                "{ hugepages = \"2M\" }",
                "add size = \"1G\"",
            ),
            case("memory = { sise = \"1G\" }", "unknown key `sise` in `memory`", "sise", "did you mean `size`?"),
        ],
    );
}

#[test]
fn keys_that_must_be_there_are_missed_at_the_table() {
    let folder = Folder::new();
    folder.refuses(
        "[vm]\n",
        "vm.toml:1:1: error: [vm] needs the key `memory`\n  1 | [vm]\n    | ^^^^\n  help: add memory = \"1G\"\n\
         vm.toml:1:1: error: [vm] needs the key `kernel`\n  1 | [vm]\n    | ^^^^\n  help: add kernel = \"vmlinuz\"\n",
    );
    folder.refuses(
        &format!("{VM}[device.blk0]\n"),
        "vm.toml:4:1: error: [device.blk0] needs the key `type`\n  4 | [device.blk0]\n    | ^^^^^^^^^^^^^\n  \
         help: add type = \"blk\"\n",
    );
    folder.refuses(
        &format!("{VM}[block.disk0]\n"),
        "vm.toml:4:1: error: [block.disk0] needs the key `plugin`\n  4 | [block.disk0]\n    | ^^^^^^^^^^^^^\n  \
         help: add plugin = \"uring\"\n",
    );
}

#[test]
fn a_misspelt_key_is_one_message() {
    refuses(
        "[vm]\nmemory = \"64M\"\n",
        "",
        &[case("kernal = \"vmlinuz\"", "unknown key `kernal` in [vm]", "kernal", "did you mean `kernel`?")],
    );
}

#[test]
fn workers_have_their_keys() {
    refuses(
        &format!("{VM}{BLOCK}{DEVICE}[worker.io0]\n"),
        "",
        &[
            case("core = 0", "unknown key `core` in [worker.io0]", "core", "there are `cpu`, `idle`"),
            case("idle = \"adaptiv\"", "`idle` cannot be \"adaptiv\"", "\"adaptiv\"", "did you mean \"adaptive\"?"),
            case(
                "idle = \"busy\"",
                "`idle` cannot be \"busy\"",
                "\"busy\"",
                "write \"spin\", \"adaptive\" or \"interrupt\"",
            ),
            case("idle = \"interupt\"", "`idle` cannot be \"interupt\"", "\"interupt\"", "did you mean \"interrupt\"?"),
        ],
    );
    let ran = Folder::new().check(&format!("{VM}{BLOCK}{DEVICE}[worker.io0]\ncpu = 100000\n"));
    let words = "vm.toml:11:7: error: there is no CPU 100000 on this host\n";
    assert!(ran.stderr.starts_with(words), "{}", ran.stderr);
    assert!(ran.stderr.contains("  help: CPUs are counted from 0; write one of 0"), "{}", ran.stderr);
}

#[test]
fn blocks_have_their_keys() {
    refuses(
        &format!("{VM}{WORKER}{DEVICE}{BLOCK}"),
        "",
        &[
            case("readonly = true", "unknown key `readonly` in [block.disk0]", "readonly", "did you mean `read_only`?"),
            case(
                "path = \"disk.img\"",
                "unknown key `path` in [block.disk0]",
                "path",
                "there are `plugin`, `options`, `read_only`; what the plugin takes goes into options = { … }",
            ),
            case(
                "read_only = \"true\"",
                "`read_only` must be true or false, not a string",
                "\"true\"",
                "write read_only = true",
            ),
            case("read_only = 1", "`read_only` must be true or false, not a number", "1", "write read_only = true"),
            case("options = \"x\"", "`options` must be a table", "\"x\"", "write options = { path = \"disk.img\" }"),
            case("options.rate = [1, nan]", "plugins cannot be given nan", "nan", "write another number"),
            case(
                "options.rate = 99999999999999999999",
                "plugins cannot be given 99999999999999999999, which has more than 64 bits",
                "99999999999999999999",
                "write another number",
            ),
        ],
    );
}

#[test]
fn devices_have_their_keys() {
    refuses(
        &format!("{VM}{WORKER}{BLOCK}{DEVICE}"),
        "",
        &[
            case("worker = \"io0\"", "unknown key `worker` in [device.blk0]", "worker", "did you mean `workers`?"),
            case("queues = 0", "a device cannot have 0 queues", "0", "write a number from 1 to 64"),
            case("queues = 65", "a device cannot have 65 queues", "65", "write a number from 1 to 64"),
            case(
                "queue_size = 100",
                "a queue cannot have 100 entries",
                "100",
                "write a power of two from 4 to 32768, such as 128",
            ),
            case(
                "queue_size = 65536",
                "a queue cannot have 65536 entries",
                "65536",
                "write a power of two from 4 to 32768, such as 32768",
            ),
            case(
                "serial = \"123456789012345678901\"",
                "the guest could not read this serial number",
                "\"123456789012345678901\"",
                "write at most 20 characters of ASCII",
            ),
            case(
                "serial = \"é\"",
                "the guest could not read this serial number",
                "\"é\"",
                "write at most 20 characters of ASCII",
            ),
            case("transport = \"PCI\"", "`transport` cannot be \"PCI\"", "\"PCI\"", "did you mean \"pci\"?"),
            case("transport = \"usb\"", "`transport` cannot be \"usb\"", "\"usb\"", "write \"pci\" or \"mmio\""),
            case(
                "transport = \"vhost-user\"",
                "the transport \"vhost-user\" is not offered by `pollux run`",
                "\"vhost-user\"",
                "write \"pci\" or \"mmio\"; or start it with `pollux serve` from a file without [vm]",
            ),
            case(
                "socket = \"/run/x.sock\"",
                "`socket` does not go without transport = \"vhost-user\"",
                "\"/run/x.sock\"",
                "remove it; sockets are for devices that `pollux serve` starts from a file without [vm]",
            ),
            case(
                "latency_sample = 4294967296",
                "`latency_sample` is too large",
                "4294967296",
                "write a smaller number, or 0 for no measurement",
            ),
        ],
    );
    let all = "write \"off\", \"adaptive\" or { count = 32, time_us = 50 }";
    refuses(
        &format!("{VM}{WORKER}{BLOCK}{DEVICE}"),
        "",
        &[
            case(
                "coalesce = \"adaptve\"",
                "`coalesce` cannot be \"adaptve\"",
                "\"adaptve\"",
                "did you mean \"adaptive\"?",
            ),
            case("coalesce = \"max\"", "`coalesce` cannot be \"max\"", "\"max\"", all),
            case("coalesce = 32", "`coalesce` must be a string or a table, not a number", "32", all),
            case("coalesce = false", "`coalesce` must be a string or a table, not a boolean", "false", all),
            case(
                "coalesce = { count = 0, time_us = 50 }",
                "an interrupt cannot be held for 0 requests",
                "0",
                "write a number from 1 to 32768, or coalesce = \"off\"",
            ),
            case(
                "coalesce = { count = 32769, time_us = 50 }",
                "an interrupt cannot be held for 32769 requests",
                "32769",
                "write a number from 1 to 32768, or coalesce = \"off\"",
            ),
            case(
                "coalesce = { count = 32, time_us = 0 }",
                "an interrupt cannot be held for 0 µs",
                "0",
                "write a number from 1 to 1000000, or coalesce = \"off\"",
            ),
            case(
                "coalesce = { count = 32, time_us = 1000001 }",
                "an interrupt cannot be held for 1000001 µs",
                "1000001",
                "write a number from 1 to 1000000, or coalesce = \"off\"",
            ),
            case(
                "coalesce = { count = 32, time_us = \"50\" }",
                "`time_us` must be a whole number, not a string",
                "\"50\"",
                "write time_us = 50",
            ),
            case("coalesce = { count = -1, time_us = 50 }", "`count` cannot be negative", "-1", "write count = 32"),
            case(
                "coalesce = { count = 32 }",
                "`coalesce` needs the key `time_us`",
                "{ count = 32 }",
                "add time_us = 50",
            ),
            case(
                "coalesce = { count = 32, time = 50, time_us = 50 }",
                "unknown key `time` in `coalesce`",
                "time",
                "did you mean `time_us`?",
            ),
        ],
    );
    refuses(
        &format!("{VM}{WORKER}{BLOCK}[device.blk0]\n"),
        "",
        &[case("type = \"net\"", "there is no device type \"net\"", "\"net\"", "write \"blk\"")],
    );
}

#[test]
fn a_device_names_workers_that_there_are() {
    refuses(
        &format!("{VM}{WORKER}{BLOCK}[device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\n"),
        "",
        &[
            case(
                "workers = \"io0\"",
                "`workers` must be an array, not a string",
                "\"io0\"",
                "write workers = [\"io0\"]",
            ),
            case("workers = [0]", "each of `workers` must be a string, not a number", "0", "write \"0\""),
            case(
                "workers = []",
                "[device.blk0] has no worker to serve it",
                "[]",
                "name at least one: workers = [\"io0\"]",
            ),
            case("workers = [\"io1\"]", "there is no [worker.io1]", "\"io1\"", "did you mean \"io0\"?"),
            case("workers = [\"fast\"]", "there is no [worker.fast]", "\"fast\"", "add a table [worker.fast]"),
        ],
    );
    Folder::new().refuses(
        &format!("{VM}{WORKER}{BLOCK}[device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\nworkers = [\"io0\", \"io0\"]\n"),
        "vm.toml:12:19: error: worker io0 is named twice\n  12 | workers = [\"io0\", \"io0\"]\n     \
         |                   ^^^^^ again\n\
         vm.toml:12:12: note: first here\n  \
         help: name it once: queues are dealt out to the workers in turn\n",
    );
}

#[test]
fn a_device_names_a_block_of_its_own() {
    let device = "[device.blk0]\ntype = \"blk\"\nworkers = [\"io0\"]\n";
    refuses(
        &format!("{VM}{WORKER}{BLOCK}{device}"),
        "",
        &[
            case("block = \"disk1\"", "there is no [block.disk1]", "\"disk1\"", "did you mean \"disk0\"?"),
            case("block = \"root\"", "there is no [block.root]", "\"root\"", "add a table [block.root]"),
        ],
    );
    let folder = Folder::new();
    let two = format!("{VM}{WORKER}{DEVICE}{}{BLOCK}", DEVICE.replace("blk0", "blk1"));
    folder.refuses(
        &two,
        "vm.toml:13:9: error: blk0 and blk1 would both write to block disk0\n  13 | block = \"disk0\"\n     \
         |         ^^^^^^^\n\
         vm.toml:9:9: note: used here already\n  \
         help: give each device a block of its own, or write read_only = true in [block.disk0]\n",
    );
    folder.warns(&format!("{two}read_only = true\n"), "");
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let ran = Folder::new().check(&format!(
        "{VM}cpu = 1\n[worker.io0]\ncpu = \"0\"\nidel = \"spin\"\n[block.disk0]\noptions = {{}}\n\
         [device.blk0]\ntype = \"blk\"\nblock = \"disk1\"\nworkers = [\"io1\"]\nqueues = 0\n[nett.n0]\n"
    ));
    let lines: Vec<&str> = ran
        .stderr
        .lines()
        .filter(|line| line.contains(": error: "))
        .map(|line| line.split(':').nth(1).unwrap_or_default())
        .collect();
    assert_eq!(lines, ["4", "6", "7", "8", "12", "13", "14", "15"], "{}", ran.stderr);
}

#[test]
fn what_is_left_over_is_a_warning() {
    Folder::new().warns(
        &format!("{VM}{WORKER}{BLOCK}[worker.io1]\nidle = \"adaptive\"\n{DEVICE}[block.disk1]\nplugin = \"null\"\n")
            .replace("[\"io0\"]", "[\"io0\", \"io1\"]"),
        "vm.toml:14:19: warning: worker io1 gets none of the 1 queue of blk0\n  14 | workers = \
         [\"io0\", \"io1\"]\n     |                   ^^^^^\n  \
         help: write queues = 2, or name fewer workers\n\
         vm.toml:15:8: warning: no device uses block disk1\n  15 | [block.disk1]\n     |        ^^^^^\n  \
         help: write block = \"disk1\" in a device, or remove it\n",
    );
    Folder::new().warns(
        &format!("{VM}[worker.io0]\n"),
        "vm.toml:4:9: warning: worker io0 spins on whichever CPU the scheduler picks\n  4 | [worker.io0]\n    \
         |         ^^^\n  \
         help: give it a CPU of its own with cpu = N, or write idle = \"adaptive\"\n\
         vm.toml:4:9: warning: worker io0 serves no device\n  4 | [worker.io0]\n    |         ^^^\n  \
         help: write workers = [\"io0\"] in a device, or remove it\n",
    );
}
