//! The memory, and what can be done to it.
//!
//! Several queues, on several threads, work on the same memory without locks, as they do on a disk: what overlapping
//! requests leave behind is for the guest to avoid. So the memory is only ever reached through raw pointers.
use crate::options::Options;
use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use pollux_abi::{
    block::{BlockInfo, EIO, ENOTSUP, Error, OpenContext, Segment},
    block_v1::{
        POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_INFO_READ_ONLY, POLLUX_BLOCK_INFO_VOLATILE_CACHE,
        POLLUX_BLOCK_READ, POLLUX_BLOCK_WRITE, POLLUX_BLOCK_WRITE_ZEROES,
    },
    file_lock::{Access, FileLock, PATIENCE, WHOLE_FILE},
    flush_latch::FlushLatch,
    host::Host,
    image_format::mark_raw,
    options::Size,
};
use pollux_guard::Registration;
use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64},
    },
};

/// Longest write-zeroes in bytes: what the worker can afford to do at once.
const MAXIMUM_WRITE_ZEROES: u64 = 4 << 20;

/// Longest discard in bytes, for the same reason.
const MAXIMUM_DISCARD: u64 = 64 << 20;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Pages are what memory is given back in. A larger page of the mapping only makes the kernel do less.
const PAGE: usize = 4096;

/// The memory of a disk.
#[derive(Debug)]
pub(crate) struct Medium {
    /// Of a mapped file. Dropped before it is unmapped.
    guard: Option<Registration>,
    /// `None` in an instance that is only described.
    memory: Option<MmapRaw>,
    pub(crate) file: Option<MappedFile>,
    /// What is mapped is the kernel's to write back, and to lose.
    flush_latch: Mutex<FlushLatch>,
    pub(crate) capacity: u64,
    block_size: u32,
    read_only: bool,
    /// Whether discarded parts are given back to the file system or to the host.
    discards: bool,
    /// For what happens later.
    pub(crate) host: Host,
    /// Requests that were served by system calls, once the mapping had lost pages.
    pub(crate) calls: AtomicU64,
    /// Whether it was said that pages were lost.
    pub(crate) is_loss_told: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    /// `None` for a file that a real open would create.
    pub(crate) file: Option<File>,
    sparse: bool,
    /// Released after the memory is unmapped, which the medium drops before.
    _lock: Option<FileLock>,
}

impl Medium {
    pub(crate) fn open(options: &Options, context: &OpenContext) -> Result<Self, Error> {
        let (file, capacity) = match (&options.path, options.size) {
            (Some(path), size) => {
                let (file, capacity) = open_file(path, size, options, context)?;
                (Some(file), capacity)
            }
            (None, Some(size)) => (None, size.bytes()),
            (None, None) => {
                return Err(Error::new("options: write size = \"1G\" for a disk in memory, or path = \"disk.img\""));
            }
        };
        let block = u64::from(options.block_size.bytes());
        if capacity == 0 || !capacity.is_multiple_of(block) {
            let what = options.path.as_ref().map_or("size".into(), |path| format!("the size of {}", path.display()));
            return Err(Error::new(format!(
                "{what}, {capacity} bytes, is not a whole number of {block}-byte blocks: write size = \"{}\"",
                Size::from_bytes(capacity.next_multiple_of(block).max(block))
            )));
        }
        let memory = if context.probe { None } else { Some(map(file.as_ref(), capacity, context.read_only)?) };
        let guard = match (&memory, file.as_ref().and_then(|file| file.file.as_ref())) {
            (Some(memory), Some(file)) => Some(guard(memory, file, context.read_only)?),
            _ => None,
        };
        let discards = !context.read_only && file.as_ref().is_none_or(|file| file.sparse);
        let (block_size, read_only) = (options.block_size.bytes(), context.read_only);
        let path = options.path.clone().unwrap_or_default();
        let flush_latch = Mutex::new(FlushLatch::new(true, context.host, path));
        let (host, calls, is_loss_told) = (context.host, AtomicU64::new(0), AtomicBool::new(false));
        Ok(Medium {
            guard,
            memory,
            file,
            flush_latch,
            capacity,
            block_size,
            read_only,
            discards,
            host,
            calls,
            is_loss_told,
        })
    }

