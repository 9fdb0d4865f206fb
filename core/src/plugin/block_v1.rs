//! The host's side of `block/1`, and the choke point of its contract: every completion is checked here.
use super::{LoadError, Plugin, host::HostServices};
use crate::memory::GuestMemory;
use pollux_abi::{
    block_v1::{
        BlockCompletion, BlockCompletions, BlockInfo, BlockOpen, BlockQueueHandle, BlockRequest, BlockV1, MemoryRegion,
        POLLUX_BLOCK_INFO_READ_ONLY, POLLUX_BLOCK_OPEN_PROBE, POLLUX_BLOCK_OPEN_READ_ONLY, POLLUX_BLOCK_READ,
    },
    text::{Text, TextBuffer},
};
use std::{
    ffi::c_void,
    mem::MaybeUninit,
    os::fd::RawFd,
    ptr::null_mut,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tracing::warn;

/// Room for a plugin's message, in bytes.
const MESSAGE_CAPACITY: usize = 2048;

/// Why a backend could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The plugin cannot be used at all.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The plugin said no.
    #[error("{name}: {reason}")]
    Refused {
        /// The instance.
        name: String,
        /// The plugin's reason.
        reason: String,
    },
    /// The plugin describes something that cannot be.
    #[error("{name}: the plugin {plugin} describes an impossible medium: {what}")]
    Description {
        /// The instance.
        name: String,
        /// The plugin.
        plugin: String,
        /// What cannot be.
        what: String,
    },
}

/// How to open a backend.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The plugin's `options`, a JSON object.
    pub json: String,
    /// Never write.
    pub read_only: bool,
    /// Only describe it: it takes no lock.
    pub probe: bool,
}

/// One opened medium of a plugin. `[control]`
#[derive(Debug)]
pub struct BlockBackend {
    name: String,
    plugin: Plugin,
    table: &'static BlockV1,
    instance: *mut c_void,
    info: BlockInfo,
    services: &'static HostServices,
    /// The memory that the plugin was told of, kept mapped until it is taken back, and the regions that it knows. Also
    /// keeps control calls apart, as the contract wants.
    memory: Mutex<Announced>,
}

#[derive(Debug, Default)]
struct Announced {
    memory: Option<GuestMemory>,
    regions: Vec<MemoryRegion>,
}

// SAFETY: control calls are made one at a time (`memory` is their lock), and may come from any thread.
unsafe impl Send for BlockBackend {}
// SAFETY: as above.
unsafe impl Sync for BlockBackend {}

impl BlockBackend {
    /// Opens an instance called `name`.
    ///
    /// # Errors
    /// The plugin has no `block/1`, refuses the options, or describes an impossible medium.
    pub fn open(plugin: &Plugin, name: &str, options: &OpenOptions) -> Result<Arc<Self>, BackendError> {
        let table = plugin.interface::<BlockV1>(BlockV1::NAME)?;
        // A thread of the plugin's may use the services after `close`, so they are never freed.
        let services: &'static HostServices = Box::leak(Box::new(HostServices::new(plugin.name(), name)));
        let mut flags = 0;
        if options.read_only {
            flags |= POLLUX_BLOCK_OPEN_READ_ONLY;
        }
        if options.probe {
            flags |= POLLUX_BLOCK_OPEN_PROBE;
        }
        let json = if options.json.is_empty() { "{}" } else { &options.json };
        let arguments = BlockOpen {
            host: services.table(),
            name: Text::new(name),
            options: Text::new(json),
            flags,
            reserved0: 0,
            reserved: [0; 4],
        };
        let mut instance = null_mut();
        // SAFETY: the table was checked, and the arguments live during the call.
        with_reason(name, |error| unsafe { (table.open)(&arguments, &mut instance, error) })?;
        let mut info = MaybeUninit::<BlockInfo>::zeroed();
        // SAFETY: the instance was just opened.
        let described = unsafe { (table.describe)(instance, info.as_mut_ptr()) };
        // SAFETY: a block of integers, zeroed before.
        let mut info = unsafe { info.assume_init() };
        if options.read_only {
            // Whatever the plugin says.
            info.flags |= POLLUX_BLOCK_INFO_READ_ONLY;
        }
        let backend = BlockBackend {
            name: name.into(),
            plugin: plugin.clone(),
            table,
            instance,
            info,
            services,
            memory: Mutex::default(),
        };
        backend.check_info(described)?;
        Ok(Arc::new(backend))
    }

