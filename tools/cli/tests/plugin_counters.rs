//! `pollux stats` shows what plugins count for themselves, and a plugin that answers with nonsense or not at all costs
//! nobody else anything.
mod common;

use common::{
    Folder, WORKER,
    serving::{PATIENCE, Serving},
};
use pollux_testing::build::c_plugin;
use serde_json::{Value, json};
use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

const PLUGIN: &str = include_str!("fixtures/plugin.c");

/// Serves `disk.img` through `mem`, and beside it a plugin whose `statistics` is this piece of C.
fn serve(folder: &Folder, statistics: &str) -> Serving {
    let silent = "(void)instance; (void)text; return 0;";
    assert!(PLUGIN.contains(silent));
    let source = format!("#include <unistd.h>\n{}", PLUGIN.replace(silent, statistics));
    let plugin = c_plugin("counting", &source);
    let device = |name: &str, block: &str| {
        format!(
            "[device.{name}]\ntype = \"blk\"\nblock = \"{block}\"\nworkers = [\"io0\"]\ntransport = \"vhost-user\"\n\
             socket = \"{name}.sock\"\n"
        )
    };
    let blocks = format!(
        "[block.odd]\nplugin = {plugin:?}\n\
         [block.file]\nplugin = \"mem\"\noptions = {{ path = \"disk.img\" }}\n"
    );
    folder.write("disks.toml", [WORKER, &blocks, &device("blk0", "odd"), &device("blk1", "file")].concat());
    let mut command = folder.command(&["serve", "disks.toml"]);
    command.stderr(Stdio::piped());
    Serving::start(folder, command)
}

/// The counters of a backend, once its plugin was asked.
fn counters(folder: &Folder, served: &Serving, backend: &str) -> Value {
    let start = Instant::now();
    loop {
        let ran = folder.run(&["stats", &served.id().to_string(), "--json"]);
        let numbers: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let found = numbers["backends"].as_array().into_iter().flatten().find(|found| found["backend"] == backend);
        let counters = found.map(|found| found["counters"].clone()).unwrap_or_default();
        if counters.as_object().is_some_and(|counters| !counters.is_empty()) {
            return counters;
        }
        assert!(start.elapsed() < PATIENCE, "{}", ran.stdout);
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_can_be_shown_of_an_answer_is_shown_and_the_rest_is_a_line_in_the_log() {
    let folder = Folder::new();
    let answer = r#"static const char answer[] = "{\"b\": 2, \"\\u001b[31m\": 1, \"a\": 1}"; (void)instance;
        memcpy(text->data, answer, sizeof answer - 1); text->length = sizeof answer - 1; return 0;"#;
    let served = serve(&folder, answer);
    assert_eq!(counters(&folder, &served, "odd"), json!({ "a": 1, "b": 2 }));
    let table = folder.run(&["stats", &served.id().to_string()]).stdout;
    assert!(table.contains("): a 1, b 2\n"), "{table}");
    assert_eq!(counters(&folder, &served, "file"), json!({ "served_by_calls": 0 }));
    let ran = served.stop();
    let lines = ran.stderr.lines().filter(|line| line.contains("answers `statistics` with"));
    assert_eq!((ran.status, lines.count()), (Some(0), 1), "{}", ran.stderr);
}

#[test]
fn a_plugin_that_does_not_answer_holds_up_neither_its_neighbour_nor_the_end() {
    let folder = Folder::new();
    let served = serve(&folder, "(void)instance; (void)text; for (;;) pause(); return 0;");
    assert_eq!(counters(&folder, &served, "file"), json!({ "served_by_calls": 0 }));
    let load = ["bench", "blk1.sock", "--rw", "randrw", "--verify", "-n", "1000", "--warm-up", "0", "-d", "8"];
    let ran = folder.run(&load);
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    let ran = served.stop();
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("does not answer `statistics`: it is left open"), "{}", ran.stderr);
}
