//! Command line, exit status, output streams, JSON.
mod common;

use common::{Folder, VM, WORKER};
use std::process::Stdio;

fn good() -> String {
    format!(
        "{VM}{WORKER}[block.d]\nplugin = \"null\"\n\
         [device.d]\ntype = \"blk\"\nblock = \"d\"\nworkers = [\"io0\"]\nqueues = 2\n"
    )
}

#[test]
fn help_and_version_succeed_on_standard_output() {
    let folder = Folder::new();
    let version = folder.run(&["--version"]);
    assert_eq!((version.status, version.stdout), (Some(0), format!("pollux {}\n", env!("CARGO_PKG_VERSION"))));
    for arguments in [&["--help"][..], &["help"], &["run", "--help"], &["serve", "--help"], &["check", "--help"]] {
        let help = folder.run(arguments);
        assert_eq!((help.status, help.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(help.stdout.contains("Usage: pollux"), "{}", help.stdout);
    }
}

#[test]
fn a_bad_command_line_ends_with_status_2() {
    let folder = Folder::new();
    for arguments in [&[][..], &["chekc"], &["run"], &["check", "--jsn", "vm.toml"], &["check", "-v", "-q", "vm.toml"]]
    {
        let ran = folder.run(arguments);
        assert_eq!((ran.status, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", ran.stderr);
    }
    assert!(folder.run(&["chekc"]).stderr.contains("'check'"), "a suggestion");
    assert!(folder.run(&["check", "--log", "loud", "vm.toml"]).stderr.contains("loud"));
}

#[test]
fn a_good_file_is_summed_up() {
    let folder = Folder::new();
    let ran = folder.check(&good());
    assert_eq!(ran.stdout, "vm.toml: good: 1 vCPU, 64.0 MiB of memory, 1 device with 2 queues, 1 worker\n");
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let quiet = folder.run(&["check", "-q", "vm.toml"]);
    assert_eq!((quiet.status, quiet.stdout.as_str(), quiet.stderr.as_str()), (Some(0), "", ""));
    let verbose = folder.run(&["check", "-v", "vm.toml"]);
    assert!(verbose.stderr.contains("plugin null"), "log lines go to standard error: {}", verbose.stderr);
    assert!(!verbose.stderr.contains('\u{1b}'), "no colours outside of a terminal: {}", verbose.stderr);
    assert_eq!(verbose.stdout, ran.stdout);
}

#[test]
fn quiet_leaves_out_warnings_but_no_errors() {
    let folder = Folder::new();
    let ran = folder.check(&format!("{VM}[block.d]\nplugin = \"null\"\n"));
    assert!(ran.stderr.contains("warning"), "{}", ran.stderr);
    assert_eq!(folder.run(&["check", "-q", "vm.toml"]).stderr, "");
    folder.write("vm.toml", "");
    assert!(folder.run(&["check", "-qq", "vm.toml"]).stderr.contains("error: there is no table [vm]"));
}

#[test]
fn json_has_every_place_and_word() {
    let folder = Folder::new();
    folder.write("vm.toml", good());
    let ran = folder.run(&["check", "--json", "vm.toml"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(json, serde_json::json!({ "file": "vm.toml", "good": true, "diagnostics": [] }));

    folder.write("vm.toml", good().replace("kernel", "kernl"));
    let ran = folder.run(&["check", "--json", "vm.toml"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(2), ""));
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let expected = serde_json::json!({
        "file": "vm.toml",
        "good": false,
        "diagnostics": [{
            "severity": "error",
            "message": "unknown key `kernl` in [vm]",
            "labels": [{ "line": 3, "column": 1, "start": 20, "end": 25, "text": "" }],
            "help": "did you mean `kernel`?",
        }],
    });
    assert_eq!(json, expected);
}

#[test]
fn a_file_that_is_no_configuration_is_named() {
    let folder = Folder::new();
    folder.write("latin1.toml", b"[vm]\n# caf\xe9\n");
    let cases = [
        (
            "none.toml",
            "none.toml: error: cannot read the configuration: No such file or directory (os error 2)\n  \
             help: name the configuration file, such as vm.toml\n",
        ),
        (".", ".: error: cannot read the configuration: Is a directory (os error 21)\n  help: name the file in it\n"),
        ("latin1.toml", "latin1.toml: error: the configuration is not UTF-8 text (line 2)\n  help: save it as UTF-8\n"),
        (
            "/dev/zero",
            "/dev/zero: error: the configuration is longer than 4 MiB\n  \
             help: name a TOML file; disk images go into [block.NAME]\n",
        ),
    ];
    for (file, expected) in cases {
        for command in ["check", "run", "serve"] {
            let ran = folder.run(&[command, file]);
            assert_eq!((ran.status, ran.stderr.as_str()), (Some(2), expected), "{command} {file}");
        }
    }
}

#[test]
fn run_refuses_with_the_words_of_check_and_touches_nothing() {
    let folder = Folder::new();
    let text = good().replace("64M", "64X") + "queue_size = 3\n[net.n0]\n";
    let check = folder.check(&text);
    let run = folder.run(&["run", "vm.toml", "--stats-json", "stats.json"]);
    assert_eq!((run.status, run.stderr), (Some(2), check.stderr));
    assert_eq!(run.stdout, "");
    assert!(!folder.path().join("stats.json").exists());
}

#[test]
fn relative_paths_start_at_the_files_folder() {
    let folder = Folder::new();
    let text = good().replace("plugin = \"null\"", "plugin = \"mem\"\noptions = { path = \"disk.img\" }");
    folder.write("vm.toml", text);
    let file = folder.path().join("vm.toml");
    let ran = folder.command(&["check", &file.to_string_lossy()]).current_dir("/").output().expect("starts");
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn a_closed_output_is_no_reason_to_panic() {
    let folder = Folder::new();
    folder.write("vm.toml", good());
    let mut child = folder.command(&["check", "vm.toml"]).stdout(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