    fn check_info(&self, described: i32) -> Result<(), BackendError> {
        let info = &self.info;
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
        Err(BackendError::Description { name: self.name.clone(), plugin: self.plugin.name().into(), what })
    }

    /// The instance's name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin that serves it.
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// What the medium is like.
    pub fn info(&self) -> &BlockInfo {
        &self.info
    }

    /// Whether the plugin has said since the last call that its description changed.
    pub fn take_changed(&self) -> bool {
        self.services.take_changed()
    }

    /// Tells the plugin of the guest's memory, in place of what it was told before. `None`: there is none any more. No
    /// request may be in flight that points into memory that goes.
    ///
    /// # Errors
    /// The plugin's reason for refusing a region.
    pub fn set_memory(&self, memory: Option<&GuestMemory>) -> Result<(), BackendError> {
        let mut known = self.lock();
        if let (Some(old), Some(new)) = (&known.memory, memory)
            && old.is_same(new)
        {
            return Ok(());
        }
        self.forget_memory(&mut known);
        let Some(memory) = memory else { return Ok(()) };
        known.memory = Some(memory.clone());
        for region in memory.regions() {
            // SAFETY: the instance is open; the region stays mapped until it is removed, since `known` holds it.
            with_reason(&self.name, |error| unsafe { (self.table.memory_add)(self.instance, &region, error) })?;
            known.regions.push(region);
        }
        Ok(())
    }

    fn forget_memory(&self, known: &mut Announced) {
        for region in known.regions.drain(..) {
            // SAFETY: the instance is open, and the region was announced before and is still mapped.
            unsafe { (self.table.memory_remove)(self.instance, &region) };
        }
        known.memory = None;
    }

    fn lock(&self) -> MutexGuard<'_, Announced> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens queue `index` with room for `depth` requests in flight.
    ///
    /// # Errors
    /// The plugin's reason.
    pub fn open_queue(self: &Arc<Self>, index: u32, depth: u32) -> Result<BackendQueue, BackendError> {
        let lock = self.lock();
        let mut handle = BlockQueueHandle { queue: null_mut(), wake_fd: -1, reserved0: 0, reserved: [0; 2] };
        // SAFETY: the instance is open.
        with_reason(&self.name, |error| unsafe {
            (self.table.queue_open)(self.instance, index, depth, &mut handle, error)
        })?;
        drop(lock);
        let empty = BlockCompletion { token: 0, result: 0, reserved: 0 };
        Ok(BackendQueue {
            queue: handle.queue,
            submit: self.table.submit,
            poll: self.table.poll,
            tokens: vec![NO_TOKEN; depth as usize].into(),
            completions: vec![empty; depth as usize].into(),
            completed: 0,
            in_flight: 0,
            generation: 0,
            failed: false,
            started: false,
            wake_fd: (handle.wake_fd >= 0).then_some(handle.wake_fd),
            backend: self.clone(),
        })
    }
}

impl Drop for BlockBackend {
    fn drop(&mut self) {
        // All queues are closed: each holds the backend.
        self.forget_memory(&mut self.lock());
        // SAFETY: opened once, closed once.
        unsafe { (self.table.close)(self.instance) };
    }
}

/// Makes a control call and turns its failure into words.
fn with_reason(name: &str, call: impl FnOnce(*mut TextBuffer) -> i32) -> Result<(), BackendError> {
    let mut room = vec![0; MESSAGE_CAPACITY];
    let mut buffer = TextBuffer::new(&mut room);
    let result = call(&mut buffer);
    if result >= 0 {
        return Ok(());
    }
    let length = buffer.length.min(MESSAGE_CAPACITY);
    let mut reason = String::from_utf8_lossy(&room[..length]).into_owned();
    if reason.is_empty() {
        reason = std::io::Error::from_raw_os_error(result.saturating_neg()).to_string();
    }
    Err(BackendError::Refused { name: name.into(), reason })
}

