//! Which CPUs threads run on.
//!
//! Workers and vCPUs may be pinned to CPUs of their own. The process's other threads, and what the kernel makes for
//! them, keep off those ([`leave`]). A pinned thread does not lose its CPU unnoticed ([`Pin`]).
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use std::{
    fmt, fs, io,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// How often pins are checked.
const INTERVAL: Duration = Duration::from_secs(1);
/// A pin that is taken away again and again is logged this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// CPUs that threads of this process can be pinned to, ascending. They may be more than those that it was started on:
/// the kernel keeps CPUs that `isolcpus` sets aside, or `taskset` leaves out, for threads that ask for them explicitly.
/// So the kernel is asked.
pub fn usable() -> Vec<usize> {
    let ask = || {
        // The kernel takes those of them that are in the cpuset and switched on. Where even this is forbidden, nothing
        // changes.
        let _ = sched_setaffinity(None, &all());
        sched_getaffinity(None)
    };
    // On a thread of its own: the calling one stays where it is.
    let asked = thread::Builder::new().spawn(ask).map(thread::JoinHandle::join);
    match asked {
        Ok(Ok(set)) => set.map_or_else(|_| Vec::new(), |set| cpus_of(&set)),
        _ => current(),
    }
}

/// CPUs on which the calling thread may run now, ascending.
pub fn current() -> Vec<usize> {
    sched_getaffinity(None).map_or_else(|_| Vec::new(), |set| cpus_of(&set))
}

/// Pins the calling thread.
///
/// # Errors
/// The kernel's: EINVAL for a CPU that does not exist, is switched off or is outside of the process's cpuset.
pub fn pin(cpu: usize) -> io::Result<()> {
    Ok(sched_setaffinity(None, &only(cpu)?)?)
}

/// Why the kernel does not let a thread run on a CPU, and what to do about it, as far as that can be told.
pub fn obstacle(cpu: usize) -> String {
    match fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/online")) {
        Ok(text) if text.trim() == "0" => {
            format!("it is switched off (echo 1 > /sys/devices/system/cpu/cpu{cpu}/online)")
        }
        _ if !fs::exists(format!("/sys/devices/system/cpu/cpu{cpu}")).unwrap_or(true) => "there is none".into(),
        _ => "it is outside of this process's cpuset".into(),
    }
}

/// The CPUs that the process was started on.
static START: OnceLock<CpuSet> = OnceLock::new();

/// Keeps the calling thread, and those that it starts from now on, off the CPUs that are `taken`. If all CPUs are
/// taken, it stays as it is, and this returns `false`. `[control]`, before anything is started.
pub fn leave(taken: &[usize]) -> bool {
    let Ok(mut left) = sched_getaffinity(None) else { return false };
    START.get_or_init(|| left);
    taken.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| left.unset(cpu));
    left.count() > 0 && sched_setaffinity(None, &left).is_ok()
}

/// Undoes [`leave`] for the calling thread: a worker or a vCPU that is not pinned may run on any CPU.
pub fn roam() {
    if let Some(start) = START.get() {
        // These were allowed before; the kernel leaves out those that it has taken away since.
        let _ = sched_setaffinity(None, start);
    }
}

/// Keeps a thread pinned as long as this lives: it is pinned again if it loses its CPU.
///
/// The kernel moves it away when its CPU is switched off or its cpuset narrowed, and does not bring it back by itself.
#[derive(Debug)]
pub struct Pin {
    thread: Pid,
}

impl Pin {
    /// Pins the calling thread, which `who` names in messages.
    ///
    /// # Errors
    /// As those of [`pin`].
    pub fn take(who: impl fmt::Display, cpu: usize) -> io::Result<Self> {
        let mut watch = lock();
        if !watch.is_running {
            // Before the pin, which it would inherit. Without a watcher, this is still an ordinary pin.
            let started = thread::Builder::new().name("pollux-pins".into()).spawn(watch_pins);
            watch.is_running = started.is_ok();
        }
        // The watcher ends by itself if this fails and there is no other pin.
        pin(cpu)?;
        let pinned = Pinned { thread: gettid(), who: who.to_string(), cpu, is_lost: false, reported: None };
        let thread = pinned.thread;
        watch.list.push(pinned);
        Ok(Pin { thread })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // With the lock, so that no thread that has ended, or another one of the same number, is changed.
        let mut watch = lock();
        watch.list.retain(|pinned| pinned.thread != self.thread);
        if watch.list.is_empty() {
            ENDED.notify_all();
        }
    }
}

