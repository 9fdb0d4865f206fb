//! A backend linked into the process: a disk in memory that behaves well, or in each way in which a plugin can
//! misbehave.
use pollux_abi::{
    block::{Block, BlockInfo, BlockQueue, Completions, Error, OpenContext, Operation, Request, table},
    block_v1::{BlockV1, MemoryRegion},
    plugin::{Interface, POLLUX_PLUGIN_VERSION, PluginDescriptor},
    text::Text,
};
use pollux_core::{
    block::{
        Disk,
        filter::{Filter, PassThrough},
        stack::Stack,
    },
    plugin::{BackendError, BlockBackend, OpenOptions, Plugin},
};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    iter,
    ops::Deref,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How the disk's queues behave.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// Every request completes within `submit`.
    #[default]
    Inline,
    /// As `Inline`; from the third call of `submit` on it waits in there until the process says [`Control::release`].
    Gated,
    /// Every request completes at the next `poll`.
    Deferred,
    /// As `Deferred`, newest first.
    Reversed,
    /// Takes one request a call, and holds at most four.
    Slow,
    /// Completes on a thread of its own a while later, and has a wake descriptor.
    Threaded,
    /// Completes nothing until the process says so with [`Control::release`].
    Held,
    /// Completes at each `poll` as many as the process has said since with [`Control::complete`], or all after
    /// [`Control::release`], and has a wake descriptor.
    Metered,
    /// Panics in `submit`.
    PanicSubmit,
    /// Panics in `poll`.
    PanicPoll,
    /// Completes each request twice.
    Twice,
    /// Completes a request that was never there.
    Unknown,
    /// Fails every request with ENOSPC.
    Failing,
    /// Takes nothing until it was polled three times.
    Hesitant,
    /// Panics in `poll` while it holds requests, and cannot say that it has stopped.
    Unstoppable,
}

/// Options of a [`ModelDisk`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskOptions {
    size: u64,
    #[serde(default)]
    behaviour: Behaviour,
    #[serde(default = "default_block")]
    block_size: u32,
    #[serde(default)]
    maximum_segments: u32,
    #[serde(default)]
    maximum_transfer: u32,
    #[serde(default)]
    maximum_discard: u64,
    /// Whether a disk that was opened read-only says so.
    #[serde(default)]
    hides_read_only: bool,
}

fn default_block() -> u32 {
    512
}

/// Levers on all disks of the process whose name begins alike: disks are opened through the ABI, which has no room
/// for them.
#[derive(Debug, Default)]
pub struct Control {
    release: AtomicBool,
    /// How many requests `Metered` may complete.
    permits: AtomicUsize,
    /// `Metered` panics.
    panics: AtomicBool,
    /// The next queue finds the disk empty.
    erase: AtomicBool,
    /// Size in bytes that the disk says it has since it was resized; 0: as it was opened.
    resized: AtomicU64,
    /// Descriptions of the disk wait.
    holds_descriptions: AtomicBool,
    /// Descriptions that wait.
    describing: AtomicUsize,
    /// Flushes that reached a disk.
    pub flushes: AtomicUsize,
    /// Queues that were stopped.
    pub stops: AtomicUsize,
    /// Regions of guest memory that a disk was told of.
    pub added_regions: AtomicUsize,
    /// Writes that had to be durable.
    pub durable_writes: AtomicUsize,
}

impl Control {
    /// Lets `Held` and `Metered` requests complete from now on.
    pub fn release(&self) {
        self.release.store(true, Ordering::Release);
    }

    /// Makes the disk as it was when it was opened, from its next queue on. The levers of every name are kept for ever,
    /// so whoever needs many disks takes one many times.
    pub fn renew(&self) {
        self.release.store(false, Ordering::Release);
        self.permits.store(0, Ordering::Release);
        self.panics.store(false, Ordering::Release);
        self.erase.store(true, Ordering::Release);
    }

    /// Lets so many `Metered` requests complete, the oldest first.
    pub fn complete(&self, count: usize) {
        self.permits.fetch_add(count, Ordering::AcqRel);
    }

    /// Lets the next `poll` of `Metered` panic.
    pub fn panic(&self) {
        self.panics.store(true, Ordering::Release);
    }