/// The queue of a backend has failed: its plugin panicked or broke the contract. It takes no more requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QueueFailed(&'static str);

/// A queue could not be stopped: something may still write to the memory of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plugin could not stop the queue")]
pub struct StopFailed;

/// One completed request, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot that its request was submitted in.
    pub slot: u32,
    /// 0, or a negative errno.
    pub result: i32,
}

const NO_TOKEN: u64 = u64::MAX;
const SLOT_BITS: u32 = 32;

/// One queue of a backend, `[worker]` unless said otherwise. A request is known by its slot, a number below the
/// depth; on its way to the plugin it gets a token that is used once.
#[derive(Debug)]
pub struct BackendQueue {
    queue: *mut c_void,
    submit: unsafe extern "C" fn(*mut c_void, *const BlockRequest, u32, *mut BlockCompletions) -> i32,
    poll: unsafe extern "C" fn(*mut c_void, *mut BlockCompletions) -> i32,
    /// The token in flight of each slot.
    tokens: Box<[u64]>,
    completions: Box<[BlockCompletion]>,
    /// Valid entries of `completions`, checked.
    completed: usize,
    in_flight: u32,
    generation: u32,
    failed: bool,
    started: bool,
    wake_fd: Option<RawFd>,
    backend: Arc<BlockBackend>,
}

// SAFETY: a queue is used by one thread at a time; the contract allows that to be another one after `queue_stop`.
unsafe impl Send for BackendQueue {}

impl BackendQueue {
    /// The calling thread owns the queue from now on.
    ///
    /// # Errors
    /// The plugin's reason.
    pub fn start(&mut self) -> Result<(), BackendError> {
        let (table, queue) = (self.backend.table, self.queue);
        // SAFETY: the queue is open and not started.
        with_reason(&self.backend.name, |error| unsafe { (table.queue_start)(queue, error) })?;
        self.started = true;
        Ok(())
    }

    /// Offers requests, in order; returns how many were taken. The `token` of each must be its slot, and that slot
    /// must be free. Those that completed at once are in [`completion`](Self::completion).
    ///
    /// # Errors
    /// The queue has failed: take its requests back with [`take_in_flight`](Self::take_in_flight), after those that
    /// did complete.
    #[inline]
    pub fn submit(&mut self, requests: &mut [BlockRequest]) -> Result<usize, QueueFailed> {
        self.completed = 0;
        if self.failed {
            return Err(QueueFailed("it has failed before"));
        }
        // Below 2^31, so that no token is `NO_TOKEN`.
        self.generation = self.generation.wrapping_add(1) & 0x7fff_ffff;
        for request in &mut *requests {
            let slot = request.token as u32;
            request.token = u64::from(slot) | u64::from(self.generation) << SLOT_BITS;
            let entry = &mut self.tokens[slot as usize];
            assert!(*entry == NO_TOKEN, "a slot was submitted twice");
            *entry = request.token;
        }
        let mut buffer = self.buffer();
        // SAFETY: the queue is started and its worker calls; requests and buffer are valid for the counts given.
        let taken = unsafe { (self.submit)(self.queue, requests.as_ptr(), requests.len() as u32, &mut buffer) };
        let Ok(taken) = usize::try_from(taken) else { return Err(self.fail("submit failed")) };
        if taken > requests.len() {
            return Err(self.fail("submit took more requests than there were"));
        }
        for request in &mut requests[taken..] {
            let slot = request.token as u32;
            self.tokens[slot as usize] = NO_TOKEN;
            request.token = slot.into();
        }
        self.in_flight += taken as u32;
        self.check(buffer.count)?;
        Ok(taken)
    }

    /// Looks for completed requests; returns how many there are.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    #[inline]
    pub fn poll(&mut self) -> Result<usize, QueueFailed> {
        self.completed = 0;
        if self.failed {
            return Err(QueueFailed("it has failed before"));
        }
        let mut buffer = self.buffer();
        // SAFETY: the queue is started and its worker calls; the buffer has room for every request in flight.
        let result = unsafe { (self.poll)(self.queue, &mut buffer) };
        if result < 0 {
            return Err(self.fail("poll failed"));
        }
        self.check(buffer.count)?;
        Ok(self.completed)
    }