struct Watch {
    list: Vec<Pinned>,
    is_running: bool,
}

struct Pinned {
    thread: Pid,
    who: String,
    cpu: usize,
    is_lost: bool,
    /// When a loss was last logged.
    reported: Option<Instant>,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { list: Vec::new(), is_running: false });
/// Signalled when no thread is pinned any more.
static ENDED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks all pins until there are none. Runs on a thread of its own.
fn watch_pins() {
    keep_off_pins();
    let mut watch = lock();
    while !watch.list.is_empty() {
        watch.list.iter_mut().for_each(Pinned::look);
        watch = ENDED.wait_timeout(watch, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
    }
    watch.is_running = false;
}

/// The watcher should not run where a thread polls. It starts on the CPUs of the thread that started it; in a process
/// that has called [`leave`], that thread keeps off the CPUs of all polling threads.
fn keep_off_pins() {
    let Ok(mut left) = sched_getaffinity(None) else { return };
    for pinned in lock().list.iter().filter(|pinned| pinned.cpu < CpuSet::MAX_CPU) {
        left.unset(pinned.cpu);
    }
    if left.count() > 0 {
        // At worst, it stays where it was.
        let _ = sched_setaffinity(None, &left);
    }
}

impl Pinned {
    fn look(&mut self) {
        let (Ok(now), Ok(wanted)) = (sched_getaffinity(Some(self.thread)), only(self.cpu)) else { return };
        let cpu = self.cpu;
        if now == wanted {
            return self.is_back();
        }
        match sched_setaffinity(Some(self.thread), &wanted) {
            Ok(()) => {
                if !self.is_lost && self.may_report() {
                    warn!("{} had lost its CPU {cpu} and could run on {}: pinned again", self.who, Shown(&now));
                }
                self.is_back();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    let (who, why) = (&self.who, obstacle(cpu));
                    warn!("{who} has lost its CPU {cpu} ({why}: {error}) and runs on {} until it is back", Shown(&now));
                    self.reported = Some(Instant::now());
                }
            }
        }
    }

    fn is_back(&mut self) {
        if std::mem::take(&mut self.is_lost) {
            info!("{} has its CPU {} back and is pinned again", self.who, self.cpu);
        }
    }

    fn may_report(&mut self) -> bool {
        let is_due = self.reported.is_none_or(|last| last.elapsed() >= REPORT_INTERVAL);
        if is_due {
            self.reported = Some(Instant::now());
        }
        is_due
    }
}

fn only(cpu: usize) -> io::Result<CpuSet> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(set)
}

fn all() -> CpuSet {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    all
}

fn cpus_of(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// A set as the kernel writes it.
struct Shown<'s>(&'s CpuSet);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&list(&cpus_of(self.0)))
    }
}

/// Reads the kernel's notation of a set of CPUs: `0-3,8`.
pub(crate) fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        match part.split_once('-') {
            Some((first, last)) => cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?),
            None => cpus.push(part.parse().ok()?),
        }
    }
    Some(cpus)
}

/// Writes it: the reverse of [`parse_list`]. `cpus` is ascending.
pub(crate) fn list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some(range) if range.1 + 1 == cpu => range.1 = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let parts: Vec<String> = ranges
        .iter()
        .map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_and_written_as_the_kernel_does() {
        for text in ["0", "0-3", "0-3,8", "1,3,5-6"] {
            assert_eq!(list(&parse_list(text).expect(text)), text);
        }
        assert_eq!(parse_list("\n"), None);
    }

    #[test]
    fn a_thread_on_one_cpu_can_be_pinned_to_the_others() {
        let all = usable();
        let narrow = thread::spawn(|| {
            pin(current()[0]).expect("where it runs");
            assert_eq!(current().len(), 1);
            let others = usable();
            assert_eq!(current().len(), 1, "to ask changes nothing");
            others
        });
        assert_eq!(narrow.join().expect("no panic"), all);
        assert!(pin(100_000).is_err());
        let absent = (0..CpuSet::MAX_CPU).rev().find(|cpu| !all.contains(cpu)).expect("not all are there");
        assert_eq!(obstacle(absent), "there is none");
    }
}