    pub(crate) fn info(&self) -> BlockInfo {
        let mut operations = 1 << POLLUX_BLOCK_READ | 1 << POLLUX_BLOCK_FLUSH;
        let mut flags = 0;
        if self.read_only {
            flags |= POLLUX_BLOCK_INFO_READ_ONLY;
        } else {
            operations |= 1 << POLLUX_BLOCK_WRITE | 1 << POLLUX_BLOCK_WRITE_ZEROES;
        }
        if self.discards {
            operations |= 1 << POLLUX_BLOCK_DISCARD;
        }
        // To be asked again is a reason to look.
        self.is_cut();
        let metadata = self.file.as_ref().and_then(|file| file.file.as_ref()?.metadata().ok());
        if self.file.is_some() && !self.read_only {
            flags |= POLLUX_BLOCK_INFO_VOLATILE_CACHE;
        }
        BlockInfo {
            identity_device: metadata.as_ref().map_or(0, |metadata| metadata.dev()),
            identity_object: metadata.as_ref().map_or(0, |metadata| metadata.ino()),
            logical_block_size: self.block_size,
            physical_block_size: self.block_size,
            operations,
            flags,
            maximum_discard: MAXIMUM_DISCARD,
            discard_alignment: self.block_size.max(PAGE as u32),
            maximum_write_zeroes: MAXIMUM_WRITE_ZEROES,
            ..BlockInfo::new(self.capacity)
        }
    }

