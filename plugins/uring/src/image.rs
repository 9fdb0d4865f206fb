//! The open medium, and the messages for one that cannot be used.
use crate::{
    Options,
    background::Background,
    discard::DiscardMethod,
    end::MediumEnd,
    engine::Engine,
    fallback::FallbackThread,
    geometry::{Alignment, Geometry, GeometryError, capacity_of, end_of, knows_its_length},
    lock::Lock,
    namespace::is_namespace,
    nvme::Namespace,
    write_order::WriteOrder,
};
use pollux_abi::{
    block::{BlockInfo, Error, OpenContext},
    block_v1::{
        POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_INFO_READ_ONLY, POLLUX_BLOCK_INFO_VOLATILE_CACHE,
        POLLUX_BLOCK_READ, POLLUX_BLOCK_WRITE, POLLUX_BLOCK_WRITE_ZEROES,
    },
    file_lock::PATIENCE,
    flush_latch::FlushLatch,
    host::{Host, Level},
    image_format::mark_raw,
    options::{BlockSize, Size},
};
use std::{
    fmt,
    fs::{File, FileType, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Direct I/O into memory that must be aligned to more than this is not supported: bounce chunks are pages.
pub(crate) const MAXIMUM_ALIGNMENT: u32 = 4096;

/// Most bytes of a unit of direct I/O: a few of them fit into a bounce chunk.
const MAXIMUM_UNIT: u32 = 65536;

/// Most bytes of a block that guests know how to use.
const MAXIMUM_BLOCK: u32 = 4096;

/// The kernel's IOV_MAX.
pub(crate) const MAXIMUM_SEGMENTS: u32 = 1024;

/// Most bytes of a discard. One takes a kernel thread, and may take a file system's lock, until it is done.
const MAXIMUM_DISCARD: u64 = 1 << 30;

/// Most bytes of zeroes in one request. Where there is no shortcut they are written, which takes seconds.
const MAXIMUM_WRITE_ZEROES: u64 = 256 << 20;

/// An image file or block device, open and locked.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) file: Arc<File>,
    pub(crate) geometry: Geometry,
    pub(crate) end: MediumEnd,
    /// The length is looked at before each change, as a change could make what was cut off into a hole.
    pub(crate) looks_at_end: bool,
    /// Of media whose unit is larger than the guest's block.
    pub(crate) write_order: Option<WriteOrder>,
    pub(crate) discard: DiscardMethod,
    pub(crate) engine: Engine,
    /// Reads and writes end when the worker asks the device (IOPOLL).
    pub(crate) polls_device: bool,
    /// NVMe commands go straight to this namespace.
    pub(crate) namespace: Option<Namespace>,
    pub(crate) maximum_segments: u32,
    /// 0 for no limit.
    pub(crate) maximum_transfer: u32,
    pub(crate) direct: bool,
    pub(crate) read_only: bool,
    pub(crate) counters: Counters,
    pub(crate) flush_latch: FlushLatch,
    pub(crate) background: Background,
    /// Makes the calls for which io_uring can have no thread. None where it needs none.
    pub(crate) fallback: Option<FallbackThread>,
    pub(crate) path: PathBuf,
    pub(crate) host: Host,
    /// Marked as raw, since a guest may write to it.
    pub(crate) is_marked: bool,
    pub(crate) lock: Option<Lock>,
    /// Keeps others off the medium where `file` itself does not.
    pub(crate) _claim: Option<File>,
}

/// What the queues of an instance count: events off the fast path.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bounced: AtomicU64,
    pub(crate) resubmitted: AtomicU64,
    pub(crate) zeroes_written: AtomicU64,
    /// Reads that were tried on the page cache in vain.
    pub(crate) not_cached: AtomicU64,
    /// Calls that the fallback thread has made.
    pub(crate) deferred: AtomicU64,
}

