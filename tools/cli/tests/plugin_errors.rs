//! What is said of a plugin that cannot be used. The faulty plugins are one C file, compiled with one fault each.
mod common;

use common::{Folder, VM, WORKER};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

/// Compiles the fixture as `lib.so` in `folder`, with these macros defined. False: this machine has no C compiler.
fn compile(folder: &Folder, macros: &[&str]) -> bool {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wno-unused", "-I"]).arg(format!("{root}/../../abi/include"));
    cc.args(macros.iter().map(|name| format!("-D{name}")));
    cc.arg(format!("{root}/tests/fixtures/plugin.c")).arg("-o").arg(folder.path().join("lib.so"));
    match cc.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(folder.path().join("lib.so"), mode).expect("permissions");
            true
        }
        Err(error) => {
            println!("SKIPPED: no C compiler: cc: {error}");
            false
        }
    }
}

/// A file whose block uses `lib.so` with `options`.
fn file(options: &str) -> String {
    format!(
        "{VM}{WORKER}[device.d]\ntype = \"blk\"\nblock = \"d\"\nworkers = [\"io0\"]\n\
         [block.d]\nplugin = \"./lib.so\"\n{options}"
    )
}

/// Checks what is said of the plugin: the message, at the plugin's name.
fn refuses(folder: &Folder, message: &str) {
    let expected =
        format!("vm.toml:12:10: error: {message}\n  12 | plugin = \"./lib.so\"\n     |          ^^^^^^^^^^\n");
    folder.refuses(&file(""), &expected);
}

#[test]
fn a_plugin_in_c_is_good() {
    let folder = Folder::new();
    if compile(&folder, &[]) {
        folder.warns(&file(""), "");
    }
}

#[test]
fn each_fault_of_a_plugin_has_its_words() {
    let unusable = "plugin FOLDER/lib.so: its descriptor is unusable: ";
    let cases: [(&[&str], String); 11] = [
        (
            &["NO_SYMBOL"],
            "FOLDER/lib.so is a shared library, but not a plugin: it has neither the symbol `pollux_plugin` nor an \
             abi_stable root module (a plugin in Rust ends with `pollux_abi::export_plugin!`)"
                .into(),
        ),
        (&["NO_DESCRIPTOR"], format!("{unusable}`pollux_plugin` returned NULL")),
        (&["OTHER_VERSION"], format!("{unusable}it has version 7, this Pollux reads version 1")),
        (&["NO_INITIALIZE"], format!("{unusable}its function `initialize` is NULL")),
        (&["NO_ARM"], format!("{unusable}function 11 of its table of block/1 is NULL")),
        (&["SMALL_TABLE"], format!("{unusable}its table of block/1 has 64 bytes, 112 are expected")),
        (&["REFUSE_TO_START"], "plugin FOLDER/lib.so refused to start: Permission denied (os error 13)".into()),
        (
            &["INTERFACE=\"block/2\""],
            "plugin FOLDER/lib.so offers block/2, but this Pollux speaks block/1: it is newer than this Pollux: \
             install a newer Pollux"
                .into(),
        ),
        (
            &["INTERFACE=\"block/0\""],
            "plugin FOLDER/lib.so offers block/0, but this Pollux speaks block/1: it is older than this Pollux: \
             rebuild it with this release's pollux-abi"
                .into(),
        ),
        (
            &["INTERFACE=\"net/1\""],
            "plugin FOLDER/lib.so offers net/1, but this Pollux speaks block/1: it is a plugin for something else"
                .into(),
        ),
        (&["ODD_BLOCKS"], "d: the plugin fixture describes an impossible medium: a logical block of 1000 bytes".into()),
    ];
    for (macros, message) in cases {
        let folder = Folder::new();
        if !compile(&folder, macros) {
            return;
        }
        refuses(&folder, &message);
    }
}