    /// Whether the mapping has lost pages, so that requests must be done by system calls. After a `false`, all accesses
    /// before were to the file.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Registration::is_damaged)
    }

    /// Whether somebody has cut the file: then the end of its last page, which the mapping still has, is no part of it
    /// any more.
    fn is_cut(&self) -> bool {
        let Some(guard) = &self.guard else { return false };
        let file = self.file.as_ref().and_then(|file| file.file.as_ref());
        let is_cut = file.is_some_and(|file| file.metadata().is_ok_and(|metadata| metadata.len() < self.capacity));
        if is_cut {
            guard.set_damaged();
        }
        is_cut
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The bytes `offset..offset + length`, if the medium has them all. The only way to a [`Part`].
    #[inline]
    pub(crate) fn range(&self, offset: u64, length: u64) -> Option<Part> {
        let memory = self.memory.as_ref()?;
        let (start, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        let end = start.checked_add(length)?;
        (end <= memory.len()).then_some(Part(start..end))
    }

    /// Begins to fetch the start of a part that is read next: its page's translation and first lines then arrive during
    /// the copy before it. More lines than two gain nothing, and many get in that copy's way.
    #[inline]
    pub(crate) fn fetch(&self, part: &Part) {
        for offset in part.0.clone().step_by(LINE).take(2) {
            fetch_line(self.at(offset));
        }
    }

    /// Copies from the medium to the segments.
    #[inline]
    pub(crate) fn read(&self, part: &Part, segments: &[Segment]) {
        self.for_each_piece(part, segments, |inside, outside, length| {
            // SAFETY: both are `length` bytes of memory that stays mapped: ours, and a request's in flight. Guest
            // memory and the medium do not overlap, and other threads may change either (see the module).
            unsafe { ptr::copy_nonoverlapping(inside, outside, length) };
        });
    }

    /// Copies from the segments to the medium.
    #[inline]
    pub(crate) fn write(&self, part: &Part, segments: &[Segment]) {
        self.for_each_piece(part, segments, |inside, outside, length| {
            // SAFETY: as in `read`.
            unsafe { ptr::copy_nonoverlapping(outside, inside, length) };
        });
    }

    #[inline]
    fn for_each_piece(&self, part: &Part, segments: &[Segment], action: impl Fn(*mut u8, *mut u8, usize)) {
        let mut at = part.0.start;
        for segment in segments {
            let length = segment.length.min(part.0.end - at);
            action(self.at(at), segment.base, length);
            at += length;
        }
    }

    /// The address of byte `offset`.
    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        let memory = self.memory.as_ref().expect("a range has memory");
        memory.as_mut_ptr().wrapping_add(offset)
    }

    /// Gives the part's memory or blocks back. What it reads as afterwards depends on where it was.
    pub(crate) fn discard(&self, part: &Part) -> i32 {
        if !self.discards {
            return -ENOTSUP;
        }
        match self.give_back(part) {
            Ok(_) => 0,
            // A file system without holes.
            Err(error) if error.raw_os_error() == Some(ENOTSUP) => 0,
            Err(error) => -error.raw_os_error().unwrap_or(EIO),
        }
    }

    /// Makes the part read as zeroes, giving its memory or blocks back if `unmap` allows it.
    pub(crate) fn write_zeroes(&self, part: &Part, unmap: bool) {
        let zero = if unmap && self.discards { self.give_back(part).unwrap_or(0..0) } else { 0..0 };
        for rest in [part.0.start..zero.start.max(part.0.start), zero.end.max(part.0.start)..part.0.end] {
            // SAFETY: the range lies within the medium, since it lies within the part.
            unsafe { ptr::write_bytes(self.at(rest.start), 0, rest.len()) };
        }
    }

    /// Gives back what can be of the part, and returns which range then reads as zeroes.
    fn give_back(&self, part: &Part) -> io::Result<Range<usize>> {
        if self.is_cut() {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some(file) = self.file.as_ref().and_then(|file| file.file.as_ref()) {
            self.punch(file, part)?;
            return Ok(part.0.clone());
        }
        let whole = part.0.start.next_multiple_of(PAGE)..part.0.end / PAGE * PAGE;
        if whole.is_empty() {
            return Ok(part.0.start..part.0.start);
        }
        let memory = self.memory.as_ref().expect("a range has memory");
        // SAFETY: private anonymous memory reads as zeroes afterwards, and no Rust reference points into it.
        unsafe { memory.unchecked_advise_range(UncheckedAdvice::DontNeed, whole.start, whole.len())? };
        Ok(whole)
    }

    /// Gives the blocks of a part of the file back, which then reads as zeroes.
    pub(crate) fn punch(&self, file: &File, part: &Part) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fallocate(file, mode, part.0.start as u64, part.0.len() as u64)
    }

    /// Whether discarded parts are given back.
    pub(crate) fn discards(&self) -> bool {
        self.discards
    }

    /// Makes everything durable. Waits for the file system.
    pub(crate) fn flush(&self) -> i32 {
        self.flush_range(&Part(0..self.memory.as_ref().map_or(0, MmapRaw::len)))
    }

    /// Makes the part durable. Waits for the file system.
    pub(crate) fn flush_range(&self, part: &Part) -> i32 {
        match &self.memory {
            Some(memory) if self.file.is_some() && !self.read_only => {
                self.is_cut();
                self.latched(|| memory.flush_range(part.0.start, part.0.len()))
            }
            _ => 0,
        }
    }

    /// Does a flush, unless one has failed before: then what it lost is lost. One at a time: of two, one alone would
    /// hear of a loss.
    pub(crate) fn latched(&self, flush: impl FnOnce() -> io::Result<()>) -> i32 {
        let latch = self.flush_latch.lock().unwrap_or_else(PoisonError::into_inner);
        latch.failure().unwrap_or_else(|| match flush() {
            Ok(()) => 0,
            Err(error) => latch.outcome(-error.raw_os_error().unwrap_or(EIO)),
        })
    }
}

/// A range of bytes that lies within the medium.
#[derive(Debug)]
pub(crate) struct Part(pub(crate) Range<usize>);

/// The line that is logged at open.
impl fmt::Display for Medium {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(formatter, "{}, mapped: ", file.path.display())?,
            None => formatter.write_str("memory: ")?,
        }
        write!(
            formatter,
            "{} bytes in {}-byte blocks, {}, {}",
            Size::from_bytes(self.capacity),
            self.block_size,
            if self.read_only { "read-only" } else { "writable" },
            if self.discards { "discard gives space back" } else { "no discard" },
        )
    }
}

