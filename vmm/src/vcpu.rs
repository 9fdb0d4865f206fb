//! A virtual processor: a thread around `KVM_RUN`.
//!
//! Its loop hands port and memory accesses to the buses and knows no device. It is left when the run ends
//! ([`Control`]); a thread that sits inside the guest at that moment is kicked out by a signal.
use crate::{
    bus::Bus,
    control::{Control, Ending},
    exits::{ExitCounters, ExitKind},
    vcpu_error::VcpuError,
};
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use pollux_core::{
    cpus::{self, Pin},
    log_budget::LogBudget,
};
use std::{
    cell::Cell,
    io,
    os::unix::thread::JoinHandleExt,
    panic::{self, AssertUnwindSafe},
    ptr,
    sync::Arc,
    thread::JoinHandle,
};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What a vCPU's thread works with.
pub(crate) struct Vcpu {
    /// 0 is the boot processor.
    pub(crate) index: usize,
    /// The host CPU to run on, if specified.
    pub(crate) pin: Option<usize>,
    pub(crate) fd: VcpuFd,
    pub(crate) ports: Arc<Bus>,
    pub(crate) memory: Arc<Bus>,
    pub(crate) control: Arc<Control>,
    pub(crate) exits: Arc<ExitCounters>,
    /// The budget for lines that the guest can repeat by resetting the machine.
    pub(crate) lines: Arc<LogBudget>,
}

/// Whether the loop continues after an exit.
enum Next {
    Again,
    Leave,
}

impl Vcpu {
    /// Runs the guest until the run ends. Any failure ends the run for the whole machine.
    fn run(&mut self) {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        KICK_TARGET.set(run);
        while !self.control.is_stopping() {
            match self.enter(run) {
                Ok(Next::Again) => {}
                Ok(Next::Leave) => break,
                Err(error) => self.control.end(Ending::Failed(error)),
            }
        }
        KICK_TARGET.set(ptr::null_mut());
    }

    /// Pins the calling thread if specified.
    fn take_cpu(&self) -> Option<Pin> {
        let Some(cpu) = self.pin else {
            cpus::roam();
            return None;
        };
        match Pin::take(format_args!("vCPU {}", self.index), cpu) {
            Ok(pin) => Some(pin),
            Err(error) => {
                if self.lines.may_log("vcpus") {
                    let why = cpus::obstacle(cpu);
                    tracing::warn!(vcpu = self.index, cpu, "cannot pin the vCPU to its CPU: {why} ({error})");
                }
                None
            }
        }
    }

