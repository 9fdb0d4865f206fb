//! Plugins that were compiled long ago load in the host of today and serve its guests: the files in
//! `abi/tests/old-plugins`, each as its entry in the manifest there says.
use pollux_abi::block_v1::{
    POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_READ, POLLUX_BLOCK_WRITE, POLLUX_BLOCK_WRITE_ZEROES,
};
use pollux_core::{
    plugin::{BlockBackend, OpenOptions, Plugin},
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_driver::RingKind;
use pollux_testing::{
    blk::{Cut, DISCARD, FLUSH, IN, OK, OUT, WRITE_ZEROES, pattern},
    rig::Guest,
};
use serde::Deserialize;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

#[derive(Deserialize)]
struct Manifest {
    plugin: Vec<Entry>,
}

/// What the manifest says of one file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: String,
    sha256: String,
    name: String,
    version: String,
    interface: String,
    door: String,
    options: String,
    operations: Vec<String>,
    revision: String,
    compiler: String,
    built: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../abi/tests/old-plugins")
}

fn manifest() -> Vec<Entry> {
    let text = fs::read_to_string(folder().join("manifest.toml")).expect("the manifest");
    toml::from_str::<Manifest>(&text).expect("a manifest").plugin
}

/// A copy that only its owner may write, whatever the umask of the checkout was: others are refused.
fn protected_copy(entry: &Entry, folder: &Path) -> PathBuf {
    let copy = folder.join(&entry.file);
    fs::copy(self::folder().join(&entry.file), &copy).expect("a copy");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("permissions");
    copy
}

fn open(entry: &Entry, file: &Path) -> Arc<BlockBackend> {
    let plugin = Plugin::load(file).unwrap_or_else(|error| panic!("{}: {error}", entry.file));
    assert_eq!((plugin.name(), plugin.version()), (entry.name.as_str(), entry.version.as_str()));
    let options = OpenOptions { json: entry.options.clone(), ..OpenOptions::default() };
    BlockBackend::open(&plugin, "disk0", &options).unwrap_or_else(|error| panic!("{}: {error}", entry.file))
}

fn operation(name: &str) -> u32 {
    match name {
        "read" => POLLUX_BLOCK_READ,
        "write" => POLLUX_BLOCK_WRITE,
        "flush" => POLLUX_BLOCK_FLUSH,
        "discard" => POLLUX_BLOCK_DISCARD,
        "write_zeroes" => POLLUX_BLOCK_WRITE_ZEROES,
        other => panic!("the manifest names an operation {other}"),
    }
}

#[test]
fn the_files_are_those_that_were_compiled_then() {
    let entries = manifest();
    for entry in &entries {
        let output = Command::new("sha256sum").arg(folder().join(&entry.file)).output().expect("sha256sum");
        let sum = String::from_utf8_lossy(&output.stdout);
        assert!(sum.starts_with(&entry.sha256), "{}: {sum}, not {}", entry.file, entry.sha256);
        assert_eq!(entry.interface, "block/1");
        assert_eq!(entry.revision.len(), 40, "{}: a whole revision", entry.file);
        assert!(!entry.compiler.is_empty() && !entry.built.is_empty(), "{}: how it was built", entry.file);
    }
    let found = fs::read_dir(folder()).expect("the folder").flatten();
    let libraries = found.filter(|file| file.path().extension().is_some_and(|ending| ending == "so")).count();
    assert_eq!(libraries, entries.len(), "a library without an entry");
    for door in ["abi_stable", "C"] {
        assert!(entries.iter().any(|entry| entry.door == door), "none comes in by the {door} door");
    }
}

#[test]
fn old_plugins_serve_guests_on_both_kinds_of_ring() {
    let copies = tempfile::tempdir().expect("a folder");
    let entries = manifest();
    let files: Vec<PathBuf> = entries.iter().map(|entry| protected_copy(entry, copies.path())).collect();
    let each = entries.iter().zip(&files);
    for ((entry, file), kind) in each.flat_map(|each| RingKind::BOTH.map(|kind| (each, kind))) {
        let backend = open(entry, file);
        let offered = backend.info().operations;
        let told = entry.operations.iter().fold(0, |bits, name| bits | 1 << operation(name));
        assert_eq!(offered, told, "{}: the operations that it offers", entry.file);
        let worker = Worker::spawn("old", None, IdlePolicy::Adaptive).expect("a worker");
        let mut guest = Guest::with_rings(kind, "disk0", backend, 1, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "{}", entry.file);
        serves(&mut guest, offered);
        // Twice: the second start finds the data of the first.
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "{}: again", entry.file);
        assert!(read(&mut guest, 64) == pattern(64, 4096), "{}: after a reset", entry.file);
    }
}

/// Writes, reads and, where it is offered, discards and zeroes.
fn serves(guest: &mut Guest, offered: u32) {
    // Two segments each, the second of them short.
    for sector in [8, 64, 2040] {
        let data = pattern(sector, 4096);
        let cut = Cut { readable: vec![16, 3584, 512], ..Cut::plain(0, 0) };
        assert_eq!(guest.request(0, OUT, sector, &data, &cut).status, OK, "sector {sector}");
    }
    assert_eq!(guest.request(0, FLUSH, 0, &[], &Cut::plain(0, 0)).status, OK);
    for sector in [8, 64, 2040] {
        assert!(read(guest, sector) == pattern(sector, 4096), "sector {sector}");
    }
    for (kind, operation) in [(DISCARD, POLLUX_BLOCK_DISCARD), (WRITE_ZEROES, POLLUX_BLOCK_WRITE_ZEROES)] {
        if offered & 1 << operation == 0 {
            continue;
        }
        let range = [8u64.to_le_bytes(), 8u64.to_le_bytes()].concat();
        assert_eq!(guest.request(0, kind, 0, &range, &Cut::plain(16, 0)).status, OK, "type {kind}");
        assert!(kind == DISCARD || read(guest, 8) == [0; 4096], "zeroes");
    }
}

fn read(guest: &mut Guest, sector: u64) -> Vec<u8> {
    let finished = guest.request(0, IN, sector, &[], &Cut::plain(0, 4096));
    assert_eq!(finished.status, OK, "sector {sector}");
    finished.data
}
