//! How a vCPU or a device tells the machine that this run is over.
use crate::vcpu_error::VcpuError;
use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a run of the machine ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The guest switched the power off.
    PowerOff,
    /// The guest asked for a reset, or broke down in the way that resets a PC (triple fault).
    Reset,
    /// A vCPU cannot continue.
    Failed(VcpuError),
}

/// The ending of one run. Shared by its vCPUs, its platform devices and the machine.
#[derive(Debug)]
pub(crate) struct Control {
    ending: Mutex<Option<Ending>>,
    stopping: AtomicBool,
    event: EventFd,
}

impl Control {
    pub(crate) fn new() -> io::Result<Control> {
        Ok(Control {
            ending: Mutex::new(None),
            stopping: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Ends the run; the first ending counts. Any thread. The calling vCPU stops at its next exit, the others
    /// when the machine stops them.
    pub(crate) fn end(&self, ending: Ending) {
        let mut first = self.ending.lock().expect("nobody panics with this lock");
        first.get_or_insert(ending);
        self.stop();
        // Full means readable, which is all that matters.
        let _ = self.event.write(1);
    }

    /// Makes vCPUs leave their loop. [Machine thread and vCPU threads.]
    pub(crate) fn stop(&self) {
        // Pairs with the load in `is_stopping`.
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether vCPUs must leave their loop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The ending, once there is one. Takes it.
    pub(crate) fn take(&self) -> Option<Ending> {
        self.ending.lock().expect("nobody panics with this lock").take()
    }
}

impl AsRawFd for Control {
    /// Readable when the run has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
