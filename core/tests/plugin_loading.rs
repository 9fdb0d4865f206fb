//! Plugins come in by both doors, and a file that is no good plugin is refused with one clear message before anything
//! of it runs.
use pollux_core::{
    plugin::{BlockBackend, LoadError, OpenOptions, Plugin, Registry},
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{Cut, IN, IOERR, OK, OUT, pattern, wait_for},
    build::{c_plugin, plugin},
    rig::Guest,
};
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
};
use tracing_subscriber::fmt::MakeWriter;

fn open(path: &Path, options: &str) -> Result<Arc<BlockBackend>, String> {
    let plugin = Plugin::load(path).map_err(|error| error.to_string())?;
    let options = OpenOptions { json: options.into(), ..OpenOptions::default() };
    BlockBackend::open(&plugin, "disk0", &options).map_err(|error| error.to_string())
}

/// Loads and opens, and returns the message of the refusal, without the folder of the file.
fn refusal(path: &Path) -> String {
    let message = open(path, "{}").expect_err("a refusal");
    assert!(message.len() < 600, "one readable message, not {} bytes: {message}", message.len());
    message.replace(&path.display().to_string(), "FILE")
}

const C_DISK: &str = include_str!("fixtures/disk.c");

/// The plugin in C with one thing changed.
fn c_disk_with(from: &str, to: &str) -> std::path::PathBuf {
    assert!(C_DISK.contains(from), "{from}");
    c_plugin("disk", &C_DISK.replace(from, to))
}

fn serves_a_guest(path: &Path, options: &str) {
    let backend = open(path, options).expect("a backend");
    let worker = Worker::spawn("doors", None, IdlePolicy::Adaptive).expect("worker");
    let mut guest = Guest::new("disk0", backend, 1, &[worker.handle()]);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let data = pattern(1, 4096);
    assert_eq!(guest.request(0, OUT, 8, &data, &Cut::plain(4096, 0)).status, OK);
    assert_eq!(guest.request(0, IN, 8, &[], &Cut::plain(0, 4096)).status, OK);
}

#[test]
fn a_rust_plugin_comes_in_by_the_abi_stable_door() {
    serves_a_guest(&plugin("pollux-null"), r#"{"size": 1048576}"#);
}

#[test]
fn a_c_plugin_comes_in_by_the_c_door_and_serves_data() {
    let path = c_plugin("disk", C_DISK);
    let backend = open(&path, "{}").expect("a backend");
    assert_eq!(backend.plugin().name(), "c-disk");
    let worker = Worker::spawn("c", None, IdlePolicy::Adaptive).expect("worker");
    let mut guest = Guest::new("disk0", backend, 1, &[worker.handle()]);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    let data = pattern(2, 4096);
    assert_eq!(guest.request(0, OUT, 8, &data, &Cut::plain(4096, 0)).status, OK);
    assert!(guest.request(0, IN, 8, &[], &Cut::plain(0, 4096)).data == data);
}

#[test]
fn a_plugin_that_offers_another_interface_beside_it_serves_block_1() {
    serves_a_guest(&plugin("pollux-fixture-unruly"), "{}");
}

#[test]
fn a_file_is_loaded_once_and_two_files_are_two_plugins() {
    let mut registry = Registry::default();
    let (null, mem) = (plugin("pollux-null"), plugin("pollux-fixture-unruly"));
    assert_eq!(registry.load(&null).expect("null").name(), "null");
    // abi_stable's own loader would answer with the first one again.
    assert_eq!(registry.load(&mem).expect("unruly").name(), "unruly");
    assert_eq!(registry.load(&null).expect("null").name(), "null");
}

#[test]
fn what_is_no_plugin_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("libpollux_missing.so");
    assert_eq!(refusal(&missing), "plugin FILE: No such file or directory (os error 2)");
    assert_eq!(refusal(folder.path()), "plugin FILE is not a file but a folder");
    let text = folder.path().join("libpollux_text.so");
    fs::write(&text, "this is no library").expect("a file");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).expect("permissions");
    let message = refusal(&text);
    assert!(message.starts_with("FILE is not a plugin, or lacks a library that it needs: "), "{message}");
    let library = c_plugin("none", "int pollux_nothing; int pollux_nothing = 1;");
    assert_eq!(
        refusal(&library),
        "FILE is a shared library, but not a plugin: it has neither the symbol `pollux_plugin` nor an abi_stable root \
         module (a plugin in Rust ends with `pollux_abi::export_plugin!`)"
    );
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    let path = c_plugin("disk", C_DISK);
    // A group of many, for which root is needed: its own may be this user's alone.
    let is_given = std::os::unix::fs::chown(&path, None, Some(12_345)).is_ok();
    for (mode, accepted) in [(0o775, !is_given), (0o757, false), (0o755, true), (0o500, true)] {
        if mode == 0o775 && !is_given {
            println!("SKIPPED: a file that a group may write needs root, who can give one to any group");
            continue;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
        match open(&path, "{}") {
            Ok(_) => assert!(accepted, "mode {mode:o}"),
            Err(message) => {
                assert!(!accepted, "mode {mode:o}: {message}");
                assert!(message.contains(&format!("(mode {mode:o})")) && message.contains("chmod go-w"), "{message}");
            }
        }
    }
}

#[test]
fn another_interface_number_is_refused_with_what_to_do() {
    assert_eq!(
        refusal(&c_disk_with("\"block/1\"", "\"block/9\"")),
        "plugin FILE offers block/9, but this Pollux speaks block/1: it is newer than this Pollux: install a newer \
         Pollux"
    );
    assert_eq!(
        refusal(&c_disk_with("\"block/1\"", "\"block/0\"")),
        "plugin FILE offers block/0, but this Pollux speaks block/1: it is older than this Pollux: rebuild it with \
         this release's pollux-abi"
    );
    assert_eq!(
        refusal(&c_disk_with("\"block/1\"", "\"fax_/1\"")),
        "plugin FILE offers fax_/1, but this Pollux speaks block/1: it is a plugin for something else"
    );
}