    /// Number of completions of the last `submit` or `poll`.
    #[inline]
    pub fn completed(&self) -> usize {
        self.completed
    }

    /// One of them.
    #[inline]
    pub fn completion(&self, index: usize) -> Completion {
        let BlockCompletion { token, result, .. } = self.completions[..self.completed][index];
        Completion { slot: token as u32, result }
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Most requests in flight.
    pub fn depth(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the queue has failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// After a failure: the slots of all requests that were in flight. They will not complete any more.
    pub fn take_in_flight(&mut self) -> Vec<u32> {
        let tokens = self.tokens.iter_mut().enumerate();
        let slots = tokens
            .filter_map(|(slot, token)| (std::mem::replace(token, NO_TOKEN) != NO_TOKEN).then_some(slot as u32))
            .collect();
        self.in_flight = 0;
        slots
    }

    /// A descriptor that becomes readable when an armed queue has completions. `[any thread]`
    pub fn wake_fd(&self) -> Option<RawFd> {
        self.wake_fd
    }

    /// Before (`true`) and after a sleep on [`wake_fd`](Self::wake_fd). Returns whether the worker must not sleep.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn arm(&mut self, armed: bool) -> Result<bool, QueueFailed> {
        if self.failed || self.wake_fd.is_none() {
            return Ok(self.in_flight > 0);
        }
        // SAFETY: the queue is started and its worker calls.
        match unsafe { (self.backend.table.arm)(self.queue, armed.into()) } {
            0 => Ok(false),
            1.. => Ok(true),
            _ => Err(self.fail("arm failed")),
        }
    }

    /// The worker gives the queue back. Returns when nothing touches the memory of its requests any more; those that
    /// were in flight, if the queue has failed, do not complete.
    ///
    /// # Errors
    /// That cannot be said. Neither the queue nor the memory of its requests may be freed or used again, ever.
    pub fn stop(&mut self) -> Result<(), StopFailed> {
        if !std::mem::take(&mut self.started) {
            return Ok(());
        }
        // SAFETY: the queue is started and its worker calls.
        if unsafe { (self.backend.table.queue_stop)(self.queue) } < 0 {
            self.started = true;
            return Err(StopFailed);
        }
        self.in_flight = 0;
        Ok(())
    }

    /// The backend it belongs to. `[any thread]`
    pub fn backend(&self) -> &Arc<BlockBackend> {
        &self.backend
    }

    #[inline(always)]
    fn buffer(&mut self) -> BlockCompletions {
        self.completed = 0;
        BlockCompletions { entries: self.completions.as_mut_ptr(), capacity: self.completions.len() as u32, count: 0 }
    }

    /// Checks what the plugin put into the buffer: each token is in flight, and completes once.
    #[inline(always)]
    fn check(&mut self, count: u32) -> Result<(), QueueFailed> {
        let count = count as usize;
        if count > self.completions.len() {
            return Err(self.fail("more completions than there is room for"));
        }
        for index in 0..count {
            let token = self.completions[index].token;
            match self.tokens.get_mut(token as u32 as usize) {
                Some(entry) if *entry == token && token != NO_TOKEN => *entry = NO_TOKEN,
                _ => return Err(self.fail("a completion for a request that is not in flight")),
            }
            // Those before a bad one count: they are gone from `tokens`.
            self.completed = index + 1;
            self.in_flight -= 1;
        }
        Ok(())
    }

    #[cold]
    fn fail(&mut self, what: &'static str) -> QueueFailed {
        self.failed = true;
        QueueFailed(what)
    }
}

impl Drop for BackendQueue {
    fn drop(&mut self) {
        if self.started || self.in_flight > 0 {
            warn!("{}: a queue is leaked, since it was not stopped", self.backend.name);
            // The plugin may still use what the queue owns, and only its worker may stop it.
            std::mem::forget(std::mem::take(&mut self.completions));
            std::mem::forget(self.backend.clone());
            return;
        }
        let _lock = self.backend.lock();
        // SAFETY: opened once, closed once, stopped before; control calls are kept apart by the lock.
        unsafe { (self.backend.table.queue_close)(self.queue) };
    }
}
