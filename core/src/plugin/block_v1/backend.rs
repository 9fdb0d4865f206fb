//! One opened medium of a plugin: the control calls of `block/1`.
use super::super::{
    Counters, Plugin,
    error::BackendError,
    instance::{Instance, InstanceCalls},
};
use crate::memory::GuestMemory;
use pollux_abi::{
    block_v1::{
        BlockInfo, BlockOpen, BlockV1, POLLUX_BLOCK_INFO_READ_ONLY, POLLUX_BLOCK_OPEN_PROBE,
        POLLUX_BLOCK_OPEN_READ_ONLY, POLLUX_BLOCK_READ,
    },
    text::Text,
};
use std::{ffi::c_void, mem::MaybeUninit, os::fd::RawFd, sync::Arc};

/// How to open a backend.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The plugin's `options`, a JSON object.
    pub json: String,
    /// Never write to the medium.
    pub read_only: bool,
    /// Only describe the medium: it takes no lock.
    pub probe: bool,
}

/// One opened medium of a plugin. `[control]`
#[derive(Debug)]
pub struct BlockBackend {
    instance: Arc<Instance>,
    table: &'static BlockV1,
    info: BlockInfo,
}

impl BlockBackend {
    /// Opens an instance called `name`.
    ///
    /// # Errors
    /// The plugin has no `block/1`, refuses the options, or describes an impossible medium.
    pub fn open(plugin: &Plugin, name: &str, options: &OpenOptions) -> Result<Arc<Self>, BackendError> {
        let table = plugin.interface::<BlockV1>(BlockV1::NAME)?;
        let mut flags = 0;
        if options.read_only {
            flags |= POLLUX_BLOCK_OPEN_READ_ONLY;
        }
        if options.probe {
            flags |= POLLUX_BLOCK_OPEN_PROBE;
        }
        let json = if options.json.is_empty() { "{}" } else { &options.json };
        let calls = InstanceCalls {
            close: table.close,
            statistics: table.statistics,
            memory_add: table.memory_add,
            memory_remove: table.memory_remove,
        };
        let open = |host, instance: &mut *mut c_void, error| {
            let (name, options) = (Text::new(name), Text::new(json));
            let arguments = BlockOpen { host, name, options, flags, reserved0: 0, reserved: [0; 4] };
            // SAFETY: the table was checked, and the arguments live during the call.
            unsafe { (table.open)(&arguments, instance, error) }
        };
        // SAFETY: the calls are of the same table.
        let instance = unsafe { Instance::open(plugin, (name, options.probe), calls, open)? };
        let (described, mut info) = describe(table, instance.handle());
        if options.read_only {
            // Whatever the plugin describes.
            info.flags |= POLLUX_BLOCK_INFO_READ_ONLY;
        }
        let backend = BlockBackend { instance, table, info };
        backend.check_info(described, &backend.info)?;
        Ok(Arc::new(backend))
    }

    fn check_info(&self, described: i32, info: &BlockInfo) -> Result<(), BackendError> {
        let power = |size: u32, least: u32| size.is_power_of_two() && (least..=1 << 20).contains(&size);
        let block = u64::from(info.logical_block_size);
        let at_least = |limit: u64, least: u64| limit == 0 || limit >= least;
        let what = if described < 0 {
            format!("describe answered {described}")
        } else if !power(info.logical_block_size, 512) {
            format!("a logical block of {} bytes", info.logical_block_size)
        } else if !power(info.physical_block_size, info.logical_block_size) {
            format!("a physical block of {} bytes", info.physical_block_size)
        } else if info.capacity < info.logical_block_size.into() {
            format!("{} bytes, which is less than one block of {}", info.capacity, info.logical_block_size)
        } else if !info.offers(POLLUX_BLOCK_READ) {
            "it cannot be read".into()
        } else if !at_least(info.maximum_transfer.into(), block.max(4096)) {
            format!("transfers of at most {} bytes", info.maximum_transfer)
        } else if !at_least(info.maximum_discard, block) {
            format!("discards of at most {} bytes", info.maximum_discard)
        } else if !at_least(info.maximum_write_zeroes, block) {
            format!("write-zeroes of at most {} bytes", info.maximum_write_zeroes)
        } else if !u64::from(info.discard_alignment).is_multiple_of(block) {
            format!("discards aligned to {} bytes", info.discard_alignment)
        } else {
            return Ok(());
        };
        Err(self.impossible(what))
    }

    fn impossible(&self, what: String) -> BackendError {
        BackendError::Description { name: self.name().into(), plugin: self.plugin().name().into(), what }
    }

    /// The instance's name in the configuration.
    pub fn name(&self) -> &str {
        self.instance.name()
    }

    /// The plugin that serves it.
    pub fn plugin(&self) -> &Plugin {
        self.instance.plugin()
    }

    /// What the medium is like.
    pub fn info(&self) -> &BlockInfo {
        &self.info
    }

    /// Asks the plugin again what the medium is like: [`info`](Self::info) is as it was at the start.
    ///
    /// # Errors
    /// It describes an impossible medium, or one with other blocks than before.
    pub fn describe(&self) -> Result<BlockInfo, BackendError> {
        self.instance.take_changed();
        let lock = self.instance.lock()?;
        let (described, info) = describe(self.table, self.instance.handle());
        drop(lock);
        self.check_info(described, &info)?;
        if info.logical_block_size != self.info.logical_block_size {
            return Err(self.impossible(format!("its blocks had {} bytes before", self.info.logical_block_size)));
        }
        Ok(info)
    }

    /// Becomes readable when the plugin reports that its description has changed; [`describe`](Self::describe) clears
    /// it.
    pub fn change_event(&self) -> RawFd {
        self.instance.change_event()
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
    pub fn add_memory(&self, memory: &GuestMemory) -> Result<(), BackendError> {
        self.instance.add_memory(memory)
    }

    /// Withdraws all regions that are not in `memory` from the plugin. No request that points into one may be in
    /// flight. If the plugin hangs, none is withdrawn: they stay mapped.
    pub fn remove_memory_but(&self, memory: Option<&GuestMemory>) {
        self.instance.remove_memory_but(memory);
    }

    /// Queries the plugin's own counters for this instance at intervals, and once more when it is closed. A control
    /// thread passes each answer to `publish`.
    ///
    /// # Errors
    /// An earlier query hangs.
    pub fn count(&self, publish: impl FnMut(&Counters) + Send + 'static) -> Result<(), BackendError> {
        self.instance.count(publish)
    }

    /// The functions.
    pub(super) fn table(&self) -> &'static BlockV1 {
        self.table
    }

    /// What it has of any interface.
    pub(super) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

/// The plugin's description of the medium, and the result of the call.
fn describe(table: &BlockV1, instance: *mut c_void) -> (i32, BlockInfo) {
    let mut info = MaybeUninit::<BlockInfo>::zeroed();
    // SAFETY: the instance is open, and the caller keeps control calls apart.
    let described = unsafe { (table.describe)(instance, info.as_mut_ptr()) };
    // SAFETY: a block of integers, zeroed before.
    (described, unsafe { info.assume_init() })
}
