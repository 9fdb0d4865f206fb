//! Which way requests go: io_uring, or system calls that `submit` makes itself.
use crate::{
    availability::{self, try_ring},
    geometry::{Geometry, disk_names, file_system},
    options::{EngineChoice, Options},
};
use io_uring::{cqueue, squeue};
use pollux_abi::{
    block::{Error, OpenContext},
    host::Level,
};
use std::{
    fmt, fs,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

/// The way to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    pub(crate) is_sync: bool,
    /// Reads can be told not to wait (`RWF_NOWAIT`).
    pub(crate) has_nowait: bool,
    /// The medium is memory: its transfers end within the call that begins them.
    is_memory: bool,
    is_passthrough: bool,
}

impl Engine {
    /// NVMe commands.
    pub(crate) const PASSTHROUGH: Engine =
        Engine { is_sync: false, has_nowait: true, is_memory: false, is_passthrough: true };

    /// Chooses for `file`. Where io_uring can do without its threads it is as quick and never waits. Where it cannot,
    /// system calls are several times quicker, but only memory never makes them wait.
    ///
    /// A process that may not use io_uring has system calls left, which the option must allow.
    pub(crate) fn choose(
        options: &Options,
        context: &OpenContext,
        file: &File,
        geometry: &Geometry,
    ) -> Result<Self, Error> {
        let (has_nowait, is_memory) = (has_nowait(file, geometry), is_memory(file, geometry));
        let engine = |is_sync| Engine { is_sync, has_nowait, is_memory, is_passthrough: false };
        let choice = options.engine;
        if choice == EngineChoice::Sync || choice == EngineChoice::Auto && is_memory && !has_nowait {
            return Ok(engine(true));
        }
        match try_ring::<squeue::Entry, cqueue::Entry>(file, options.queue_depth) {
            Ok(()) => Ok(engine(false)),
            Err(error) if choice == EngineChoice::Auto && availability::is_for_good(&error) => {
                if !context.probe {
                    let cause = availability::cause(&error);
                    let what = "so requests are system calls, during which the worker waits for the medium";
                    context.host.log(Level::Warn, format_args!("{cause} ({error}), {what} (engine = \"auto\")"));
                }
                Ok(engine(true))
            }
            Err(error) => Err(availability::refusal(choice, error)),
        }
    }
}

/// As in the line that is logged at open.
impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.is_sync, self.is_memory, self.has_nowait) {
            (true, true, _) => "by system calls (the medium is memory)",
            (true, false, _) => "by system calls, which may stop the worker",
            _ if self.is_passthrough => "by NVMe commands through io_uring",
            (false, _, true) => "by io_uring",
            (false, true, false) => "by io_uring and kernel threads (engine = \"auto\" is quicker here)",
            (false, false, false) => "by io_uring and kernel threads (no NOWAIT there)",
        })
    }
}

/// Whether reads of the file can be told not to wait. Reads a block.
fn has_nowait(file: &File, geometry: &Geometry) -> bool {
    #[repr(align(4096))]
    struct Aligned([u8; 4096]);
    let mut room = Aligned([0; 4096]);
    let vector =
        libc::iovec { iov_base: room.0.as_mut_ptr().cast(), iov_len: geometry.alignment.offset.min(4096) as usize };
    // SAFETY: the vector is one piece with as much room as it says.
    let result = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, 0, libc::RWF_NOWAIT) };
    // That the block is not at hand (EAGAIN) is an answer of one that knows the flag.
    result >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EOPNOTSUPP)
}

// Of linux/magic.h.
const TMPFS_MAGIC: u32 = 0x0102_1994;
const RAMFS_MAGIC: u32 = 0x8584_58f6;
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// Whether the medium is memory. What of a tmpfs has been swapped out is not, but it is the operator who lets it be.
fn is_memory(file: &File, geometry: &Geometry) -> bool {
    if geometry.is_block_device {
        return file
            .metadata()
            .is_ok_and(|metadata| disk_names(metadata.rdev()).iter().any(|name| is_memory_disk(name)));
    }
    file_system(file).is_some_and(|magic| [TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC].contains(&magic))
}

/// Whether the disk of this name, as in /sys/block, is memory: `ram0`, or a `zram0` that writes nothing to another
/// device.
fn is_memory_disk(name: &str) -> bool {
    let is_numbered = |prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if is_numbered("zram") {
        let backing = fs::read_to_string(format!("/sys/block/{name}/backing_dev"));
        return backing.map_or(true, |device| device.trim() == "none");
    }
    is_numbered("ram")
}