    /// The disk hangs from now on when it is asked what it is like, until the result is dropped or
    /// [`release_descriptions`](Self::release_descriptions) is called.
    pub fn hold_descriptions(self: &Arc<Self>) -> impl Drop + use<> {
        struct Released(Arc<Control>);
        impl Drop for Released {
            fn drop(&mut self) {
                self.0.release_descriptions();
            }
        }
        self.holds_descriptions.store(true, Ordering::Release);
        Released(self.clone())
    }

    /// It answers again.
    pub fn release_descriptions(&self) {
        self.holds_descriptions.store(false, Ordering::Release);
    }

    /// Whether somebody waits for an answer.
    pub fn is_describing(&self) -> bool {
        self.describing.load(Ordering::Acquire) > 0
    }

    /// The disk says from now on that it has so many bytes, of which only those that it was opened with can be used.
    pub fn resize(&self, bytes: u64) {
        self.resized.store(bytes, Ordering::Release);
    }
}

/// Levers that are released in the end, so that a queue that ends, in a test that fails as well, does not wait for its
/// requests for ever. To be made after the queue.
#[derive(Debug)]
pub struct ReleasedAtEnd(pub Arc<Control>);

impl Deref for ReleasedAtEnd {
    type Target = Control;
    fn deref(&self) -> &Control {
        &self.0
    }
}

impl Drop for ReleasedAtEnd {
    fn drop(&mut self) {
        self.release();
    }
}

static CONTROLS: Mutex<Vec<(String, Arc<Control>)>> = Mutex::new(Vec::new());

