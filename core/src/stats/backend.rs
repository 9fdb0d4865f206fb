//! What a plugin itself counts for a backend.
use super::{
    counter::Counter,
    header::TableOf,
    record::{Name, Record, Words},
};
use std::{
    hint,
    sync::atomic::{AtomicU64, Ordering, fence},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Number of counters that fit.
pub const COUNTERS: usize = 60;

/// A plugin's counters for one backend. Written by one control thread now and then.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct BackendStats {
    life: AtomicU64,
    sequence: AtomicU64,
    count: Counter,
    omitted: Counter,
    written: Counter,
    reserved: [Counter; 3],
    backend: Name,
    plugin: Name,
    reserved_names: [Counter; 8],
    counters: [Slot; COUNTERS],
}

#[repr(C)]
#[derive(Debug)]
struct Slot {
    name: Name<7>,
    value: Counter,
}

/// A counter under the name that its plugin has given it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginCounter {
    /// The name, cut after 56 bytes.
    pub name: String,
    /// The value.
    pub value: u64,
}

/// What a plugin has counted for one backend, at one moment.
#[derive(Clone, Debug)]
pub struct BackendSnapshot {
    /// Name of the backend.
    pub backend: String,
    /// Name of its plugin.
    pub plugin: String,
    /// The counters, in the plugin's order.
    pub counters: Vec<PluginCounter>,
    /// Number of further ones that did not fit.
    pub omitted: u64,
    /// When they were queried, since 1970. `None`: never.
    pub written: Option<Duration>,
}

/// How often to try to copy counters that keep being written.
const ATTEMPTS: usize = 100;

impl BackendStats {
    pub(super) fn describe(&self, backend: &str, plugin: &str) {
        self.backend.set(backend);
        self.plugin.set(plugin);
    }

    /// Replaces all counters. Only the owner of the record may call this.
    pub(super) fn publish<'n>(&self, counters: impl IntoIterator<Item = (&'n str, u64)>) {
        let sequence = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(sequence, Ordering::Relaxed);
        // Partner: the fence of `counters`. A reader that sees any word of what follows also sees that it is being
        // written.
        fence(Ordering::Release);
        let (mut count, mut omitted) = (0, 0);
        for (name, value) in counters {
            let Some(slot) = self.counters.get(count) else {
                omitted += 1;
                continue;
            };
            slot.name.set(name);
            slot.value.set(value);
            count += 1;
        }
        self.count.set(count as u64);
        self.omitted.set(omitted);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.written.set(now.as_millis().try_into().unwrap_or(u64::MAX));
        // Partner: the first load of `counters`.
        self.sequence.store(sequence.wrapping_add(1), Ordering::Release);
    }

    /// A consistent copy of what was written last; without counters if the writing does not come to an end.
    pub(super) fn snapshot(&self) -> BackendSnapshot {
        let (backend, plugin) = (self.backend.get(), self.plugin.get());
        for _ in 0..ATTEMPTS {
            let sequence = self.sequence.load(Ordering::Acquire);
            let copy = self.copy();
            fence(Ordering::Acquire);
            if sequence.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == sequence {
                return copy.into_snapshot(backend, plugin);
            }
            hint::spin_loop();
        }
        BackendSnapshot { backend, plugin, counters: Vec::new(), omitted: 0, written: None }
    }

    fn into_snapshot(self: Box<Self>, backend: String, plugin: String) -> BackendSnapshot {
        let count = usize::try_from(self.count.get()).unwrap_or(usize::MAX);
        let counter = |slot: &Slot| PluginCounter { name: slot.name.get(), value: slot.value.get() };
        let written = Some(self.written.get()).filter(|&written| written > 0);
        BackendSnapshot {
            backend,
            plugin,
            counters: self.counters.iter().take(count).map(counter).collect(),
            omitted: self.omitted.get(),
            written: written.map(Duration::from_millis),
        }
    }
}

// SAFETY: atomic words and nothing else; `the_layout_is_as_documented` finds padding.
unsafe impl Words for BackendStats {
    fn gauges(&self) -> impl Iterator<Item = &AtomicU64> {
        // Only the plugin knows whether a number counts up.
        self.words().iter()
    }
}

impl Record for BackendStats {
    const TABLE: TableOf = TableOf::Backends;

    fn life(&self) -> &AtomicU64 {
        &self.life
    }
}
