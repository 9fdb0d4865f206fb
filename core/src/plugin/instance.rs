//! One open instance of a plugin, whichever interface it implements: its services, the guest memory that it knows, the
//! queries of its counters, and its close.
use super::{
    Counters, Plugin,
    control::{Control, Controlled},
    error::{BackendError, with_reason},
    host::HostServices,
    sampler,
    statistics::Statistics,
};
use crate::memory::GuestMemory;
use pollux_abi::{block_v1::MemoryRegion, host_v1::HostV1, text::TextBuffer};
use std::{
    ffi::c_void,
    mem,
    os::fd::RawFd,
    ptr::null_mut,
    sync::{Arc, MutexGuard, Weak},
};
use tracing::warn;

/// The control calls that every interface has, out of its table. The first argument of each is the instance.
#[derive(Clone, Copy, Debug)]
pub(super) struct InstanceCalls {
    pub(super) close: unsafe extern "C" fn(*mut c_void),
    pub(super) statistics: unsafe extern "C" fn(*mut c_void, *mut TextBuffer) -> i32,
    pub(super) memory_add: unsafe extern "C" fn(*mut c_void, *const MemoryRegion, *mut TextBuffer) -> i32,
    pub(super) memory_remove: unsafe extern "C" fn(*mut c_void, *const MemoryRegion),
}

/// An open instance. It is closed when the last one lets go of it. `[control]`
#[derive(Debug)]
pub(super) struct Instance {
    name: String,
    plugin: Plugin,
    calls: InstanceCalls,
    instance: *mut c_void,
    /// Released after `close`: fields are dropped after that.
    services: HostServices,
    control: Arc<Control>,
}

// SAFETY: control calls are made one at a time (`control` is their lock), and may come from any thread.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

impl Instance {
    /// Opens an instance called `name` by `open`, which gets the services for it, and the places for the instance and
    /// for the reason of a refusal. One that is opened as a `probe` is only described.
    ///
    /// # Errors
    /// It was refused.
    ///
    /// # Safety
    /// `calls` are of the interface that `open` opens an instance of.
    pub(super) unsafe fn open(
        plugin: &Plugin,
        (name, probe): (&str, bool),
        calls: InstanceCalls,
        open: impl FnOnce(*const HostV1, &mut *mut c_void, *mut TextBuffer) -> i32,
    ) -> Result<Arc<Self>, BackendError> {
        let services = HostServices::new(plugin.name(), name, probe)
            .map_err(|error| BackendError::Refused { name: name.into(), reason: error.to_string() })?;
        let mut instance = null_mut();
        with_reason(name, |error| open(services.table(), &mut instance, error))?;
        let (name, plugin) = (name.into(), plugin.clone());
        Ok(Arc::new(Instance { name, plugin, calls, instance, services, control: Arc::default() }))
    }

    /// Its name in the configuration.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The plugin that serves it.
    pub(super) fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// The first argument of control calls.
    pub(super) fn handle(&self) -> *mut c_void {
        self.instance
    }

    /// Becomes readable when the plugin says that its description has changed, until that is
    /// [taken](Self::take_changed).
    pub(super) fn change_event(&self) -> RawFd {
        self.services.change_event()
    }

    /// From now on, a change of the description is a new one.
    pub(super) fn take_changed(&self) {
        self.services.take_changed();
    }

    /// Makes sure that only one control call is made at a time.
    ///
    /// # Errors
    /// The plugin hangs in a query of its counters.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Controlled>, BackendError> {
        let hangs = || BackendError::Hangs { name: self.name.clone(), plugin: self.plugin.name().into() };
        self.control.lock().ok_or_else(hangs)
    }

    /// Tells the plugin about the regions of the guest's memory that it does not know yet. They stay mapped until they
    /// are withdrawn.
    ///
    /// It is not told about memory that another process may take pages out of: if the plugin or a device pinned them,
    /// they would keep using pages that no longer belong to the guest. Segments in such memory are valid only for the
    /// request that they come with.
    ///
    /// # Errors
    /// The plugin's reason for refusing a region. Those before it are known then.
    pub(super) fn add_memory(&self, memory: &GuestMemory) -> Result<(), BackendError> {
        if memory.is_foreign() {
            return Ok(());
        }
        self.lock()?.memory.add(memory, |region| {
            // SAFETY: the instance is open; the region stays mapped until it is removed.
            with_reason(&self.name, |error| unsafe { (self.calls.memory_add)(self.instance, region, error) })
        })
    }

    /// Withdraws all regions that are not in `memory` from the plugin. No request that points into one may be in
    /// flight. If the plugin hangs, none is withdrawn: they stay mapped.
    pub(super) fn remove_memory_but(&self, memory: Option<&GuestMemory>) {
        let mut controlled = match self.lock() {
            Ok(controlled) => controlled,
            Err(error) => return warn!("{error}; memory of the guest stays mapped"),
        };
        controlled.memory.remove_but(memory, |region| {
            // SAFETY: the instance is open, and the region was announced before and is still mapped.
            unsafe { (self.calls.memory_remove)(self.instance, region) }
        });
    }

    /// Queries the plugin's own counters for this instance at intervals, and once more when it is closed. A control
    /// thread passes each answer to `publish`.
    ///
    /// # Errors
    /// An earlier query hangs.
    pub(super) fn count(&self, publish: impl FnMut(&Counters) + Send + 'static) -> Result<(), BackendError> {
        let asked = (self.calls.statistics, self.instance);
        let statistics = Statistics::new(asked, (&self.name, self.plugin.name()), publish);
        self.lock()?.begin_statistics(statistics);
        let control: Weak<Control> = Arc::downgrade(&self.control);
        sampler::add(control);
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // All queues are closed: each holds the instance.
        if !self.control.end_statistics() {
            warn!("{}: the plugin {} does not answer `statistics`: it is left open", self.name, self.plugin.name());
            // Together with the memory that it knows.
            mem::forget(self.control.clone());
            return;
        }
        self.remove_memory_but(None);
        // SAFETY: opened once, closed once.
        unsafe { (self.calls.close)(self.instance) };
    }
}
