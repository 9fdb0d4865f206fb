//! Pinned threads: where they, and those beside them, run.
use pollux_core::{
    cpus,
    worker::{IdlePolicy, Worker},
};
use pollux_testing::blk::wait_for;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::{
    fs, io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

/// The lines of the log.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        log().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log() -> MutexGuard<'static, Vec<u8>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

fn said(words: &str) -> usize {
    String::from_utf8_lossy(&log()).matches(words).count()
}

/// The thread of this process that has that name.
fn thread_called(name: &str) -> Pid {
    let threads = fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let found = threads
        .map(|entry| entry.path())
        .find(|path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let number = found.and_then(|path| path.file_name()?.to_str()?.parse().ok()).expect("such a thread");
    Pid::from_raw(number).expect("a number")
}

fn set_of(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    set
}

#[test]
fn a_worker_that_loses_its_cpu_has_it_back_and_the_log_tells() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init();
    let usable = cpus::usable();
    let [first, other, ..] = usable[..] else {
        println!("SKIPPED: to lose a CPU a thread needs another one");
        return;
    };
    let worker = Worker::spawn("pinned", Some(other), IdlePolicy::Interrupt).expect("a worker");
    let thread = thread_called("pollux-pinned");
    assert_eq!(sched_getaffinity(Some(thread)).expect("its CPUs"), set_of(&[other]));
    for moved in [set_of(&[first]), set_of(&[first, other])] {
        sched_setaffinity(Some(thread), &moved).expect("as cpusets do");
        wait_for("its CPU", || (sched_getaffinity(Some(thread)) == Ok(set_of(&[other]))).then_some(()));
    }
    wait_for("the log", || (said("worker pinned had lost its CPU") == 1).then_some(()));
    drop(worker);
}

#[test]
fn other_threads_keep_off_the_cpus_that_are_taken_and_those_without_a_cpu_do_not() {
    let start = cpus::current();
    let [first, rest @ ..] = &start[..] else { panic!("this thread runs") };
    if rest.is_empty() {
        println!("SKIPPED: this process has one CPU");
        return;
    }
    thread::scope(|scope| {
        let control = scope.spawn(|| {
            assert!(!cpus::leave(&start), "somewhere it must run");
            assert_eq!(cpus::current(), start);
            assert!(cpus::leave(&[*first]));
            let inherited = thread::spawn(cpus::current).join().expect("no panic");
            let worker = Worker::spawn("roaming", None, IdlePolicy::Interrupt).expect("a worker");
            let roaming = sched_getaffinity(Some(thread_called("pollux-roaming"))).expect("its CPUs");
            drop(worker);
            (inherited, roaming)
        });
        let (inherited, roaming) = control.join().expect("no panic");
        assert_eq!(inherited, rest);
        assert_eq!(roaming, set_of(&start));
    });
}