    /// Enters the guest once, and handles the reason for its exit.
    fn enter(&mut self, run: *mut kvm_run) -> Result<Next, VcpuError> {
        let index = self.index;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => return self.interrupted(error.into()),
        };
        match exit {
            VcpuExit::IoOut(port, data) => {
                self.exits.count(ExitKind::PortWrite);
                for item in data.chunks(port_access_size(run)) {
                    self.ports.write(port.into(), item);
                }
            }
            VcpuExit::IoIn(port, data) => {
                self.exits.count(ExitKind::PortRead);
                for item in data.chunks_mut(port_access_size(run)) {
                    self.ports.read(port.into(), item);
                }
            }
            VcpuExit::MmioRead(address, data) => {
                self.exits.count(ExitKind::MmioRead);
                self.memory.read(address, data);
            }
            VcpuExit::MmioWrite(address, data) => {
                self.exits.count(ExitKind::MmioWrite);
                self.memory.write(address, data);
            }
            // With the irqchip in the kernel KVM waits in there; where it comes out nevertheless, it is re-entered.
            VcpuExit::Hlt => self.exits.count(ExitKind::Halt),
            VcpuExit::IrqWindowOpen => self.exits.count(ExitKind::InterruptWindow),
            VcpuExit::Intr => self.exits.count(ExitKind::Signal),
            // A triple fault resets a PC; kernels use it as their last way to reboot.
            VcpuExit::Shutdown => {
                self.exits.count(ExitKind::Shutdown);
                self.control.end(Ending::Reset);
                return Ok(Next::Leave);
            }
            VcpuExit::SystemEvent(kind, _) => {
                self.exits.count(ExitKind::Shutdown);
                self.control.end(match kind {
                    kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => Ending::PowerOff,
                    _ => Ending::Reset,
                });
                return Ok(Next::Leave);
            }
            VcpuExit::InternalError => return Err(self.internal_error(run)),
            VcpuExit::MemoryFault { .. } => {
                self.exits.count(ExitKind::Other);
                return Err(VcpuError::Memory { index, source: io::Error::from_raw_os_error(libc::EFAULT) });
            }
            VcpuExit::FailEntry(reason, cpu) => return Err(VcpuError::Entry { index, reason, cpu }),
            other => {
                let exit = format!("{other:?}");
                self.exits.count(ExitKind::Other);
                return Err(VcpuError::Unexpected { index, exit });
            }
        }
        Ok(Next::Again)
    }

    /// `KVM_RUN` came back without an exit: our kick, another signal, or a failure.
    fn interrupted(&mut self, error: io::Error) -> Result<Next, VcpuError> {
        match error.raw_os_error() {
            // EAGAIN: a vCPU that was not started yet got a signal while it waited.
            Some(libc::EINTR | libc::EAGAIN) => {
                self.exits.count(ExitKind::Signal);
                self.fd.set_kvm_immediate_exit(0);
                Ok(Next::Again)
            }
            Some(libc::EFAULT | libc::ENOMEM) => Err(VcpuError::Memory { index: self.index, source: error }),
            _ => Err(VcpuError::Run { index: self.index, source: error }),
        }
    }

    fn internal_error(&self, run: *mut kvm_run) -> VcpuError {
        self.exits.count(ExitKind::Other);
        // SAFETY: `run` is this vCPU's mapping, alive as long as its fd, and the kernel filled `internal`
        // because the exit is an internal error.
        let suberror = unsafe { (*run).__bindgen_anon_1.internal.suberror };
        VcpuError::Internal {
            index: self.index,
            rip: self.fd.get_regs().map_or(0, |registers| registers.rip),
            suberror,
            meaning: match suberror {
                kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "emulation failed",
                kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "a second exception on delivery of the first",
                kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit on delivery of an event",
                _ => "unknown",
            },
        }
    }
}

/// Bytes of one access in a port exit, which carries several for the guest's string instructions.
fn port_access_size(run: *mut kvm_run) -> usize {
    // SAFETY: `run` is the vCPU's mapping, alive as long as its fd; callers are in a port exit, for which the
    // kernel filled `io`.
    let size = unsafe { (*run).__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// A vCPU's thread.
pub(crate) struct VcpuThread(JoinHandle<()>);

impl VcpuThread {
    /// Starts the vCPU on a thread of its own, pinned if told. Needs [`prepare_kicks`] to have been called.
    pub(crate) fn spawn(mut vcpu: Vcpu) -> io::Result<VcpuThread> {
        let thread = std::thread::Builder::new().name(format!("vcpu{}", vcpu.index));
        let handle = thread.spawn(move || {
            let _pin = vcpu.take_cpu();
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| vcpu.run()));
            if let Err(panic) = outcome {
                KICK_TARGET.set(ptr::null_mut());
                vcpu.control
                    .end(Ending::Failed(VcpuError::Panicked { index: vcpu.index, message: panic_message(&*panic) }));
            }
        })?;
        Ok(VcpuThread(handle))
    }

    /// Kicks the thread out of the guest, or out of a system call. False if it is done. [`Control::stop`] comes before.
    pub(crate) fn kick(&self) -> bool {
        if self.0.is_finished() {
            return false;
        }
        // SAFETY: the thread has not been joined, so its handle is valid; the signal has a handler.
        unsafe { libc::pthread_kill(self.0.as_pthread_t(), kick_signal()) };
        true
    }

    /// Waits until the thread is done.
    pub(crate) fn join(self) {
        // Its panics were caught inside.
        let _ = self.0.join();
    }
}

thread_local! {
    /// The kvm_run of the vCPU that this thread is running, for the handler of the kick.
    static KICK_TARGET: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Installs the handler of the signal that kicks vCPUs. Before the first vCPU thread; again does no harm.
pub(crate) fn prepare_kicks() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick).map_err(io::Error::from)
}

fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes the next `KVM_RUN` of this thread return at once, in case the signal came just before it.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let run = KICK_TARGET.get();
    if !run.is_null() {
        // SAFETY: the target is set only while its vCPU is alive on this very thread. Volatile, because the
        // interrupted code and the kernel use the field too.
        unsafe { ptr::write_volatile(&raw mut (*run).immediate_exit, 1) };
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".to_owned())
}