/// Opens the medium. A block device that is claimed now may be free in a moment: a claim ends with the last descriptor,
/// which a ring that was closed, or a child that was just forked, has a little longer.
pub(crate) fn open_claiming(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let start = Instant::now();
    loop {
        match options.open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

impl Image {
    pub(crate) fn open(options: &Options, context: &OpenContext) -> Result<Self, Error> {
        let path = options.path.as_path();
        let block_size = options.block_size.map(BlockSize::bytes);
        if let Some(size) = block_size.filter(|size| *size > MAXIMUM_BLOCK) {
            return Err(Error::new(format!("block_size = {size}: write 512, 1024, 2048 or 4096")));
        }
        let metadata = std::fs::metadata(path).map_err(|error| cannot_open(path, !context.read_only, error))?;
        let kind = metadata.file_type();
        if kind.is_char_device() && is_namespace(metadata.rdev()) {
            return Self::open_namespace(options, context, metadata.rdev());
        }
        check_kind(path, kind)?;
        let (is_block_device, writable) = (kind.is_block_device(), !context.read_only);
        // The lock comes first: nothing of a medium that another process is changing is to be trusted.
        let mut lock = (options.lock && !context.probe).then(|| Lock::take(path, writable)).transpose()?;
        let mut flags = if options.direct { libc::O_DIRECT } else { 0 };
        if is_block_device && writable && lock.is_some() {
            // Without O_CREAT this claims the device, as a mount does. The descriptor that is used must be the one that
            // claims: for any other, the kernel fails fallocate on cached blocks with EBUSY.
            flags |= libc::O_EXCL;
        }
        let file = open_claiming(OpenOptions::new().read(true).write(writable).custom_flags(flags), path);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if options.direct => no_direct(path),
            Some(libc::EBUSY) => Error::new(format!(
                "{} is mounted or otherwise in use on this host; unmount it, or write lock = false if nothing there \
                 writes to it",
                path.display()
            )),
            _ => cannot_open(path, writable, error),
        })?;
        if let Some(lock) = lock.as_mut().filter(|_| writable) {
            lock.cover(&file, path, |line| context.host.log(Level::Warn, line))?;
        }
        options.format.check(path, kind, context)?;
        let geometry = Geometry::of(&file, options.direct, block_size).map_err(|error| match error {
            GeometryError::NoDirect => no_direct(path),
            GeometryError::Io(error) => Error::from_io(format_args!("cannot examine {}", path.display()), error),
        })?;
        check_geometry(path, &geometry, options.direct, writable)?;
        let is_marked = writable && !context.probe;
        if is_marked {
            mark_raw(&file);
        }
        let engine = Engine::choose(options, context, &file, &geometry)?;
        let discard = match writable {
            true => DiscardMethod::of(&file, &geometry, engine.is_sync, context.probe),
            false => DiscardMethod::None,
        };
        let disk = is_block_device.then_some(metadata.rdev());
        let fallback = (!engine.is_sync && !context.probe).then(|| start_fallback(path)).transpose()?;
        // With direct I/O a file still has metadata in the kernel's caches, and a network file system may say only once
        // that it has lost what it took. Of a block device the kernel keeps nothing then.
        let latches = !(options.direct && is_block_device);
        let looks_at_end = writable && !is_block_device && (engine.is_sync || knows_its_length(&file));
        Ok(Image {
            file: Arc::new(file),
            write_order: geometry.has_parts().then(WriteOrder::default),
            end: MediumEnd::new(geometry.capacity),
            looks_at_end,
            flush_latch: FlushLatch::new(latches, context.host, path.to_owned()),
            background: Background::of_this_thread(context.host, path.to_owned()),
            fallback,
            geometry,
            discard,
            engine,
            polls_device: options.poll.decide(path, disk, options.direct, engine)?,
            namespace: None,
            maximum_segments: MAXIMUM_SEGMENTS,
            maximum_transfer: 0,
            direct: options.direct,
            read_only: context.read_only,
            counters: Counters::default(),
            path: path.to_owned(),
            host: context.host,
            is_marked,
            lock,
            _claim: None,
        })
    }

    pub(crate) fn info(&self) -> BlockInfo {
        let mut operations = 1 << POLLUX_BLOCK_READ | 1 << POLLUX_BLOCK_FLUSH;
        if !self.read_only {
            operations |= 1 << POLLUX_BLOCK_WRITE | 1 << POLLUX_BLOCK_WRITE_ZEROES;
        }
        if self.discard != DiscardMethod::None {
            operations |= 1 << POLLUX_BLOCK_DISCARD;
        }
        let geometry = &self.geometry;
        BlockInfo {
            identity_device: geometry.identity.0,
            identity_object: geometry.identity.1,
            logical_block_size: geometry.logical_block_size,
            physical_block_size: geometry.physical_block_size,
            minimum_io_size: geometry.minimum_io_size,
            optimal_io_size: geometry.optimal_io_size,
            operations,
            // Direct writes pass the page cache, not the cache of the disk.
            flags: match (self.read_only, self.namespace) {
                (true, _) => POLLUX_BLOCK_INFO_READ_ONLY,
                (false, Some(Namespace { has_cache: false, .. })) => 0,
                (false, _) => POLLUX_BLOCK_INFO_VOLATILE_CACHE,
            },
            maximum_transfer: self.maximum_transfer,
            maximum_segments: self.maximum_segments,
            maximum_discard: MAXIMUM_DISCARD,
            discard_alignment: geometry.discard_alignment,
            maximum_write_zeroes: self
                .namespace
                .map_or(MAXIMUM_WRITE_ZEROES, |namespace| MAXIMUM_WRITE_ZEROES.min(namespace.longest_command())),
            ..BlockInfo::new(self.measure())
        }
    }

    /// The capacity to tell of, in whole blocks: whoever manages the medium may have resized it.
    fn measure(&self) -> u64 {
        let block = u64::from(self.geometry.capacity_unit(self.read_only));
        match self.length() {
            Ok(length) if length >= block => {
                let capacity = length / block * block;
                self.end.tell(capacity);
                if self.is_marked {
                    mark_raw(&self.file);
                }
                capacity
            }
            // There is no disk without a block.
            _ => self.end.told(),
        }
    }

    /// The bytes that the medium has now.
    fn length(&self) -> io::Result<u64> {
        match self.namespace {
            Some(_) => Namespace::identify(&self.file).map(|namespace| namespace.capacity()),
            None => capacity_of(&self.file, self.geometry.is_block_device),
        }
    }

    /// Looks whether the file has become shorter than the guest was told, before a change that would make it longer
    /// again. `file` is the caller's own open file of it: of a shared one, the kernel locks the position.
    pub(crate) fn look_at_end(&self, file: &File) {
        // In this order: what the guest is told of later may be longer than what is seen now.
        let told = self.end.told();
        if let Ok(length) = end_of(file)
            && length < told
        {
            self.ended_at(length);
        }
    }

    /// A request has come to the end of the medium at this byte.
    #[cold]
    pub(crate) fn ended_at(&self, byte: u64) {
        // A write in flight may have made a file longer again, and a file may end before the byte that was asked for.
        let end = self.length().map_or(byte, |length| length.min(byte));
        if self.end.found_at(end) {
            self.host.log(
                Level::Warn,
                format_args!(
                    "{} ends at byte {end}, but the guest was told of {} bytes: requests beyond the end fail until the \
                     media are measured again (SIGHUP)",
                    self.path.display(),
                    self.end.told()
                ),
            );
        }
    }
}

