//! Opening an NVMe namespace by its generic device, for passthrough.
use crate::{
    access::{cannot_open, open_claiming},
    availability::{self, try_ring},
    background::Background,
    counters::Counters,
    discard::DiscardMethod,
    end::MediumEnd,
    engine::Engine,
    geometry::{Alignment, Geometry, queue_limit},
    image::Image,
    lock::Lock,
    nvme::Namespace,
    options::Options,
};
use io_uring::{cqueue, squeue};
use pollux_abi::{
    block::{Error, OpenContext},
    flush_latch::FlushLatch,
};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Whether `path` is a generic device of an NVMe namespace, such as `/dev/ng0n1`.
pub(crate) fn is_namespace(device: u64) -> bool {
    generic_name(device).is_some()
}

/// Where /sys has the generic device, and its name.
fn generic_name(device: u64) -> Option<(PathBuf, String)> {
    let link = format!("/sys/dev/char/{}:{}", libc::major(device), libc::minor(device));
    let place = fs::canonicalize(link).ok()?;
    let name = place.file_name()?.to_str()?.strip_prefix("ng")?.to_owned();
    Some((place, name))
}

/// The block device of the same namespace: its name and number.
fn sibling(device: u64) -> Option<(String, u64)> {
    let (place, name) = generic_name(device)?;
    let name = format!("nvme{name}");
    let number = fs::read_to_string(place.parent()?.join(&name).join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((name, libc::makedev(major.parse().ok()?, minor.parse().ok()?)))
}

/// Keeps file systems off the namespace's block device. Commands pass it by, so nothing else would.
fn claim(name: &str, number: u64) -> Result<Option<File>, Error> {
    let path = Path::new("/dev").join(name);
    // Where /dev has no such node, or another one, nothing can mount it by that name.
    if fs::metadata(&path).map_or(0, |metadata| metadata.rdev()) != number {
        return Ok(None);
    }
    match open_claiming(OpenOptions::new().read(true).custom_flags(libc::O_EXCL), &path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(Error::new(format!(
            "{} is mounted or otherwise in use on this host; unmount it, or write lock = false if nothing there writes \
             to it",
            path.display()
        ))),
        Err(error) => Err(cannot_open(&path, false, error)),
    }
}

/// Opens the generic device of a namespace.
pub(crate) fn open(options: &Options, context: &OpenContext, device: u64) -> Result<Image, Error> {
    let (path, writable) = (options.path.as_path(), !context.read_only);
    let lock = (options.lock && !context.probe).then(|| Lock::take(path, writable)).transpose()?;
    let sibling = sibling(device);
    let claim = match &sibling {
        Some((name, number)) if lock.is_some() && writable => claim(name, *number)?,
        _ => None,
    };
    let file = OpenOptions::new().read(true).write(writable).open(path);
    let file = file.map_err(|error| cannot_open(path, writable, error))?;
    let namespace = Namespace::identify(&file)
        .map_err(|error| Error::from_io(format_args!("cannot identify the namespace {}", path.display()), error))?;
    check(path, &namespace)?;
    let block = 1_u32 << namespace.block_shift;
    if options.block_size.is_some_and(|size| size.bytes() != block) {
        return Err(Error::new(format!(
            "{} has {block}-byte blocks: leave block_size out, or use its block device (/dev/nvme…) instead",
            path.display()
        )));
    }
    try_ring::<squeue::Entry128, cqueue::Entry32>(&file, options.queue_depth).map_err(|error| {
        let (cause, shown) = (availability::cause(&error), path.display());
        Error::from_io(format_args!("{shown}: {cause}; or use its block device, with engine = \"sync\""), error)
    })?;
    let disk = sibling.map(|(_, number)| number);
    let limit = |name| disk.and_then(|disk| queue_limit(disk, name));
    // A segment may straddle one page more than its length needs, and each page may be a segment of the device's.
    let segments = (limit("max_segments").unwrap_or(64) / 2).clamp(1, 512);
    let mut longest = segments * 4096;
    for most in [limit("max_hw_sectors_kb").map_or(0, |kibibytes| kibibytes << 10), namespace.maximum_transfer] {
        longest = if most > 0 { longest.min(most) } else { longest };
    }
    let geometry = Geometry {
        is_block_device: false,
        capacity: namespace.capacity(),
        // The kernel copies what the device does not take as it is.
        alignment: Alignment::NONE,
        logical_block_size: block,
        physical_block_size: block.max(4096),
        minimum_io_size: 0,
        optimal_io_size: 0,
        discard_alignment: block,
        allocation_unit: block,
        identity: disk.map_or((device, 1), |disk| (disk, 0)),
    };
    let discard = match writable && namespace.has_discard {
        true => DiscardMethod::Command,
        false => DiscardMethod::None,
    };
    Ok(Image {
        file: Arc::new(file),
        write_order: None,
        end: MediumEnd::new(geometry.capacity),
        looks_at_end: false,
        flush_latch: FlushLatch::new(false, context.host, path.to_owned()),
        background: Background::of_this_thread(context.host, path.to_owned()),
        fallback: None,
        geometry,
        discard,
        engine: Engine::PASSTHROUGH,
        polls_device: options.poll.decide(path, disk, true, Engine::PASSTHROUGH)?,
        namespace: Some(namespace),
        maximum_segments: segments as u32,
        maximum_transfer: longest as u32,
        direct: true,
        read_only: context.read_only,
        counters: Counters::default(),
        path: path.to_owned(),
        host: context.host,
        is_marked: false,
        lock,
        _claim: claim,
    })
}

fn check(path: &Path, namespace: &Namespace) -> Result<(), Error> {
    let shown = path.display();
    let block_device = "use its block device (/dev/nvme…) instead";
    if namespace.blocks == 0 {
        return Err(Error::new(format!("{shown} has no medium: its size is 0")));
    }
    if namespace.metadata > 0 {
        let metadata = namespace.metadata;
        return Err(Error::new(format!("{shown} has {metadata} bytes of metadata with each block: {block_device}")));
    }
    if !(9..=12).contains(&namespace.block_shift) {
        return Err(Error::new(format!("{shown} has blocks of 2^{} bytes: {block_device}", namespace.block_shift)));
    }
    Ok(())
}
