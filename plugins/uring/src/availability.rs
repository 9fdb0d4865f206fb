//! Whether this process may use io_uring: found out at open, by setting one up as a queue would.
use crate::{
    options::EngineChoice,
    ring::{MAXIMUM_DEPTH, Purpose, Ring, SetUp},
};
use io_uring::{cqueue, opcode, squeue};
use pollux_abi::block::Error;
use std::{fs::File, io, os::fd::AsFd};

/// Entries of the ring that is tried: what a queue of the usual size has.
const TRIED_DEPTH: u32 = 256;

/// Makes a ring for `file`, enters it and lets go of it.
pub(crate) fn try_ring<S, C>(file: &File, queue_depth: Option<u32>) -> io::Result<()>
where
    S: squeue::EntryMarker,
    C: cqueue::EntryMarker,
{
    let depth = queue_depth.unwrap_or(MAXIMUM_DEPTH).min(TRIED_DEPTH);
    let tried = SetUp::best(|set_up| {
        let operations = &[opcode::Read::CODE];
        let purpose = Purpose { set_up, depth, polls_device: false, operations, may_clone_buffers: false };
        let mut ring = Ring::<S, C>::build(purpose, &[file.as_fd()])?;
        ring.enable()?;
        let entered = ring.collect();
        ring.disable(true);
        entered
    });
    tried.map(|_| ())
}

/// What an `error` at the making of a ring means, and the way out.
pub(crate) fn cause(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            "io_uring is switched off on this host: set the sysctl kernel.io_uring_disabled to 0, and allow it in the \
             seccomp profile of the container, if there is one"
        }
        Some(libc::EINVAL) => "this kernel's io_uring is too old: Linux 5.11 is needed",
        Some(libc::ENOMEM) => {
            "no memory for an io_uring: raise the limit on locked memory (ulimit -l), or lower queue_depth"
        }
        _ => "cannot set up an io_uring",
    }
}

/// Whether it will not be otherwise for another ring of this process.
pub(crate) fn is_for_good(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL | libc::ENOMEM))
}

/// Why an image cannot be opened without a ring.
pub(crate) fn refusal(choice: EngineChoice, error: io::Error) -> Error {
    let cause = cause(&error);
    match choice {
        EngineChoice::IoUring => Error::from_io(
            format_args!("engine = \"io_uring\", but {cause}; or write engine = \"sync\" to do without"),
            error,
        ),
        _ => Error::from_io(format_args!("{cause}; or write engine = \"sync\" to do without"), error),
    }
}
