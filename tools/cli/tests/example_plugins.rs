//! The plugins in `examples/`: each is built outside of the workspace, as its author would build it, and keeps what is
//! written to it through vhost-user.
mod common;

use common::{
    Folder, WORKER,
    serving::{PATIENCE, Serving},
};
use serde_json::Value;
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// The top of the checkout.
fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the checkout")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a build in a folder, which must succeed without a warning.
fn build(command: &mut Command) {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("warning"), "{command:?}: {said}");
}

/// Takes what was built into the folder of a test, and checks that the example keeps its data.
fn verify(folder: &Folder, built: &Path, options: &str) {
    let name = built.file_name().expect("a file").to_str().expect("UTF-8");
    let plugin = folder.path().join(name);
    fs::copy(built, &plugin).expect("a copy");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("permissions");
    folder.write(
        "disks.toml",
        format!(
            "{WORKER}[block.ram]\nplugin = \"./{name}\"\n{options}[device.blk0]\ntype = \"blk\"\nblock = \"ram\"\n\
             workers = [\"io0\"]\ntransport = \"vhost-user\"\nsocket = \"a.sock\"\n"
        ),
    );
    let served = Serving::start(folder, folder.command(&["serve", "disks.toml"]));
    let load = ["--rw", "randrw", "--verify", "-n", "4000", "--warm-up", "0", "-d", "8"];
    let ran = folder.run(&[&["bench", "a.sock"], &load[..]].concat());
    assert_eq!((ran.status, ran.stderr.as_str()), (Some(0), ""), "{}", ran.stdout);
    assert!(ran.stdout.contains("all as they were written"), "{}", ran.stdout);
    counts(folder, &served);
    let ended = served.stop();
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""));
}

/// Waits until the plugin's own counters are shown.
fn counts(folder: &Folder, served: &Serving) {
    let process = served.id().to_string();
    let start = Instant::now();
    loop {
        let ran = folder.run(&["stats", &process, "--json"]);
        let numbers: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let backend = &numbers["backends"][0];
        let counted = |name| backend["counters"][name].as_u64().unwrap_or(0);
        if counted("bytes_read") > 0 && counted("bytes_written") > 0 {
            assert_eq!(backend["backend"], "ram");
            let table = folder.run(&["stats", &process]).stdout;
            assert!(table.contains("\nbackend ram (") && table.contains(": bytes_read "), "{table}");
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{}", ran.stdout);
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_one_in_rust_is_a_package_of_its_own_and_keeps_its_data() {
    let (folder, example) = (Folder::new(), checkout().join("examples/plugin-rust"));
    let copy = folder.path().join("plugin");
    fs::create_dir_all(copy.join("src")).expect("a folder");
    fs::copy(example.join("src/lib.rs"), copy.join("src/lib.rs")).expect("a copy");
    let (manifest, place) = (read(&example.join("Cargo.toml")), "path = \"../../abi\"");
    assert!(manifest.contains(place), "{manifest}");
    let there = format!("path = {:?}", checkout().join("abi"));
    fs::write(copy.join("Cargo.toml"), manifest.replace(place, &there)).expect("a file");
    // The versions that are there already, for builds without a network.
    fs::copy(checkout().join("Cargo.lock"), copy.join("Cargo.lock")).expect("a copy");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example-plugin");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--offline", "--target-dir"]).arg(&target).current_dir(&copy);
    build(&mut cargo);
    verify(&folder, &target.join("debug/libpollux_ramdisk.so"), "options = { size = \"16M\" }\n");
}

#[test]
fn the_one_in_c_is_made_by_its_makefile_and_keeps_its_data() {
    if Command::new("make").arg("--version").output().is_err() {
        println!("SKIPPED: the example in C is not built: there is no make");
        return;
    }
    let (folder, example) = (Folder::new(), checkout().join("examples/plugin-c"));
    let copy = folder.path().join("plugin");
    fs::create_dir(&copy).expect("a folder");
    for file in ["Makefile", "disk.c"] {
        fs::copy(example.join(file), copy.join(file)).expect("a copy");
    }
    build(Command::new("make").arg(format!("POLLUX={}", checkout().display())).current_dir(&copy));
    verify(&folder, &copy.join("libpollux_cdisk.so"), "");
}
