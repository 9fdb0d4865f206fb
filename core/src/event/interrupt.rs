//! What a device tells its driver: used buffers, configuration changes, and that it needs a reset.
use super::conduct::Conduct;
use crate::log_budget::LogBudget;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
};
use tracing::debug;
use vmm_sys_util::eventfd::EventFd;

/// ISR bit of a used buffer notification (virtio 1.3, 4.1.4.5 and 4.2.2).
pub const ISR_QUEUE: u8 = 1;
/// ISR bit of a configuration change notification.
pub const ISR_CONFIG: u8 = 2;

/// What workers and the transport share about one device: pending interrupt causes and the device's own failure.
#[derive(Debug)]
pub struct InterruptState {
    isr: AtomicU8,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    config_event: Mutex<Option<Arc<EventFd>>>,
    lines: LogBudget,
}

impl Default for InterruptState {
    fn default() -> Self {
        InterruptState {
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            config_event: Mutex::new(None),
            lines: LogBudget::of_guest(),
        }
    }
}

impl InterruptState {
    /// Adds interrupt causes. Partner: the transport's [`take_isr`](Self::take_isr) or [`isr`](Self::isr).
    pub fn raise_isr(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::AcqRel);
    }

    /// The pending causes.
    pub fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    /// Returns and clears the pending causes, as a read of the PCI ISR register does (virtio 1.3, 4.1.4.5.1).
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Clears `bits`, as a write to the MMIO InterruptACK register does (virtio 1.3, 4.2.2).
    pub fn acknowledge_isr(&self, bits: u8) {
        self.isr.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Which event to signal on a configuration change, if any. Set by the transport.
    pub fn set_config_event(&self, event: Option<Arc<EventFd>>) {
        *self.config_event.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// Tells the driver that the configuration space has changed. Not for the hot path.
    pub fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise_isr(ISR_CONFIG);
        if let Some(event) = &*self.config_event.lock().unwrap_or_else(PoisonError::into_inner) {
            signal(event);
        }
    }

    /// The device cannot continue: sets DEVICE_NEEDS_RESET and tells the driver (virtio 1.3, 2.1.2). Callable by any
    /// worker.
    pub fn fail(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.config_changed();
        }
    }

    /// Whether a line about something that the guest has done may be logged, under the device's `name`. Not for the hot
    /// path.
    pub fn may_log(&self, name: &str) -> bool {
        self.lines.may_log(name)
    }

    /// Whether the device waits for its reset.
    pub fn has_failed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Changes whenever the configuration space does.
    pub(crate) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    pub(crate) fn reset(&self) {
        self.isr.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }
}

fn signal(event: &EventFd) {
    // The counter of an eventfd overflows after 2^64 - 2 signals; a full one has been signalled anyway.
    if let Err(error) = event.write(1) {
        debug!("a signal was dropped: {error}");
    }
}

/// Tells a driver that there are used buffers. One per queue, owned by its worker.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    event: Option<Arc<EventFd>>,
    /// The conduct of the front end that owns the event, if one does: it can hold up those who write to the event.
    conduct: Option<Arc<Conduct>>,
    isr: Option<Arc<InterruptState>>,
}

impl Notifier {
    /// A notifier that signals `event`, which an irqfd or a front end turns into an interrupt. With `isr`, the queue
    /// bit of the ISR register is set first, for transports whose driver reads it.
    pub fn new(event: Arc<EventFd>, isr: Option<Arc<InterruptState>>) -> Self {
        Notifier { event: Some(event), conduct: None, isr }
    }

    /// A notifier that signals the event of the front end that behaves like `conduct`.
    pub(crate) fn foreign(event: Arc<EventFd>, conduct: Arc<Conduct>) -> Self {
        Notifier { event: Some(event), conduct: Some(conduct), isr: None }
    }

    /// A notifier for a driver that polls: it chose no vector.
    pub fn silent() -> Self {
        Notifier::default()
    }

    /// Signals. `[worker]`
    #[inline]
    pub fn signal(&self) {
        if let Some(isr) = &self.isr {
            isr.raise_isr(ISR_QUEUE);
        }
        let Some(event) = &self.event else { return };
        match &self.conduct {
            None => signal(event),
            Some(conduct) => conduct.signal(event),
        }
    }
}