#[test]
fn a_file_that_is_no_library_is_no_plugin() {
    let folder = Folder::new();
    let lib = folder.write("lib.so", "#!/bin/sh\n");
    fs::set_permissions(&lib, fs::Permissions::from_mode(0o644)).expect("permissions");
    refuses(&folder, "FOLDER/lib.so is not a plugin, or lacks a library that it needs: file too short");
    fs::remove_file(&lib).expect("removed");
    fs::create_dir(&lib).expect("folder");
    refuses(&folder, "plugin FOLDER/lib.so is not a file but a folder");
}

#[test]
fn a_file_that_others_may_write_is_not_loaded() {
    let folder = Folder::new();
    let lib = folder.write("lib.so", "");
    // Nobody's own, on any system.
    let is_given = std::os::unix::fs::chown(&lib, None, Some(12_345)).is_ok();
    if !is_given {
        println!("SKIPPED: a file that a group may write needs root, who can give one to any group");
    }
    for mode in [0o664, 0o646].into_iter().filter(|&mode| is_given || mode != 0o664) {
        fs::set_permissions(&lib, fs::Permissions::from_mode(mode)).expect("permissions");
        refuses(
            &folder,
            &format!(
                "plugin FOLDER/lib.so may be written by its group or by everyone (mode {mode:o}), who could then run \
                 code as this user: chmod go-w FOLDER/lib.so"
            ),
        );
    }
}

/// The usual umask of a system where each user has a group of its own.
#[test]
fn a_file_that_its_owners_own_group_may_write_is_the_owners() {
    let folder = Folder::new();
    let lib = folder.write("lib.so", "#!/bin/sh\n");
    fs::set_permissions(&lib, fs::Permissions::from_mode(0o664)).expect("permissions");
    let metadata = fs::metadata(&lib).expect("metadata");
    let users = fs::read_to_string("/etc/passwd").expect("users");
    let of_group = users.lines().filter(|line| line.split(':').nth(3) == Some(&*metadata.gid().to_string())).count();
    if of_group != 1 || metadata.uid() != metadata.gid() {
        println!("SKIPPED: this user has no group of its own");
        return;
    }
    refuses(&folder, "FOLDER/lib.so is not a plugin, or lacks a library that it needs: file too short");
}

#[test]
fn a_plugin_that_is_not_there_says_where_it_was_looked_for() {
    let folder = Folder::new();
    let missing = "vm.toml:12:10: error: plugin \"./lib.so\": there is no file FOLDER/./lib.so\n  \
                   12 | plugin = \"./lib.so\"\n     |          ^^^^^^^^^^\n  \
                   help: name an existing file, or a plugin on the plugin path such as \"uring\"\n";
    folder.refuses(&file(""), missing);

    let beside = std::path::Path::new(common::POLLUX).parent().expect("folder").display().to_string();
    let by_name = |name: &str, help: &str| {
        let text = file("").replace("./lib.so", name);
        folder.write("vm.toml", &text);
        let mut command = folder.command(&["check", "vm.toml", "--plugin-path", "mine"]);
        let ran = common::Ran::from(command.env("POLLUX_PLUGIN_PATH", "/e:/f").output().expect("starts"));
        let said = ran.stderr.replace(&*folder.path().to_string_lossy(), "FOLDER");
        let first = said.lines().next().unwrap_or_default();
        let places = format!("FOLDER/mine, /e, /f, {beside}, /usr/lib/pollux/plugins");
        let expected = format!("vm.toml:12:10: error: plugin \"{name}\": there is no libpollux_{name}.so in {places}");
        assert_eq!(first, expected);
        assert!(said.contains(&format!("  help: {help}\n")), "{said}");
    };
    by_name("nul", "did you mean \"null\"?");
    by_name("lib.so", "for a file, write its path with a slash: \"./lib.so\"");
}

#[test]
fn several_blocks_with_one_missing_plugin_are_one_message() {
    let folder = Folder::new();
    let text = file("").replace("./lib.so", "zzz") + "[block.e]\nplugin = \"zzz\"\n";
    let ran = folder.check(&text);
    assert_eq!(ran.stderr.matches("error").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("vm.toml:14:10: note: here too"), "{}", ran.stderr);
}

