//! What signals do to this process, decided in one place. A signal that the kernel raises for something that one
//! request did must not end the others.
//!
//! | signal | what becomes of it |
//! |---|---|
//! | SIGTERM, SIGINT; SIGHUP in `bench` | an end in order (`pollux_vmm::shutdown`) |
//! | SIGXCPU | the same: the soft limit on CPU time (`ulimit -t`) is reached |
//! | SIGHUP in `run` and `serve` | all media are measured again ([`Hangup`]) |
//! | SIGHUP in `run`, when the terminal has gone that it was started from | an end in order ([`ControllingTerminal`]) |
//! | SIGXFSZ | ignored: a write beyond the limit on file sizes (`ulimit -f`) fails with EFBIG |
//! | SIGPIPE | ignored, by Rust's runtime: the write fails with EPIPE |
//! | SIGTTOU in `serve` | ignored: a log line to the terminal of another job (`stty tostop`) does not stop all disks |
//! | SIGBUS | an access to a page that a mapped file has lost: see `pollux_guard` |
//! | SIGURG | has no effect but to interrupt a system call that holds up a worker (`pollux_core::event::watchdog`) |
//! | others | what they did before: nothing of ours raises them |
//!
//! What a signal of the first three kinds found ignored when the process began stays ignored, as `nohup` and the
//! background jobs of scripts mean it.
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use pollux_vmm::shutdown::is_ignored;
use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt,
    thread,
    time::{Duration, Instant},
};

/// Turns SIGXFSZ into an error of the system call.
pub(crate) fn ignore_file_size() {
    ignore(Signal::SIGXFSZ);
}

/// Lets a process in the background write to its terminal.
pub(crate) fn ignore_terminal_output() {
    ignore(Signal::SIGTTOU);
}

fn ignore(what: Signal) {
    // SAFETY: no handler is installed or taken away that anything relies on.
    let ignored = unsafe { signal(what, SigHandler::SigIgn) };
    ignored.expect("a signal that can be ignored");
}

/// SIGHUP as a request to measure the media again, as daemons use it. It is blocked in this thread and in those that it
/// starts from now on; `None`: it was ignored when the process began, and stays so.
pub(crate) struct Hangup(Option<SigSet>);

/// Blocks SIGHUP. Call it before other threads are started, or one of them could be ended by the signal.
pub(crate) fn block_hangup() -> io::Result<Hangup> {
    if is_ignored(Signal::SIGHUP as i32) {
        return Ok(Hangup(None));
    }
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGHUP);
    signals.thread_block()?;
    Ok(Hangup(Some(signals)))
}

impl Hangup {
    /// Calls `action` at each SIGHUP from now on, on a thread that ends with the process.
    pub(crate) fn on_each(self, action: impl Fn() + Send + 'static) -> io::Result<()> {
        let Some(signals) = self.0 else { return Ok(()) };
        let wait = move || {
            while signals.wait().is_ok() {
                action();
            }
        };
        thread::Builder::new().name("hangup".into()).spawn(wait).map(drop)
    }
}

/// How long after SIGHUP a terminal may still be there that is about to go: the kernel sends the signal first.
const TERMINAL_GOES_MAX: Duration = Duration::from_millis(50);

/// The terminal that a process was started from. When it goes, the kernel sends SIGHUP, as a user does who wants the
/// media measured; afterwards the process has no controlling terminal any more.
pub(crate) struct ControllingTerminal {
    was_there: bool,
}

impl ControllingTerminal {
    /// The one there is now, or none: of a daemon.
    pub(crate) fn find() -> Self {
        ControllingTerminal { was_there: is_there() }
    }

    /// After SIGHUP: whether that was because the terminal has gone.
    pub(crate) fn has_gone(&self) -> bool {
        let start = Instant::now();
        while self.was_there && is_there() && start.elapsed() < TERMINAL_GOES_MAX {
            thread::sleep(Duration::from_millis(1));
        }
        self.was_there && !is_there()
    }
}

fn is_there() -> bool {
    // Without a controlling terminal: ENXIO (tty(4)).
    File::options().read(true).custom_flags(nix::libc::O_NOCTTY | nix::libc::O_NONBLOCK).open("/dev/tty").is_ok()
}
