//! Every message about a configuration for `pollux serve`, word for word.
mod common;

use common::{
    Folder, VM, WORKER,
    cases::{case, refuses},
};
use std::fs;

const BLOCK: &str = "[block.disk0]\nplugin = \"null\"\n";
const DEVICE: &str =
    "[device.blk0]\ntype = \"blk\"\nblock = \"disk0\"\nworkers = [\"io0\"]\ntransport = \"vhost-user\"\n";

fn before() -> String {
    format!("{WORKER}{BLOCK}{DEVICE}")
}

#[test]
fn a_socket_is_a_path_or_a_table() {
    let a_mode = "write permissions as chmod takes them, such as \"0660\"";
    refuses(
        &before(),
        "",
        &[
            case("socket = 5", "`socket` must be a string, not a number", "5", "write socket = \"5\""),
            case("socket = {}", "`socket` needs the key `path`", "{}", "add path = \"/run/pollux/blk0.sock\""),
            case(
                "socket = { path = \"a\", user = \"root\" }",
                "unknown key `user` in `socket`",
                "user",
                "there are `path`, `mode`, `owner`, `group`, `memory_files`",
            ),
            case(
                "socket = { path = \"a\", mode = 660 }",
                "`mode` must be a string of octal digits",
                "660",
                "write mode = \"0660\"",
            ),
            case(
                "socket = { path = \"a\", mode = true }",
                "`mode` must be a string of octal digits",
                "true",
                "write mode = \"0660\"",
            ),
            case("socket = { path = \"a\", mode = \"rw\" }", "`mode` cannot be \"rw\"", "\"rw\"", a_mode),
            case("socket = { path = \"a\", mode = \"0690\" }", "`mode` cannot be \"0690\"", "\"0690\"", a_mode),
            case("socket = { path = \"a\", mode = \"4660\" }", "`mode` cannot be \"4660\"", "\"4660\"", a_mode),
            case("socket = { path = \"a\", mode = \"66\" }", "`mode` cannot be \"66\"", "\"66\"", a_mode),
        ],
    );
}

#[test]
fn owner_and_group_are_there() {
    refuses(
        &before(),
        "",
        &[
            case(
                "socket = { path = \"a\", owner = \"no-such-user\" }",
                "there is no user \"no-such-user\"",
                "\"no-such-user\"",
                "write the name of a user on this host, or its number",
            ),
            case(
                "socket = { path = \"a\", group = \"no-such-group\" }",
                "there is no group \"no-such-group\"",
                "\"no-such-group\"",
                "write the name of a group on this host, or its number",
            ),
            case(
                "socket = { path = \"a\", owner = \"107\" }",
                "there is no user \"107\"",
                "\"107\"",
                "write owner = 107, or the name of a user",
            ),
            case(
                "socket = { path = \"a\", group = 4294967295 }",
                "there is no group 4294967295",
                "4294967295",
                "write the name of a group, or its number",
            ),
            case("socket = { path = \"a\", owner = -1 }", "`owner` cannot be negative", "-1", "write owner = \"qemu\""),
            case(
                "socket = { path = \"a\", owner = [] }",
                "`owner` must be a string, not an array",
                "[]",
                "write owner = \"qemu\"",
            ),
        ],
    );
}

#[test]
fn a_socket_can_be_made_where_it_is_wanted() {
    refuses(
        &before(),
        "",
        &[
            case(
                "socket = \"/none/a.sock\"",
                "cannot make the socket /none/a.sock: there is no folder /none",
                "\"/none/a.sock\"",
                "make it: mkdir -p /none",
            ),
            case(
                "socket = { path = \"disk.img\" }",
                "cannot make the socket FOLDER/disk.img: something is there that is no socket",
                "\"disk.img\"",
                "remove it, or choose another path",
            ),
            case("socket = \"/tmp\"", "cannot make the socket /tmp: it is a folder", "\"/tmp\"", "name a file in it"),
            case(
                "socket = \"/tmp/123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 \
                 123456789 123456789 123\"",
                "cannot make the socket /tmp/123456789 123456789 123456789 123456789 123456789 123456789 123456789 \
                 123456789 123456789 123456789 123: the path has 108 bytes, and sockets have room for 107",
                "\"/tmp/123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 123456789 \
                 123456789 123\"",
                "write a shorter path, such as one in /run/pollux",
            ),
        ],
    );
}

