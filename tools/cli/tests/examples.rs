//! The configurations in `examples/` and in the documents: each is good, once the files that it names are there.
mod common;

use common::Folder;
use pollux_core::config::Host;
use std::{fs, path::Path};

/// File name and text of each file of this kind in a folder of the checkout.
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let paths = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let paths = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    let mut files: Vec<(String, String)> = paths
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

fn examples() -> Vec<(String, String)> {
    files("examples", "toml")
}

/// Makes the images that an example names. A kernel called `vmlinuz` is in each test's folder already.
fn make_images(folder: &Folder, text: &str) {
    for name in text.split('"').filter(|word| word.ends_with(".img")) {
        folder.write(name, vec![0; 1 << 20]);
    }
}

/// The example for this host. On one that has all the CPUs that it names, nothing is changed; elsewhere, workers whose
/// CPU is missing sleep when they are idle, and vCPUs are not pinned.
fn on_this_host(text: &str, usable: &[usize]) -> String {
    let is_there = |cpu: &str| cpu.trim().parse().is_ok_and(|cpu: usize| usable.contains(&cpu));
    let mut adapted = String::new();
    for line in text.lines() {
        let pins = line.split_once("pin = [").and_then(|(_, pins)| pins.split_once(']'));
        adapted += &match (line.strip_prefix("cpu = "), pins) {
            (Some(cpu), _) if !is_there(cpu) => "idle = \"adaptive\"".to_owned(),
            (_, Some((pins, _))) if !pins.split(',').all(is_there) => line.replace(&format!(", pin = [{pins}]"), ""),
            _ => line.to_owned(),
        };
        adapted.push('\n');
    }
    adapted
}

#[test]
fn every_example_is_good_and_has_no_warning() {
    let examples = examples();
    assert!(examples.len() >= 5, "the examples are where they are looked for: {examples:?}");
    let usable = Host::probe().cpus_usable;
    for (name, text) in examples {
        let folder = Folder::new();
        make_images(&folder, &text);
        folder.write(&name, on_this_host(&text, &usable));
        let ran = folder.run(&["check", &name]);
        assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(ran.stdout.starts_with(&format!("{name}: good: ")), "{}", ran.stdout);
    }
}

#[test]
fn the_commands_in_the_examples_name_their_own_files() {
    for (name, text) in examples() {
        let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   pollux ")).collect();
        let starts = ["run ", "serve ", "bench "].map(|verb| format!("{verb}{name}"));
        assert!(
            commands.iter().any(|command| starts.iter().any(|start| command.starts_with(start))),
            "{name} says how it is started: {commands:?}"
        );
    }
}

#[test]
fn every_configuration_in_the_documents_is_good() {
    let usable = Host::probe().cpus_usable;
    let mut count = 0;
    for (name, document) in files(".", "md").into_iter().chain(files("docs", "md")) {
        for text in document.split("```toml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)) {
            // What a test's host need not have.
            let hosts = [", hugepages = \"2M\"", ", group = \"kvm\"", "/run/pollux/"];
            let text = hosts.iter().fold(on_this_host(text, &usable), |text, word| text.replace(word, ""));
            let folder = Folder::new();
            make_images(&folder, &text);
            let ran = folder.check(&text);
            assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{name}:\n{text}");
            count += 1;
        }
    }
    assert!(count >= 2, "the documents show configurations: {count}");
}
