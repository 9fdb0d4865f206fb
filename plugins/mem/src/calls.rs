//! Requests to a file whose mapping has lost pages, by system calls: slower, and each says what has become of its own
//! part.
use crate::medium::{Medium, Part};
use pollux_abi::{
    block::{EINVAL, EIO, ENOTSUP, EROFS, Operation, Request, Segment},
    host::Level,
};
use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::atomic::Ordering,
};

/// Most segments of one system call.
const SEGMENTS: usize = 64;
/// Zeroes that are written at once.
static ZEROES: [u8; 65536] = [0; 65536];

/// preadv(2) or pwritev(2).
type Call = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off64_t) -> libc::ssize_t;

impl Medium {
    /// Does a request without the mapping, also one that was done by it before: 0, or a negative errno.
    pub(crate) fn execute_by_calls(&self, request: &Request) -> i32 {
        let Some(operation) = request.operation() else { return -ENOTSUP };
        let Some(file) = self.file.as_ref().and_then(|file| file.file.as_ref()) else { return -EIO };
        self.tell_loss(file);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let result = match operation {
            // What was written to a part that is gone is not durable.
            Operation::Flush => self.check_length(file, self.capacity).and_then(|()| self.sync(file)),
            _ => self.transfer(file, operation, request),
        };
        result.map_or_else(|error| -error.raw_os_error().unwrap_or(EIO), |()| 0)
    }

    fn transfer(&self, file: &File, operation: Operation, request: &Request) -> io::Result<()> {
        let part = self.range(request.offset(), request.length()).ok_or_else(|| errno(EINVAL))?;
        if self.is_read_only() && operation != Operation::Read {
            return Err(errno(EROFS));
        }
        // Beyond its end, a write would make the file longer, with zeroes between.
        self.check_length(file, part.0.end as u64)?;
        match operation {
            Operation::Read => vectored(file, &part, request.segments(), libc::preadv64)?,
            Operation::Write => vectored(file, &part, request.segments(), libc::pwritev64)?,
            Operation::Discard => return if self.discards() { self.punch(file, &part) } else { Err(errno(ENOTSUP)) },
            Operation::WriteZeroes if request.may_unmap() && self.discards() && self.punch(file, &part).is_ok() => {}
            Operation::WriteZeroes => write_zeroes(file, &part)?,
            Operation::Flush => {}
        }
        if request.is_fua() { self.sync(file) } else { Ok(()) }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let result = if self.is_read_only() { 0 } else { self.latched(|| file.sync_data()) };
        if result == 0 { Ok(()) } else { Err(errno(-result)) }
    }

    fn check_length(&self, file: &File, end: u64) -> io::Result<()> {
        if file.metadata()?.len() < end { Err(errno(EIO)) } else { Ok(()) }
    }

    /// Says once what has happened.
    fn tell_loss(&self, file: &File) {
        if self.is_loss_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let path = self.file.as_ref().map(|file| file.path.display().to_string()).unwrap_or_default();
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let what = if length < self.capacity {
            let lost = "requests to what is gone end with I/O errors";
            format!("has been cut to {length} bytes of the {} that the disk has: {lost}", self.capacity)
        } else {
            "could not give a page: its file system is full, or has failed".to_owned()
        };
        self.host.log(
            Level::Error,
            format_args!("{path} {what}; it is served by system calls, which are slower, until it is opened again"),
        );
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Reads or writes the part, from or to the segments.
fn vectored(file: &File, part: &Part, segments: &[Segment], call: Call) -> io::Result<()> {
    let length = part.0.len();
    let mut done = 0;
    while done < length {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SEGMENTS];
        let count = fill(&mut vectors, segments, done, length);
        if count == 0 {
            return Err(errno(EINVAL));
        }
        let offset = (part.0.start + done) as libc::off64_t;
        // SAFETY: the vectors lead to memory of a request in flight. If that is not there, the call says so.
        match unsafe { call(file.as_raw_fd(), vectors.as_ptr(), count as libc::c_int, offset) } {
            // The end of the file, where the disk has none.
            0 => return Err(errno(EIO)),
            moved @ 1.. => done += moved as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Puts bytes `from..to` of what the segments hold into the vectors, as far as there is room. Returns how many it took.
fn fill(vectors: &mut [libc::iovec], segments: &[Segment], from: usize, to: usize) -> usize {
    let (mut at, mut count) = (0, 0);
    for segment in segments {
        let (start, end) = (at.max(from), (at + segment.length).min(to));
        if start < end && count < vectors.len() {
            let base = segment.base.wrapping_add(start - at);
            vectors[count] = libc::iovec { iov_base: base.cast(), iov_len: end - start };
            count += 1;
        }
        at += segment.length;
    }
    count
}

fn write_zeroes(file: &File, part: &Part) -> io::Result<()> {
    for start in part.0.clone().step_by(ZEROES.len()) {
        file.write_all_at(&ZEROES[..ZEROES.len().min(part.0.end - start)], start as u64)?;
    }
    Ok(())
}