#[test]
fn every_device_has_a_transport_and_a_socket_of_its_own() {
    let folder = Folder::new();
    folder.refuses(
        &before(),
        "vm.toml:6:1: error: [device.blk0] needs the key `socket`\n  6 | [device.blk0]\n    | ^^^^^^^^^^^^^\n  \
         help: add socket = \"/run/pollux/blk0.sock\"\n",
    );
    let second = DEVICE.replace("blk0", "blk1").replace("transport = \"vhost-user\"\n", "");
    let text = format!("{}socket = \"a\"\n{second}", before()).replace(BLOCK, &format!("{BLOCK}read_only = true\n"));
    folder.refuses(
        &format!("{text}socket = \"b\"\n"),
        "vm.toml:13:1: error: [device.blk1] needs the key `transport`\n  13 | [device.blk1]\n     \
         | ^^^^^^^^^^^^^\n  help: add transport = \"vhost-user\"\n",
    );
    let after = |line: &str| format!("{text}{line}\n");
    folder.refuses(
        &after("transport = \"pci\""),
        "vm.toml:17:13: error: the transport \"pci\" is not offered by `pollux serve`\n  \
         17 | transport = \"pci\"\n     |             ^^^^^\n  \
         help: write \"vhost-user\" and a socket; or add [vm] and start it with `pollux run`\n",
    );
    folder.refuses(
        &after("socket = \"b\"\ntransport = \"vhost\""),
        "vm.toml:18:13: error: `transport` cannot be \"vhost\"\n  18 | transport = \"vhost\"\n     \
         |             ^^^^^^^\n  help: did you mean \"vhost-user\"?\n",
    );
    folder.refuses(
        &after("transport = \"vhost-user\"\nsocket = { path = \"./a\" }"),
        "vm.toml:18:19: error: blk0 and blk1 have the same socket\n  18 | socket = { path = \"./a\" }\n     \
         |                   ^^^^^\n\
         vm.toml:12:10: note: used here already\n  \
         help: give each device a socket of its own\n",
    );
}

#[test]
fn run_and_serve_refuse_each_others_files() {
    let folder = Folder::new();
    let said = |command: &str, text: &str| {
        folder.write("vm.toml", text);
        let ran = folder.run(&[command, "vm.toml"]);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(2), ""), "{}", ran.stderr);
        ran.stderr
    };
    let exports = format!("{}socket = \"a\"\n", before());
    assert_eq!(
        said("run", &exports),
        "vm.toml: error: this file describes devices to serve and no machine to run\n  \
         help: start it with `pollux serve`, or add [vm] and let the devices have the transport \"pci\"\n"
    );
    assert_eq!(
        said("serve", VM),
        "vm.toml:1:1: error: `pollux serve` starts no machine, but there is a [vm]\n  1 | [vm]\n    | ^^^^\n  \
         help: start the machine with `pollux run`; or, for the machines of other programs, remove [vm] and write \
         transport = \"vhost-user\" in the devices\n"
    );
    assert_eq!(
        said("serve", &format!("{VM}{exports}")),
        "vm.toml:1:1: error: `pollux serve` starts no machine, but there is a [vm]\n  1 | [vm]\n    | ^^^^\n  \
         help: remove [vm]: devices are served to the machines of other programs\n"
    );
    assert_eq!(
        said("serve", ""),
        "vm.toml: error: there is no device to serve\n  \
         help: add [device.blk0] with transport = \"vhost-user\" and socket = \"/run/pollux/blk0.sock\"\n"
    );
    assert!(!folder.path().join("a").exists(), "nothing was made");
}

#[test]
fn check_sums_up_what_is_served() {
    let folder = Folder::new();
    let ran = folder.check(&format!("{}socket = \"a\"\nqueues = 2\n", before()));
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.stdout, "vm.toml: good: 1 device with 2 queues to serve, 1 worker\n");
    assert!(fs::symlink_metadata(folder.path().join("a")).is_err(), "nothing was made");
}
