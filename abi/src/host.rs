//! The host's services as the author of a plugin sees them.
//!
//! A plugin has a standard library of its own: what it prints or logs does not reach the host by itself. At load, the
//! plugin's `log` crate and its panic messages are led to the host's log, under the plugin's name; [`Host`] does the
//! same for one instance, under the instance's name.
use crate::{
    host_v1::{HostV1, POLLUX_LOG_DEBUG, POLLUX_LOG_ERROR, POLLUX_LOG_INFO, POLLUX_LOG_TRACE, POLLUX_LOG_WARN},
    text::Text,
};
use std::{
    fmt,
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
};

/// How urgent a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error = POLLUX_LOG_ERROR as isize,
    /// Service goes on, but not as it should.
    Warn = POLLUX_LOG_WARN as isize,
    /// What an operator wants to know once per start.
    Info = POLLUX_LOG_INFO as isize,
    /// For the plugin's author.
    Debug = POLLUX_LOG_DEBUG as isize,
    /// For the plugin's author, in bulk.
    Trace = POLLUX_LOG_TRACE as isize,
}

/// The services that the host lends to one instance. `[any thread]`
#[derive(Clone, Copy, Debug)]
pub struct Host {
    table: *const HostV1,
}

// SAFETY: the table's functions may be called from any thread (`host_v1`).
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// # Safety
    /// `table` must be a host's table that stays valid as long as this value and its copies are used.
    pub(crate) unsafe fn from_raw(table: *const HostV1) -> Self {
        Host { table }
    }

    /// Logs one line under the instance's name. Not for the hot path: it may block.
    pub fn log(&self, level: Level, message: impl fmt::Display) {
        // SAFETY: `from_raw`'s caller vouched for the table.
        unsafe { log(self.table, level as u32, "", &message) }
    }

    /// Says that the answer of `info` has changed, such as the capacity.
    pub fn changed(&self) {
        // SAFETY: as in `log`.
        unsafe { ((*self.table).changed)((*self.table).context) }
    }
}

/// # Safety
/// `table` must be a valid host table.
unsafe fn log(table: *const HostV1, level: u32, target: &str, message: &dyn fmt::Display) {
    // SAFETY: the caller vouches for the table.
    let host = unsafe { &*table };
    if level > host.log_level {
        return;
    }
    let line = message.to_string();
    // SAFETY: the texts live until the call returns.
    unsafe { (host.log)(host.context, level, Text::new(target), Text::new(&line)) }
}

/// The plugin-wide services, for the `log` crate and the panic hook. Set once, at load.
static PLUGIN_HOST: AtomicPtr<HostV1> = AtomicPtr::new(null_mut());

struct Forwarder;

impl log::Log for Forwarder {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let table = PLUGIN_HOST.load(Ordering::Acquire);
        if !table.is_null() {
            // SAFETY: the host promised at load that the table stays valid for ever.
            unsafe { log(table, record.level() as u32, record.target(), record.args()) }
        }
    }

    fn flush(&self) {}
}

/// Leads the plugin's `log` lines and panic messages to the host.
///
/// # Safety
/// `table` must stay valid for ever.
pub(crate) unsafe fn install(table: *const HostV1) {
    PLUGIN_HOST.store(table.cast_mut(), Ordering::Release);
    // SAFETY: the caller vouches for the table.
    let level = unsafe { (*table).log_level };
    log::set_max_level(match level {
        0 => log::LevelFilter::Off,
        POLLUX_LOG_ERROR => log::LevelFilter::Error,
        POLLUX_LOG_WARN => log::LevelFilter::Warn,
        POLLUX_LOG_INFO => log::LevelFilter::Info,
        POLLUX_LOG_DEBUG => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    });
    // Loaded a second time, the library has both already.
    if log::set_logger(&Forwarder).is_ok() {
        std::panic::set_hook(Box::new(|information| {
            let message = information.payload_as_str().unwrap_or("no message");
            match information.location() {
                Some(place) => log::error!("panicked at {place}: {message}"),
                None => log::error!("panicked: {message}"),
            }
        }));
    }
}
