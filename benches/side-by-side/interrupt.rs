//! Ctrl-C: what was started and made is taken away before the process ends.
use nix::sys::signal::{SigSet, Signal};
use std::{
    io, process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Exit status of a process that was interrupted, as shells have it.
pub(crate) const STATUS: u8 = 130;

static RECEIVED: AtomicBool = AtomicBool::new(false);

/// Begins to wait for SIGINT and SIGTERM. Before any other thread is started, as threads inherit what is blocked.
pub(crate) fn watch() -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut impatient = false;
        while signals.wait().is_ok() {
            if impatient {
                process::exit(STATUS.into());
            }
            RECEIVED.store(true, Ordering::Relaxed);
            impatient = true;
        }
    })?;
    Ok(())
}

/// Whether there was a signal: then measuring ends.
pub(crate) fn received() -> bool {
    RECEIVED.load(Ordering::Relaxed)
}