/// The levers of the disk `name`.
pub fn control(name: &str) -> Arc<Control> {
    let mut controls = lock(&CONTROLS);
    if let Some((_, control)) = controls.iter().find(|(known, _)| known == name) {
        return control.clone();
    }
    let control = Arc::<Control>::default();
    controls.push((name.into(), control.clone()));
    control
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a disk called `name` of `size` bytes.
///
/// # Errors
/// As [`BlockBackend::open`].
pub fn open(name: &str, size: u64, behaviour: Behaviour) -> Result<Arc<BlockBackend>, BackendError> {
    open_with(name, &format!(r#"{{"size": {size}, "behaviour": "{}"}}"#, kebab(behaviour)), false)
}

/// Opens a disk with any options, as JSON.
///
/// # Errors
/// As [`BlockBackend::open`].
pub fn open_with(name: &str, json: &str, read_only: bool) -> Result<Arc<BlockBackend>, BackendError> {
    let plugin = Plugin::linked(&DESCRIPTOR)?;
    BlockBackend::open(&plugin, name, &OpenOptions { json: json.into(), read_only, probe: false })
}

/// A disk behind so many layers that do nothing.
pub fn behind(layers: usize, disk: Arc<BlockBackend>) -> Arc<dyn Disk> {
    let pass_through = || Arc::new(PassThrough) as Arc<dyn Filter>;
    Stack::over(disk, iter::repeat_with(pass_through).take(layers).collect())
}

fn kebab(behaviour: Behaviour) -> String {
    let mut text = String::new();
    for character in format!("{behaviour:?}").chars() {
        if character.is_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.extend(character.to_lowercase());
    }
    text
}

static BLOCK: BlockV1 = table::<ModelDisk>();
static INTERFACES: [Interface; 1] = [Interface { name: Text::new(BlockV1::NAME), table: (&raw const BLOCK).cast() }];
static DESCRIPTOR: PluginDescriptor = PluginDescriptor {
    struct_size: size_of::<PluginDescriptor>() as u32,
    descriptor_version: POLLUX_PLUGIN_VERSION,
    name: Text::new("model-disk"),
    version: Text::new("0"),
    interfaces: (&raw const INTERFACES).cast(),
    interface_count: 1,
    initialize,
    reserved: [0; 4],
};

unsafe extern "C" fn initialize(_host: *const pollux_abi::host_v1::HostV1) -> i32 {
    0
}

/// The disk.
#[derive(Debug)]
pub struct ModelDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    options: DiskOptions,
    control: Arc<Control>,
    read_only: bool,
}

impl Block for ModelDisk {
    type Options = DiskOptions;
    type Queue = ModelQueue;

    fn open(options: DiskOptions, context: &OpenContext) -> Result<Self, Error> {
        if options.size == 0 {
            return Err(Error::new("size = 0: a disk has at least one block"));
        }
        Ok(ModelDisk {
            bytes: Arc::new(Mutex::new(vec![0; options.size as usize])),
            control: control(&context.name),
            options,
            read_only: context.read_only,
        })
    }

    fn info(&self) -> BlockInfo {
        self.control.describing.fetch_add(1, Ordering::AcqRel);
        while self.control.holds_descriptions.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
        self.control.describing.fetch_sub(1, Ordering::AcqRel);
        let block = self.options.block_size;
        BlockInfo {
            logical_block_size: block,
            physical_block_size: block,
            flags: if self.read_only && !self.options.hides_read_only { 1 } else { 2 },
            maximum_segments: self.options.maximum_segments,
            maximum_transfer: self.options.maximum_transfer,
            maximum_discard: self.options.maximum_discard,
            ..BlockInfo::new(match self.control.resized.load(Ordering::Acquire) {
                0 => self.options.size,
                resized => resized,
            })
        }
    }

    fn memory_added(&self, _region: &MemoryRegion) -> Result<(), Error> {
        self.control.added_regions.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn open_queue(&self, _index: u32, _depth: u32) -> Result<ModelQueue, Error> {
        let wake = EventFd::new(EFD_NONBLOCK).map_err(|error| Error::from_io("cannot make an eventfd", error))?;
        if self.control.erase.swap(false, Ordering::AcqRel) {
            lock(&self.bytes).fill(0);
        }
        Ok(ModelQueue {
            bytes: self.bytes.clone(),
            behaviour: self.options.behaviour,
            maximum_segments: self.options.maximum_segments,
            maximum_transfer: self.options.maximum_transfer,
            control: self.control.clone(),
            held: VecDeque::new(),
            submits: 0,
            polls: 0,
            done: Arc::default(),
            wake: Arc::new(wake),
        })
    }
}

/// A queue of a [`ModelDisk`].
#[derive(Debug)]
pub struct ModelQueue {
    bytes: Arc<Mutex<Vec<u8>>>,
    behaviour: Behaviour,
    maximum_segments: u32,
    maximum_transfer: u32,
    control: Arc<Control>,
    held: VecDeque<Request>,
    submits: u32,
    polls: u32,
    /// Completions of the thread of `Threaded`.
    done: Arc<Mutex<Vec<(u64, i32)>>>,
    wake: Arc<EventFd>,
}

impl ModelQueue {
    fn execute(&self, request: &Request) -> i32 {
        if self.behaviour == Behaviour::Failing {
            return -libc::ENOSPC;
        }
        perform(&self.bytes, &self.control, request)
    }

    /// The host has promised to keep to the limits: a panic here makes the device fail, which a test sees.
    fn check_limits(&self, requests: &[Request]) {
        let is_within = |amount: u64, limit: u32| limit == 0 || amount <= limit.into();
        for request in requests.iter().filter(|request| !request.segments().is_empty()) {
            assert!(is_within(request.length(), self.maximum_transfer), "a transfer of {} bytes", request.length());
            let count = request.segments().len();
            assert!(is_within(count as u64, self.maximum_segments), "{count} segments");
        }
    }

    fn later(&self, request: Request) {
        let (bytes, control) = (self.bytes.clone(), self.control.clone());
        let (done, wake) = (self.done.clone(), self.wake.clone());
        thread::spawn(move || {
            thread::sleep(Duration::from_micros(300));
            let result = perform(&bytes, &control, &request);
            lock(&done).push((request.token(), result));
            wake.write(1).expect("eventfd");
        });
    }
}

fn perform(bytes: &Mutex<Vec<u8>>, control: &Control, request: &Request) -> i32 {
    let mut bytes = lock(bytes);
    let (start, length) = (request.offset() as usize, request.length() as usize);
    // The host has promised that: a panic here makes the device fail, which a test sees.
    let range = bytes.get_mut(start..start + length).expect("the range lies within the disk");
    let sum: usize = request.segments().iter().map(|segment| segment.length).sum();
    match request.operation() {
        Some(Operation::Read) => {
            assert_eq!(sum, length, "the segments add up to the length");
            request.copy_from(range);
        }
        Some(Operation::Write) => {
            assert_eq!(sum, length, "the segments add up to the length");
            control.durable_writes.fetch_add(usize::from(request.is_fua()), Ordering::Relaxed);
            request.copy_to(range);
        }
        Some(Operation::Flush) => {
            control.flushes.fetch_add(1, Ordering::Relaxed);
        }
        Some(Operation::Discard | Operation::WriteZeroes) => range.fill(0),
        None => return -libc::ENOTSUP,
    }
    0
}

impl BlockQueue for ModelQueue {
    fn submit(&mut self, requests: &[Request], done: &mut Completions) -> usize {
        self.check_limits(requests);
        self.submits = self.submits.wrapping_add(1);
        while self.behaviour == Behaviour::Gated && self.submits > 2 && !self.control.release.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        match self.behaviour {
            Behaviour::PanicSubmit => panic!("the model disk was told to panic in submit"),
            Behaviour::Inline | Behaviour::Gated | Behaviour::Failing => {
                for request in requests {
                    done.complete(request.token(), self.execute(request));
                }
            }
            Behaviour::Slow => {
                let room = usize::from(self.held.len() < 4);
                self.held.extend(&requests[..room.min(requests.len())]);
                return room.min(requests.len());
            }
            Behaviour::Threaded => requests.iter().for_each(|request| self.later(*request)),
            Behaviour::Hesitant if self.polls < 3 => return 0,
            Behaviour::Unknown => {
                done.success(requests[0].token() ^ 1 << 40);
                self.held.extend(requests);
            }
            _ => self.held.extend(requests),
        }
        requests.len()
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.control.stops.fetch_add(1, Ordering::SeqCst);
        match self.behaviour {
            Behaviour::Unstoppable if !self.held.is_empty() => Err(Error::with_errno(16, "requests are held")),
            _ => Ok(()),
        }
    }

    fn poll(&mut self, done: &mut Completions) {
        self.polls = self.polls.wrapping_add(1);
        match self.behaviour {
            Behaviour::PanicPoll | Behaviour::Unstoppable => panic!("the model disk was told to panic in poll"),
            Behaviour::Held if !self.control.release.load(Ordering::Acquire) => {}
            Behaviour::Reversed => {
                while let Some(request) = self.held.pop_back() {
                    done.complete(request.token(), self.execute(&request));
                }
            }
            Behaviour::Slow => {
                if let Some(request) = self.held.pop_front() {
                    done.complete(request.token(), self.execute(&request));
                }
            }
            Behaviour::Threaded => {
                // EAGAIN: nothing has completed.
                let _ = self.wake.read();
                for (token, result) in lock(&self.done).drain(..) {
                    done.complete(token, result);
                }
            }
            Behaviour::Metered => {
                assert!(!self.control.panics.load(Ordering::Acquire), "the model disk was told to panic in poll");
                let mut count = self.held.len();
                if !self.control.release.load(Ordering::Acquire) {
                    count = count.min(self.control.permits.load(Ordering::Acquire));
                    self.control.permits.fetch_sub(count, Ordering::AcqRel);
                }
                let ready: Vec<Request> = self.held.drain(..count).collect();
                ready.iter().for_each(|request| done.complete(request.token(), self.execute(request)));
            }
            Behaviour::Twice => {
                for request in self.held.drain(..) {
                    done.success(request.token());
                    done.success(request.token());
                }
            }
            _ => {
                while let Some(request) = self.held.pop_front() {
                    done.complete(request.token(), self.execute(&request));
                }
            }
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        matches!(self.behaviour, Behaviour::Threaded | Behaviour::Metered).then(|| self.wake.as_raw_fd())
    }

    fn arm(&mut self, _armed: bool) -> bool {
        !lock(&self.done).is_empty() || !self.held.is_empty() && self.control.permits.load(Ordering::Acquire) > 0
    }
}