/// The line that is logged at open.
impl fmt::Display for Image {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = &self.geometry;
        write!(
            formatter,
            "{}: {}, {} bytes in {}-byte blocks{}, {}, {}, {}, {}, {}",
            self.path.display(),
            match self.namespace {
                Some(_) => "NVMe namespace",
                None if geometry.is_block_device => "block device",
                None => "file",
            },
            Size::from_bytes(geometry.capacity),
            geometry.logical_block_size,
            match &self.write_order {
                Some(_) => format!(" (parts of the {} bytes that are written at a time)", geometry.alignment.offset),
                None => String::new(),
            },
            if self.read_only { "read-only" } else { "writable" },
            if self.direct { "direct" } else { "through the page cache" },
            if self.lock.is_some() { "locked" } else { "not locked" },
            match self.discard {
                DiscardMethod::None => "no discard",
                DiscardMethod::PunchHole => "discard by fallocate",
                DiscardMethod::Command if self.namespace.is_some() => "discard by dataset management",
                DiscardMethod::Command => "discard by BLKDISCARD",
            },
            self.engine,
        )?;
        if self.polls_device { formatter.write_str(", polled") } else { Ok(()) }
    }
}

/// As the JSON object of `statistics`.
impl fmt::Display for Counters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            r#"{{"bounced":{},"resubmitted":{},"zeroes_written":{},"not_cached":{},"deferred":{}}}"#,
            self.bounced.load(Ordering::Relaxed),
            self.resubmitted.load(Ordering::Relaxed),
            self.zeroes_written.load(Ordering::Relaxed),
            self.not_cached.load(Ordering::Relaxed),
            self.deferred.load(Ordering::Relaxed),
        )
    }
}

