//! The services that Pollux lends to plugins: their log lines become the host's, with their names.
use crate::log_budget::LogBudget;
use pollux_abi::{
    host_v1::{HostV1, POLLUX_LOG_DEBUG, POLLUX_LOG_ERROR, POLLUX_LOG_INFO, POLLUX_LOG_WARN},
    text::Text,
};
use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, RawFd},
    panic::catch_unwind,
};
use tracing::level_filters::LevelFilter;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The host's side of one `HostV1`: whom it was lent to.
#[derive(Debug)]
pub(super) struct HostContext {
    plugin: String,
    /// Empty for the plugin as a whole.
    instance: String,
    changed: EventFd,
    lines: LogBudget,
    log_level: u32,
}

/// A table of services together with its context. The table points into the box, which stays where it is.
#[derive(Debug)]
pub(super) struct HostServices {
    table: Box<HostV1>,
    context: Box<HostContext>,
}

// SAFETY: the table's pointer leads to the context, which is `Sync` and owned beside it.
unsafe impl Send for HostServices {}
// SAFETY: as above.
unsafe impl Sync for HostServices {}

impl HostServices {
    /// For the `instance` of a plugin. One that is opened as a `probe` is opened once more if it is used, and says then
    /// what an operator wants to know of it: until then only its complaints count.
    ///
    /// # Errors
    /// No more file descriptors.
    pub(super) fn new(plugin: &str, instance: &str, probe: bool) -> io::Result<Self> {
        let log_level = if probe { log_level().min(POLLUX_LOG_WARN) } else { log_level() };
        let context = Box::new(HostContext {
            plugin: plugin.into(),
            instance: instance.into(),
            changed: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            lines: LogBudget::of_plugin(),
            log_level,
        });
        let table = Box::new(HostV1 {
            struct_size: size_of::<HostV1>() as u32,
            log_level,
            context: (&raw const *context).cast_mut().cast(),
            log,
            changed,
            reserved: [0; 4],
        });
        Ok(HostServices { table, context })
    }

    pub(super) fn table(&self) -> *const HostV1 {
        &*self.table
    }

    /// Becomes readable when the plugin says that its description has changed.
    pub(super) fn change_event(&self) -> RawFd {
        self.context.changed.as_raw_fd()
    }

    /// Forgets that it has.
    pub(super) fn take_changed(&self) {
        // EAGAIN: it has not.
        let _ = self.context.changed.read();
    }
}

fn log_level() -> u32 {
    match LevelFilter::current().into_level() {
        None => 0,
        Some(tracing::Level::ERROR) => POLLUX_LOG_ERROR,
        Some(tracing::Level::WARN) => POLLUX_LOG_WARN,
        Some(tracing::Level::INFO) => POLLUX_LOG_INFO,
        Some(tracing::Level::DEBUG) => POLLUX_LOG_DEBUG,
        Some(tracing::Level::TRACE) => u32::MAX,
    }
}

unsafe extern "C" fn log(context: *mut c_void, level: u32, target: Text, message: Text) {
    // A panic must not cross into the plugin; a log line that cannot be written is lost.
    let _ = catch_unwind(|| {
        // SAFETY: the context is the one of `HostServices`, which outlives the plugin's use of it; the texts live
        // during the call.
        let (context, target, message) =
            unsafe { (&*context.cast::<HostContext>(), target.as_str(), message.as_str()) };
        if level > context.log_level || !context.lines.may_log(&context.plugin) {
            return;
        }
        let (plugin, instance) = (context.plugin.as_str(), context.instance.as_str());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(target: "pollux::plugin", plugin, instance, origin = target, "{message}")
            };
        }
        match level {
            POLLUX_LOG_ERROR => line!(error),
            POLLUX_LOG_WARN => line!(warn),
            POLLUX_LOG_INFO => line!(info),
            POLLUX_LOG_DEBUG => line!(debug),
            _ => line!(trace),
        }
    });
}

unsafe extern "C" fn changed(context: *mut c_void) {
    // SAFETY: as in `log`.
    let context = unsafe { &*context.cast::<HostContext>() };
    // A counter that is full has said so long ago.
    let _ = context.changed.write(1);
}