#[test]
fn a_layout_that_differs_is_refused_with_the_field() {
    assert_eq!(
        refusal(&plugin("pollux-fixture-layout")),
        "plugin FILE was built against another block/1: describe.param_1: type *mut BlockInfo expected, found u32; \
         rebuild it with this release's pollux-abi"
    );
}

#[test]
fn a_c_plugin_with_holes_is_refused() {
    let cases = [
        ("return &descriptor;", "return 0;", "plugin FILE: its descriptor is unusable: `pollux_plugin` returned NULL"),
        (
            "POLLUX_PLUGIN_VERSION,",
            "77,",
            "plugin FILE: its descriptor is unusable: it has version 77, this Pollux reads version 1",
        ),
        (
            "sizeof(PolluxPluginDescriptor)",
            "8",
            "plugin FILE: its descriptor is unusable: its size is 8 bytes, at least 96 are expected",
        ),
        (
            ".initialize = initialize,",
            ".initialize = 0,",
            "plugin FILE: its descriptor is unusable: its function `initialize` is NULL",
        ),
        (
            ".submit = disk_submit,",
            ".submit = 0,",
            "plugin FILE: its descriptor is unusable: function 9 of its table of block/1 is NULL",
        ),
        (
            "sizeof(PolluxBlockV1)",
            "64",
            "plugin FILE: its descriptor is unusable: its table of block/1 has 64 bytes, 112 are expected",
        ),
        (
            ".interface_count = 1,",
            ".interface_count = 1000000,",
            "plugin FILE: its descriptor is unusable: it lists 1000000 interfaces",
        ),
        ("TEXT(\"c-disk\")", "TEXT(\"\")", "plugin FILE: its descriptor is unusable: it has no name"),
        (
            "return 0; /* initialize */",
            "return -1; /* initialize */",
            "plugin FILE refused to start: Operation not permitted (os error 1)",
        ),
    ];
    for (from, to, expected) in cases {
        assert_eq!(refusal(&c_disk_with(from, to)), expected);
    }
}

#[test]
fn an_impossible_description_is_refused() {
    let cases = [
        ("info->logical_block_size = 512;", "info->logical_block_size = 0;", "a logical block of 0 bytes"),
        ("info->logical_block_size = 512;", "info->logical_block_size = 520;", "a logical block of 520 bytes"),
        ("info->physical_block_size = 512;", "info->physical_block_size = 256;", "a physical block of 256 bytes"),
        ("info->capacity = SIZE;", "info->capacity = 100;", "100 bytes, which is less than one block of 512"),
        ("info->operations = 7;", "info->operations = 6;", "it cannot be read"),
    ];
    for (from, to, expected) in cases {
        let message = refusal(&c_disk_with(from, to));
        assert_eq!(message, format!("disk0: the plugin c-disk describes an impossible medium: {expected}"));
    }
}

#[test]
fn options_are_refused_in_the_words_of_their_plugin() {
    let null = plugin("pollux-null");
    let message = open(&null, r#"{"sise": 1}"#).expect_err("a refusal");
    assert!(message.starts_with("disk0: options.sise: unknown field `sise`, expected `size`"), "{message}");
    let message = open(&null, r#"{"block_size": 700}"#).expect_err("a refusal");
    assert_eq!(message, "disk0: options.block_size: a block size of 700: write a power of two from 512 to 65536");
}

#[test]
fn the_libraries_errors_are_typed() {
    assert!(matches!(Plugin::load(Path::new("/nonexistent")), Err(LoadError::File(..))));
}

/// A log that a test can read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;
    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[test]
fn a_panic_anywhere_in_a_plugin_is_contained_and_logged_with_its_name() {
    let log = Log::default();
    tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).init();
    let path = plugin("pollux-fixture-unruly");
    let options = |place: &str| format!(r#"{{"panic": "{place}"}}"#);
    let message = open(&path, &options("open")).expect_err("a refusal");
    assert_eq!(message, "disk0: the plugin panicked (the log has its message)");
    let message = open(&path, &options("info")).expect_err("a refusal");
    assert!(message.contains("describe answered -5"), "{message}");
    let worker = Worker::spawn("unruly", None, IdlePolicy::Adaptive).expect("worker");
    for place in ["open_queue", "start"] {
        let mut guest = Guest::new("disk0", open(&path, &options(place)).expect("a backend"), 1, &[worker.handle()]);
        assert_ne!(guest.start() & STATUS_NEEDS_RESET, 0, "{place}");
    }
    for place in ["submit", "stop", "drop"] {
        let mut guest = Guest::new("disk0", open(&path, &options(place)).expect("a backend"), 1, &[worker.handle()]);
        assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0, "{place}");
        let expected = if place == "submit" { IOERR } else { OK };
        assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, expected, "{place}");
        if place == "submit" {
            wait_for("DEVICE_NEEDS_RESET", || (guest.device.status() & STATUS_NEEDS_RESET != 0).then_some(()));
        }
    }
    let text = String::from_utf8(log.0.lock().expect("the log").clone()).expect("UTF-8");
    let line = |part: &str| text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part} in {text}"));
    let own = line("a line by the host handle");
    assert!(own.contains("plugin=\"unruly\"") && own.contains("instance=\"disk0\""), "{own}");
    let panic = line("told to panic in submit");
    assert!(panic.contains("ERROR") && panic.contains("plugin=\"unruly\""), "{panic}");
}
