//! What plugins count for themselves: they are asked at intervals and at the end, and whatever they answer, or if they
//! never do, no other device suffers.
use pollux_core::{
    plugin::{BlockBackend, OpenOptions, Plugin},
    transport::STATUS_NEEDS_RESET,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::{
    blk::{Cut, IN, OK, wait_for},
    build::c_plugin,
    rig::Guest,
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const C_DISK: &str = include_str!("fixtures/disk.c");

/// What was published last.
type Published = Arc<Mutex<Option<Vec<(String, u64)>>>>;

/// A disk whose plugin answers `statistics` by this piece of C.
fn disk(answer: &str) -> Arc<BlockBackend> {
    let silent = "memcpy(text->data, \"{}\", 2);\n  text->length = 2;";
    assert!(C_DISK.contains(silent));
    let source = C_DISK
        .replace(silent, answer)
        .replace("#define SIZE", "#include <stdio.h>\n#include <unistd.h>\nstatic volatile int served;\n#define SIZE")
        .replace("return (int32_t)count;", "served = 1;\n  return (int32_t)count;");
    let plugin = Plugin::load(&c_plugin("disk", &source)).expect("a plugin");
    BlockBackend::open(&plugin, "disk0", &OpenOptions::default()).expect("a backend")
}

/// C that answers with a text.
fn saying(text: &str) -> String {
    let text = format!("static const char answer[] = {text:?}; ");
    text + "text->length = sizeof answer - 1; memcpy(text->data, answer, sizeof answer - 1);"
}

fn count(backend: &BlockBackend) -> Published {
    let published = Published::default();
    let sink = published.clone();
    backend.count(move |counters| *sink.lock().expect("a value") = Some(counters.to_vec())).expect("it is asked");
    published
}

fn wait(published: &Published) -> Vec<(String, u64)> {
    wait_for("an answer", || published.lock().expect("a value").clone())
}

#[test]
fn a_plugin_is_asked_again_and_again_and_when_it_is_closed() {
    let answer = r#"(size_t)sprintf((char *)text->data, "{\"calls\": %u}", ++calls)"#;
    let backend = disk(&format!("static unsigned calls; text->length = {answer};"));
    let published = count(&backend);
    let calls = || wait(&published)[0].1;
    assert_eq!(wait(&published)[0].0, "calls");
    wait_for("another answer", || (calls() >= 2).then_some(()));
    let before = calls();
    drop(backend);
    assert!(calls() > before, "asked once more");
}

#[test]
fn a_plugin_is_asked_by_one_thread_round_after_round() {
    // Counted for each thread apart.
    let answer = r#"(size_t)sprintf((char *)text->data, "{\"calls\": %u}", ++calls)"#;
    let backend = disk(&format!("static __thread unsigned calls; text->length = {answer};"));
    let published = count(&backend);
    wait_for("another answer of the same thread", || (wait(&published)[0].1 >= 2).then_some(()));
}

#[test]
fn answers_without_sense_are_shown_as_nothing() {
    for answer in [
        saying("nonsense"),
        saying("\u{ff}\u{fe}{\"x\": 1}"),
        "text->data[0] = 0xff; text->length = 1;".to_owned(),
        "text->length = (size_t)-1;".to_owned(),
        "text->length = text->capacity + 1; memset(text->data, '{', text->capacity);".to_owned(),
        "return -EIO;".to_owned(),
    ] {
        let backend = disk(&answer);
        assert_eq!(wait(&count(&backend)), [], "{answer}");
    }
}

#[test]
fn a_plugin_that_never_answers_holds_up_no_other_and_none_of_its_own_requests() {
    // Its device has it asked from the start.
    let silent = disk("text->length = 0;\n  while (served)\n    pause();");
    let worker = Worker::spawn("silent", None, IdlePolicy::Adaptive).expect("worker");
    let mut guest = Guest::new("disk0", silent.clone(), 1, &[worker.handle()]);
    assert_eq!(guest.start() & STATUS_NEEDS_RESET, 0);
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    let message = wait_for("it hangs", || silent.describe().err()).to_string();
    assert!(message.starts_with("disk0: the plugin c-disk does not answer `statistics`"), "{message}");
    // As many as would use up any fixed number of threads.
    let others: Vec<_> = (0..2).map(|_| (disk("for (;;) pause();"), disk(&saying("{\"x\": 7}")))).collect();
    let answers: Vec<Published> = others.iter().map(|(hanging, other)| (count(hanging), count(other)).1).collect();
    for published in &answers {
        assert_eq!(wait(published), [("x".to_owned(), 7)]);
    }
    assert_eq!(guest.request(0, IN, 0, &[], &Cut::plain(0, 512)).status, OK);
    let start = Instant::now();
    drop((guest, silent));
    assert!(start.elapsed() < Duration::from_secs(30), "its end is not waited for for ever");
}