/// Anything but a file or block device is refused before it is opened: opening a pipe, for one, might wait for ever.
fn check_kind(path: &Path, kind: FileType) -> Result<(), Error> {
    let what = match kind {
        _ if kind.is_file() || kind.is_block_device() => return Ok(()),
        _ if kind.is_dir() => "a folder",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_fifo() => "a pipe",
        _ => "a socket",
    };
    Err(Error::new(format!(
        "{} is {what}: path must name an image file, a block device or an NVMe namespace (/dev/ng0n1)",
        path.display()
    )))
}

/// Says why `path` could not be opened, for writing if `writable`.
pub(crate) fn cannot_open(path: &Path, writable: bool, error: io::Error) -> Error {
    let shown = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT) => {
            Error::from_io(format_args!("cannot open {shown}: create it first, such as with `truncate -s 10G`"), error)
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if writable => Error::from_io(
            format_args!("cannot open {shown} for writing: allow this user to write to it, or open it read-only"),
            error,
        ),
        Some(libc::EACCES | libc::EPERM) => {
            Error::from_io(format_args!("cannot open {shown}: allow this user to read it"), error)
        }
        _ => Error::from_io(format_args!("cannot open {shown}"), error),
    }
}

fn start_fallback(path: &Path) -> Result<FallbackThread, Error> {
    FallbackThread::start().map_err(|error| {
        let shown = path.display();
        Error::from_io(format_args!("cannot start a thread for {shown}: allow more (pids.max, ulimit -u)"), error)
    })
}

fn no_direct(path: &Path) -> Error {
    Error::new(format!("{} does not take direct I/O (O_DIRECT): write direct = false", path.display()))
}

fn check_geometry(path: &Path, geometry: &Geometry, direct: bool, writable: bool) -> Result<(), Error> {
    let shown = path.display();
    let Alignment { memory, offset } = geometry.alignment;
    let is_usable = |size: u32, most| size <= most && size.is_power_of_two();
    if direct && !(is_usable(memory, MAXIMUM_ALIGNMENT) && is_usable(offset, MAXIMUM_UNIT)) {
        return Err(Error::new(format!(
            "{shown} takes direct I/O only in units of {} bytes: write direct = false",
            memory.max(offset)
        )));
    }
    if geometry.capacity == 0 {
        return Err(Error::new(if geometry.is_block_device {
            format!("{shown} has no medium: its size is 0")
        } else {
            format!("{shown} is empty: give it its size, such as with `truncate -s 10G`")
        }));
    }
    let (block, unit) = (geometry.logical_block_size, geometry.capacity_unit(!writable));
    let whole = geometry.capacity.next_multiple_of(unit.into());
    if whole == geometry.capacity || geometry.is_block_device {
        return Ok(());
    }
    let size = format!("the size of {shown}, {} bytes, is not a whole number of", geometry.capacity);
    Err(Error::new(if geometry.capacity.is_multiple_of(block.into()) {
        format!(
            "{size} the {unit} bytes that its file system writes directly: extend it with `truncate -s {whole}`, or \
             write direct = false"
        )
    } else {
        format!("{size} its {block}-byte blocks: extend it with `truncate -s {whole}`")
    }))
}
