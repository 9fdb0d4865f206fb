//! Opening a path that another process may hold, and the messages where that fails.
use pollux_abi::{block::Error, file_lock::PATIENCE};
use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

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