#[test]
fn the_folders_of_the_plugin_path_are_tried_in_order() {
    let folder = Folder::new();
    let text = file("").replace("./lib.so", "null");
    folder.warns(&text, "");
    fs::create_dir(folder.path().join("mine")).expect("folder");
    folder.write("mine/libpollux_null.so", "no library");
    for option in [&["--plugin-path", "mine"][..], &[]] {
        let mut command = folder.command(&["check", "vm.toml"]);
        command.args(option);
        if option.is_empty() {
            command.env("POLLUX_PLUGIN_PATH", "mine");
        }
        let ran = common::Ran::from(command.output().expect("starts"));
        assert_eq!(ran.status, Some(2));
        assert!(ran.stderr.contains("mine/libpollux_null.so is not a plugin"), "{}", ran.stderr);
    }
}

#[test]
fn what_a_plugin_says_of_its_options_is_shown_at_them() {
    let folder = Folder::new();
    if !compile(&folder, &["REFUSE_TO_OPEN"]) {
        return;
    }
    folder.refuses(
        &file("options = { colour = 1, speed = 400 }\n"),
        "vm.toml:13:25: error: d: `speed` is too high: write one below 100\n  \
         13 | options = { colour = 1, speed = 400 }\n     |                         ^^^^^\n",
    );
    folder.refuses(
        &file("options = { colour = 1 }\n"),
        "vm.toml:13:11: error: d: `speed` is too high: write one below 100\n  \
         13 | options = { colour = 1 }\n     |           ^^^^^^^^^^^^^^\n",
    );
    folder.refuses(
        &file(""),
        "vm.toml:12:10: error: d: `speed` is too high: write one below 100\n  \
         12 | plugin = \"./lib.so\"\n     |          ^^^^^^^^^^\n  \
         help: this block has no `options`; write options = { … } with what the plugin takes\n",
    );
}

#[test]
fn options_of_a_plugin_in_rust_have_their_types() {
    let folder = Folder::new();
    let null = |options: &str| file(options).replace("./lib.so", "null");
    folder.refuses(
        &null("options = { sise = \"1G\" }\n"),
        "vm.toml:13:13: error: d: options.sise: unknown field `sise`, expected `size` or `block_size`\n  \
         13 | options = { sise = \"1G\" }\n     |             ^^^^\n  \
         help: did you mean `size`?\n",
    );
    folder.refuses(
        &null("options.size = \"1 GB\"\n"),
        "vm.toml:13:9: error: d: options.size: `1 GB` is no size: write a number of bytes, or a number with K, M, G or \
         T such as \"512M\"\n  \
         13 | options.size = \"1 GB\"\n     |         ^^^^\n",
    );
}

#[test]
fn a_backend_serves_so_many_queues() {
    let folder = Folder::new();
    if !compile(&folder, &[]) {
        return;
    }
    folder.refuses(
        &file("").replace("type = \"blk\"", "type = \"blk\"\nqueues = 3"),
        "vm.toml:9:10: error: d has 3 queues, but its backend serves 2\n  \
         9 | queues = 3\n    |          ^\n\
         vm.toml:13:10: note: the backend\n  \
         help: write queues = 2 or less\n",
    );
}

#[test]
fn two_blocks_on_one_medium_are_refused_unless_both_only_read() {
    let folder = Folder::new();
    if !compile(&folder, &[]) {
        return;
    }
    let second = "[device.e]\ntype = \"blk\"\nblock = \"e\"\nworkers = [\"io0\"]\n[block.e]\nplugin = \"./lib.so\"\n";
    let text = file("read_only = true\n") + second;
    folder.refuses(
        &text,
        "vm.toml:19:10: error: blocks d and e are the same medium, and devices d and e would not only read it\n  \
         19 | plugin = \"./lib.so\"\n     |          ^^^^^^^^^^\n\
         vm.toml:12:10: note: block d\n  \
         help: give each device a medium of its own, or write read_only = true in both blocks\n",
    );
    folder.warns(&(text + "read_only = true\n"), "");
}