/// Opens the file, gives it its size and its blocks, and returns it with its size.
fn open_file(
    path: &Path,
    size: Option<Size>,
    options: &Options,
    context: &OpenContext,
) -> Result<(MappedFile, u64), Error> {
    let shown = path.display();
    let mapped = |file, lock| MappedFile { path: path.to_owned(), file, sparse: options.sparse, _lock: lock };
    let cannot = |what: &str, error| Error::from_io(format_args!("cannot {what} {shown}"), error);
    match std::fs::metadata(path).map(|metadata| metadata.file_type()) {
        Ok(kind) if kind.is_file() => options.format.check(path, kind, context)?,
        Ok(kind) if kind.is_block_device() => {
            return Err(Error::new(format!("{shown} is a block device: use the uring plugin for it")));
        }
        Ok(_) => return Err(Error::new(format!("{shown} is no file: path must name one that can be mapped"))),
        // A probe creates nothing; the real open would.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !context.read_only => match size {
            Some(size) if context.probe => return Ok((mapped(None, None), size.bytes())),
            Some(_) => {}
            None => {
                return Err(Error::new(format!(
                    "{shown} does not exist: write size = \"1G\" to have it created, or correct path"
                )));
            }
        },
        Err(error) => return Err(cannot("open", error)),
    }
    let writable = !context.read_only;
    let change = writable && !context.probe;
    let file =
        OpenOptions::new().read(true).write(writable).create(change && size.is_some()).truncate(false).open(path);
    let file = file.map_err(|error| cannot("open", error))?;
    let access = if writable { Access::Exclusive } else { Access::Shared };
    let lock = (options.lock && !context.probe).then(|| FileLock::take(&file, access, WHOLE_FILE, PATIENCE));
    let lock = lock.transpose().map_err(|error| error.explain(path))?;
    let found = file.metadata().map_err(|error| cannot("examine", error))?.len();
    let capacity = size.map_or(found, Size::bytes);
    if found > capacity {
        return Err(Error::new(format!(
            "{shown} has {found} bytes, more than size = \"{}\": leave size out, or cut the file",
            Size::from_bytes(capacity)
        )));
    }
    if found == 0 && capacity == 0 {
        return Err(Error::new(format!("{shown} is empty: write size = \"1G\" to have it extended")));
    }
    if found < capacity && context.read_only {
        return Err(Error::new(format!(
            "{shown} has {found} bytes, less than size = \"{}\", and is opened read-only: leave size out",
            Size::from_bytes(capacity)
        )));
    }
    if found < capacity && change {
        file.set_len(capacity).map_err(|error| cannot("extend", error))?;
    }
    if change {
        mark_raw(&file);
    }
    if change && !options.sparse {
        match fallocate(&file, 0, 0, capacity) {
            Err(error) if error.raw_os_error() != Some(ENOTSUP) => {
                return Err(cannot("allocate the blocks (sparse = true leaves that until they are written) of", error));
            }
            _ => {}
        }
    }
    Ok((mapped(Some(file), lock), capacity))
}

fn map(file: Option<&MappedFile>, capacity: u64, read_only: bool) -> Result<MmapRaw, Error> {
    let cannot = |error| Error::from_io(format_args!("cannot map {} bytes", Size::from_bytes(capacity)), error);
    let length = usize::try_from(capacity).map_err(|_| cannot(io::Error::from_raw_os_error(libc::ENOMEM)))?;
    let mut options = MmapOptions::new();
    options.len(length);
    match file.and_then(|file| file.file.as_ref()) {
        None => options.map_anon().map(MmapRaw::from),
        Some(file) if read_only => options.map_raw_read_only(file),
        Some(file) => options.map_raw(file),
    }
    .map_err(cannot)
}

fn guard(memory: &MmapRaw, file: &File, read_only: bool) -> Result<Registration, Error> {
    let protection = if read_only { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
    // SAFETY: a mapping of that file, which the medium unmaps after it has dropped the registration. It is reached
    // through pointers alone, and what is done to it after a loss is done again.
    unsafe { Registration::new(file, memory.as_ptr(), memory.len(), protection) }
        .map_err(|error| Error::from_io("cannot guard the mapping against SIGBUS", error))
}

fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    let beyond = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let (offset, length) = (i64::try_from(offset).map_err(beyond)?, i64::try_from(length).map_err(beyond)?);
    loop {
        // SAFETY: no memory is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Fetches the cache line of an address.
#[inline(always)]
fn fetch_line(address: *const u8) {
    // SAFETY: a prefetch of any address is harmless.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
