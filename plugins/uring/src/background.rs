//! Where the kernel's threads of io_uring run.
//!
//! What would make the worker wait, io_uring has threads of the kernel do, which it makes as children of the worker:
//! they are pinned where that is, and take its CPU away for as long as they work. So they are sent to the CPUs of the
//! thread that has opened the image: the host opens it on a thread that keeps off the CPUs of workers and vCPUs.
use crate::ring::Ring;
use io_uring::{cqueue, squeue};
use pollux_abi::host::{Host, Level};
use std::{
    fmt,
    mem::{size_of, zeroed},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

/// The CPUs for them.
pub(crate) struct Background {
    cpus: libc::cpu_set_t,
    host: Host,
    path: PathBuf,
    /// Whether the log knows that there are none.
    is_said: AtomicBool,
}

impl Background {
    /// Those of the calling thread. `[control]`
    pub(crate) fn of_this_thread(host: Host, path: PathBuf) -> Self {
        Background { cpus: affinity(), host, path, is_said: AtomicBool::new(false) }
    }

    /// Sends the threads of the calling worker there, which has enabled `ring`.
    pub(crate) fn receive<S: squeue::EntryMarker, C: cqueue::EntryMarker>(&self, ring: &Ring<S, C>) {
        let own = affinity();
        // SAFETY: the functions read and write the sets alone, for numbers that the sets have.
        let (is_pinned, rest) = unsafe {
            let mut rest = self.cpus;
            for cpu in 0..libc::CPU_SETSIZE as usize {
                // The kernel cuts any other set down to the pin that they have inherited.
                if libc::CPU_ISSET(cpu, &own) {
                    libc::CPU_CLR(cpu, &mut rest);
                }
            }
            (libc::CPU_COUNT(&own) == 1, rest)
        };
        if !is_pinned {
            // They may go wherever the worker may.
            return;
        }
        // SAFETY: as above.
        let why_not = match unsafe { libc::CPU_COUNT(&rest) } {
            0 => Some("workers and vCPUs have all CPUs, leave one to neither".to_owned()),
            _ => ring.inner().submitter().register_iowq_aff(&rest).err().map(|error| error.to_string()),
        };
        if let Some(why_not) = why_not
            && !self.is_said.swap(true, Ordering::Relaxed)
        {
            let what = "the kernel's threads of io_uring run on the worker's own CPU";
            self.host.log(Level::Warn, format_args!("{}: {what}: {why_not}", self.path.display()));
        }
    }
}

/// Where the calling thread may run.
fn affinity() -> libc::cpu_set_t {
    // SAFETY: an all-zero set is a value of the type.
    let mut cpus: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the set has the size that is said. If the call fails, which it does on hosts of more CPUs, it stays
    // empty.
    unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut cpus) };
    cpus
}

impl fmt::Debug for Background {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Background")
    }
}
