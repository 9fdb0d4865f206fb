//! The plugin's own counters for one instance: `statistics`, called by the sampler.
use super::counters::{self, ANSWER_BYTES_MAX, Counters};
use pollux_abi::text::TextBuffer;
use std::{ffi::c_void, fmt};
use tracing::warn;

/// `statistics` in the table of any interface.
type Call = unsafe extern "C" fn(*mut c_void, *mut TextBuffer) -> i32;

/// An open instance, and the recipient of its answers. `[control]`
pub(super) struct Statistics {
    call: Call,
    instance: *mut c_void,
    /// Instance and plugin, for the log.
    name: String,
    plugin: String,
    publish: Box<dyn FnMut(&Counters) + Send>,
    answer: Box<[u8]>,
    is_fault_told: bool,
}

// SAFETY: control calls may come from any thread, and the control lock serialises them.
unsafe impl Send for Statistics {}

impl Statistics {
    /// For an instance that stays open until this is dropped.
    pub(super) fn new(
        (call, instance): (Call, *mut c_void),
        (name, plugin): (&str, &str),
        publish: impl FnMut(&Counters) + Send + 'static,
    ) -> Self {
        Statistics {
            call,
            instance,
            name: name.into(),
            plugin: plugin.into(),
            publish: Box::new(publish),
            answer: vec![0; ANSWER_BYTES_MAX].into(),
            is_fault_told: false,
        }
    }

    /// Queries once. The control lock must be held.
    pub(super) fn ask(&mut self) {
        let mut text = TextBuffer::new(&mut self.answer);
        // SAFETY: the instance is open, and the caller holds the control lock.
        let result = unsafe { (self.call)(self.instance, &mut text) };
        let length = text.length;
        let (counters, fault) = if result < 0 {
            (Vec::new(), Some(format!("error {}", result.unsigned_abs())))
        } else if length > self.answer.len() {
            (Vec::new(), Some(format!("{length} bytes, of which {ANSWER_BYTES_MAX} are read at most")))
        } else {
            counters::read(&self.answer[..length])
        };
        if let Some(fault) = fault
            && !self.is_fault_told
        {
            self.is_fault_told = true;
            warn!("{}: the plugin {} answers `statistics` with {fault}", self.name, self.plugin);
        }
        (self.publish)(&counters);
    }
}

impl fmt::Debug for Statistics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Statistics").field("name", &self.name).finish_non_exhaustive()
    }
}
