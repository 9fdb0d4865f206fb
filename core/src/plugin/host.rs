//! The services that Pollux lends to plugins: their log lines become the host's, with their names.
use crate::log_budget::LogBudget;
use pollux_abi::{
    host_v1::{HostV1, POLLUX_LOG_DEBUG, POLLUX_LOG_ERROR, POLLUX_LOG_INFO, POLLUX_LOG_WARN},
    text::Text,
};
use std::{
    collections::VecDeque,
    ffi::c_void,
    io,
    os::fd::{AsRawFd, RawFd},
    panic::catch_unwind,
    ptr::null_mut,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tracing::level_filters::LevelFilter;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Number of a plugin's tables that rest before the first of them is lent again. If a thread that the plugin should
/// have ended keeps using the table of a closed instance, its calls are ignored; only after this many other instances
/// could it be mistaken for another instance of the same plugin.
const RESTING: usize = 32;

/// Tables that are not lent at the moment, the one given back first in front.
static FREE: Mutex<VecDeque<&'static ServiceTable>> = Mutex::new(VecDeque::new());

/// What is lent to one instance, for as long as it is open.
#[derive(Debug)]
struct Lent {
    /// Empty for the plugin as a whole.
    instance: String,
    changed: EventFd,
    lines: LogBudget,
}

/// A table of services, and the state behind it. It is never freed, and the part that a plugin reads never changes,
/// since a thread of the plugin may still use it when its instance is closed (`host_v1`: it stays valid until the
/// process ends). The table does nothing then, until it is lent to another instance of the same plugin.
#[derive(Debug)]
struct ServiceTable {
    table: HostV1,
    plugin: String,
    lent: Mutex<Option<Arc<Lent>>>,
}

// SAFETY: the table's pointer leads to the value itself, which lives for ever and is behind a lock where it changes.
unsafe impl Send for ServiceTable {}
// SAFETY: as above.
unsafe impl Sync for ServiceTable {}

/// The services of one instance. When this is dropped, what remains is a table that does nothing.
#[derive(Debug)]
pub(super) struct HostServices {
    table: &'static ServiceTable,
    lent: Arc<Lent>,
}

impl HostServices {
    /// For the `instance` of a plugin. An instance opened as a `probe` is opened once more if it is used, and reports
    /// then what an operator wants to know: until then, only its complaints matter.
    ///
    /// # Errors
    /// No more file descriptors.
    pub(super) fn new(plugin: &str, instance: &str, probe: bool) -> io::Result<Self> {
        let log_level = if probe { log_level().min(POLLUX_LOG_WARN) } else { log_level() };
        let lent = Arc::new(Lent {
            instance: instance.into(),
            changed: EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            lines: LogBudget::of_plugin(),
        });
        let table = ServiceTable::take(plugin, log_level);
        *lock(&table.lent) = Some(lent.clone());
        Ok(HostServices { table, lent })
    }

    pub(super) fn table(&self) -> *const HostV1 {
        &self.table.table
    }

    /// Becomes readable when the plugin says that its description has changed.
    pub(super) fn change_event(&self) -> RawFd {
        self.lent.changed.as_raw_fd()
    }

    /// Clears that.
    pub(super) fn take_changed(&self) {
        // EAGAIN: it has not.
        let _ = self.lent.changed.read();
    }
}

impl Drop for HostServices {
    fn drop(&mut self) {
        *lock(&self.table.lent) = None;
        lock(&FREE).push_back(self.table);
    }
}

impl ServiceTable {
    /// A table for `plugin`: a used one if one has rested long enough.
    fn take(plugin: &str, log_level: u32) -> &'static Self {
        let mut free = lock(&FREE);
        let fits = |table: &ServiceTable| table.plugin == plugin && table.table.log_level == log_level;
        let mut fitting = free.iter().enumerate().filter(|(_, table)| fits(table)).map(|(index, _)| index);
        let (first, count) = (fitting.next(), 1 + fitting.count());
        let rested = first.filter(|_| count > RESTING).and_then(|first| free.remove(first));
        rested.unwrap_or_else(|| Self::make(plugin, log_level))
    }

    fn make(plugin: &str, log_level: u32) -> &'static Self {
        let table = HostV1 {
            struct_size: size_of::<HostV1>() as u32,
            log_level,
            context: null_mut(),
            log,
            changed,
            reserved: [0; 4],
        };
        let made = Box::into_raw(Box::new(ServiceTable { table, plugin: plugin.into(), lent: Mutex::new(None) }));
        // SAFETY: it was just made, nobody else has it yet, and it is never freed.
        unsafe {
            (*made).table.context = made.cast();
            &*made
        }
    }

    /// The instance that it is lent to; `None` if that is closed.
    fn lent(&self) -> Option<Arc<Lent>> {
        lock(&self.lent).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        // SAFETY: the context is a `ServiceTable`, which is never freed; the texts live during the call.
        let (table, target, message) = unsafe { (&*context.cast::<ServiceTable>(), target.as_str(), message.as_str()) };
        let Some(lent) = table.lent().filter(|_| level <= table.table.log_level) else { return };
        if !lent.lines.may_log(&table.plugin) {
            return;
        }
        let (plugin, instance) = (table.plugin.as_str(), lent.instance.as_str());
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
    let table = unsafe { &*context.cast::<ServiceTable>() };
    if let Some(lent) = table.lent() {
        // If the counter is full, the host has been told long ago.
        let _ = lent.changed.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn says_changed(table: *const HostV1) {
        // SAFETY: tables live for ever.
        unsafe { ((*table).changed)((*table).context) }
    }

    #[test]
    fn a_table_does_nothing_once_its_instance_is_closed_and_others_are_not_mistaken_for_it() {
        let closed = HostServices::new("late", "first", false).expect("services");
        let stale = closed.table();
        drop(closed);
        let open: Vec<_> = (0..RESTING).map(|_| HostServices::new("late", "next", false).expect("services")).collect();
        says_changed(stale);
        // SAFETY: tables live for ever, and the texts are static.
        unsafe { ((*stale).log)((*stale).context, 1, Text::new(""), Text::new("said too late")) };
        for services in &open {
            assert_ne!(services.table(), stale);
            let rung = services.lent.changed.read().map_err(|error| error.kind());
            assert_eq!(rung, Err(io::ErrorKind::WouldBlock));
        }
        says_changed(open[0].table());
        assert_eq!(open[0].lent.changed.read().ok(), Some(1), "one that is open is heard");
    }

    #[test]
    fn however_many_instances_come_and_go_there_are_few_tables_and_no_descriptors() {
        let services = || HostServices::new("busy", "disk", false).expect("services");
        let tables: HashSet<_> = (0..1000).map(|_| services().table()).collect();
        assert!(tables.len() <= RESTING + 1, "{} tables", tables.len());
        let (event, lent) = {
            let closed = services();
            (closed.change_event(), Arc::downgrade(&closed.lent))
        };
        assert!(lent.upgrade().is_none(), "its event {event} is closed with it");
    }

    #[test]
    fn the_table_of_one_plugin_is_not_lent_to_another() {
        let tables = |plugin: &str| -> HashSet<_> {
            (0..3 * RESTING).map(|_| HostServices::new(plugin, "disk", false).expect("services").table()).collect()
        };
        assert!(tables("one").is_disjoint(&tables("other")));
    }
}
