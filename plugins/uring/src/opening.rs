//! Opening the medium that `path` names, and the messages for one that cannot be used.
use crate::{
    access::{cannot_open, open_claiming},
    background::Background,
    counters::Counters,
    discard::DiscardMethod,
    end::MediumEnd,
    engine::Engine,
    fallback::FallbackThread,
    geometry::{Alignment, Geometry, GeometryError, knows_its_length},
    image::{Image, MAXIMUM_SEGMENTS},
    lock::Lock,
    namespace,
    options::Options,
    write_order::WriteOrder,
};
use pollux_abi::{
    block::{Error, OpenContext},
    flush_latch::FlushLatch,
    host::Level,
    image_format::mark_raw,
    options::BlockSize,
};
use std::{
    fs::{self, FileType, OpenOptions},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

/// Direct I/O into memory that must be aligned to more than this is not supported: bounce chunks are pages.
const MAXIMUM_ALIGNMENT: u32 = 4096;

/// Most bytes of a unit of direct I/O: a few of them fit into a bounce chunk.
const MAXIMUM_UNIT: u32 = 65536;

/// Most bytes of a block that guests know how to use.
const MAXIMUM_BLOCK: u32 = 4096;

/// Opens what the option `path` names.
pub(crate) fn open(options: &Options, context: &OpenContext) -> Result<Image, Error> {
    let path = options.path.as_path();
    let block_size = options.block_size.map(BlockSize::bytes);
    if let Some(size) = block_size.filter(|size| *size > MAXIMUM_BLOCK) {
        return Err(Error::new(format!("block_size = {size}: write 512, 1024, 2048 or 4096")));
    }
    let metadata = fs::metadata(path).map_err(|error| cannot_open(path, !context.read_only, error))?;
    let kind = metadata.file_type();
    if kind.is_char_device() && namespace::is_namespace(metadata.rdev()) {
        return namespace::open(options, context, metadata.rdev());
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
