//! The open medium: what it is like, how long it is, and where it turned out to end.
use crate::{
    background::Background,
    counters::Counters,
    discard::DiscardMethod,
    end::MediumEnd,
    engine::Engine,
    fallback::FallbackThread,
    geometry::{Geometry, capacity_of, end_of},
    lock::Lock,
    nvme::Namespace,
    write_order::WriteOrder,
};
use pollux_abi::{
    block::BlockInfo,
    block_v1::{
        POLLUX_BLOCK_DISCARD, POLLUX_BLOCK_FLUSH, POLLUX_BLOCK_INFO_READ_ONLY, POLLUX_BLOCK_INFO_VOLATILE_CACHE,
        POLLUX_BLOCK_READ, POLLUX_BLOCK_WRITE, POLLUX_BLOCK_WRITE_ZEROES,
    },
    flush_latch::FlushLatch,
    host::{Host, Level},
    image_format::mark_raw,
    options::Size,
};
use std::{fmt, fs::File, io, path::PathBuf, sync::Arc};

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

impl Image {
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

    /// Checks whether the file has become shorter than the guest was told, before a change that would make it longer
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
