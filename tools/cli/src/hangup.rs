//! SIGHUP as a request to look at the media anew, as daemons use it.
use nix::sys::signal::{SigSet, Signal};
use std::{io, thread};

/// SIGHUP is blocked in this thread and in those that it starts from now on.
pub(crate) struct Hangup(SigSet);

/// Blocks SIGHUP. Call it before other threads are started, or one of them could be ended by the signal.
pub(crate) fn block() -> io::Result<Hangup> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGHUP);
    signals.thread_block()?;
    Ok(Hangup(signals))
}

impl Hangup {
    /// Calls `action` at each SIGHUP from now on, on a thread that ends with the process.
    pub(crate) fn on_each(self, action: impl Fn() + Send + 'static) -> io::Result<()> {
        let wait = move || {
            while self.0.wait().is_ok() {
                action();
            }
        };
        thread::Builder::new().name("hangup".into()).spawn(wait).map(drop)
    }
}
