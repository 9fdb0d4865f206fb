//! Memory that belongs to another process: mapped from a file that its owner may change, and shrink, at any time.
use super::quota::{Quota, QuotaError, Share};
use pollux_guard::{FileSystem, Registration};
use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    ptr,
    sync::atomic::{AtomicU8, Ordering},
};

/// Why memory of another process could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// The requested range is empty.
    #[error("a memory region of 0 bytes cannot be mapped")]
    Empty,
    /// The end of the range is beyond what a file can have.
    #[error("a memory region of {length} bytes at offset {offset} ends beyond what a file can hold")]
    Overflow {
        /// Where the region begins in the file.
        offset: u64,
        /// Its size in bytes.
        length: u64,
    },
    /// The descriptor is of something else.
    #[error("the descriptor of a memory region is {0}; it has to be a file, such as a memfd or one of hugetlbfs")]
    NotAFile(&'static str),
    /// The file ends before the region does.
    #[error(
        "the file of a memory region has {size} bytes, and the region needs {} ({length} at offset {offset})",
        .offset + .length
    )]
    Short {
        /// The file's size in bytes.
        size: u64,
        /// Where the region begins in the file.
        offset: u64,
        /// Its size in bytes.
        length: u64,
    },
    /// The descriptor does not allow it.
    #[error(
        "the file of a memory region is not open for {}", if *.writable { "reading and writing" } else { "reading" }
    )]
    Access {
        /// Whether a writable mapping was asked for.
        writable: bool,
    },
    /// The file was sealed.
    #[error("the file of a memory region is sealed against writing (F_SEAL_WRITE or F_SEAL_FUTURE_WRITE)")]
    Sealed,
    /// The descriptor cannot be inspected.
    #[error("cannot inspect the file of a memory region: {0}")]
    Inspect(io::Error),
    /// The kernel refuses to map it.
    #[error("cannot map {length} bytes at offset {offset} of the file of a memory region: {cause}")]
    Map {
        /// Where the region begins in the file.
        offset: u64,
        /// Its size in bytes.
        length: u64,
        /// The system's answer.
        cause: io::Error,
    },
    /// Another process decides how long an access to a page of the file takes.
    #[error(
        "the file of a memory region is on a file system of type {0:#x}, where an access can take as long \
         as its provider likes; share a memfd, or a file of a tmpfs or hugetlbfs, or write \
         memory_files = \"any\" at the device's socket"
    )]
    NotMemory(i64),
    /// There would be too many mappings, or too large ones.
    #[error("the file of a memory region is not mapped: {0}")]
    Quota(#[from] QuotaError),
    /// Without the guard, the owner of the file could end this process.
    #[error("cannot guard a memory region against SIGBUS: {0}")]
    Guard(io::Error),
}

/// A part of a file, shared with all other processes that map it. Unmapped when dropped.
///
/// The file's owner may change the memory at any time, as a guest may: read a byte once, and never make a slice of it.
/// When the owner shrinks the file, an access to the lost part reads zeroes and [`ForeignMapping::is_damaged`] turns
/// true, for good: see [`guard`](super::guard). What is written there then goes to private memory, so stop soon. The
/// same happens when a huge page cannot be allocated, or the hardware loses a page.
#[derive(Debug)]
pub struct ForeignMapping {
    // Fields are dropped in this order: the guard lets go of the range before it is unmapped.
    registration: Registration,
    #[expect(dead_code, reason = "unmaps when dropped")]
    pages: Pages,
    address: *mut u8,
    length: usize,
    page_size: usize,
    is_writable: bool,
    /// The share of the front end that chose to have it mapped.
    #[expect(dead_code, reason = "given back when dropped")]
    share: Option<Share>,
}

// SAFETY: the pointer leads to memory that lives as long as this, and that any thread may access under the rules above;
// the methods only read fields and an atomic.
unsafe impl Send for ForeignMapping {}
// SAFETY: as above.
unsafe impl Sync for ForeignMapping {}

impl ForeignMapping {
    /// Maps `length` bytes from `offset` on, neither of which has to be a multiple of the page size. The file is not
    /// needed afterwards. `[control]`
    ///
    /// # Errors
    /// The range is empty, too large or not all in the file, the descriptor is not that of a file or not open for what
    /// is asked, or the system does not map it.
    pub fn map(file: &File, offset: u64, length: u64, writable: bool) -> Result<Self, ForeignError> {
        if length == 0 {
            return Err(ForeignError::Empty);
        }
        let overflow = || ForeignError::Overflow { offset, length };
        let end = offset.checked_add(length).filter(|end| *end <= i64::MAX as u64).ok_or_else(overflow)?;
        let metadata = file.metadata().map_err(ForeignError::Inspect)?;
        if let Some(kind) = unsuitable(&metadata) {
            return Err(ForeignError::NotAFile(kind));
        }
        if metadata.len() < end {
            return Err(ForeignError::Short { size: metadata.len(), offset, length });
        }
        let page_size = FileSystem::of(file).map_err(ForeignError::Inspect)?.page_size;
        let first = offset & !(page_size - 1);
        let end = end.checked_next_multiple_of(page_size).filter(|end| *end <= i64::MAX as u64).ok_or_else(overflow)?;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let pages = Pages::map(file, first, end - first, protection).map_err(|cause| match cause.raw_os_error() {
            Some(libc::EACCES | libc::EBADF) => ForeignError::Access { writable },
            Some(libc::EPERM) if writable => ForeignError::Sealed,
            _ => ForeignError::Map { offset, length, cause },
        })?;
        // SAFETY: mapped just now, and unmapped after the registration is dropped. Nobody makes references into it.
        let registration =
            unsafe { Registration::new(file, pages.address, pages.length, protection) }.map_err(ForeignError::Guard)?;
        let page_size = page_size as usize;
        let address = pages.address.wrapping_add((offset - first) as usize);
        let length = length as usize;
        Ok(ForeignMapping { registration, pages, address, length, page_size, is_writable: writable, share: None })
    }

    /// As [`map`](Self::map), writable, for a front end, which has chosen file and size: counted against its quota.
    /// Unless `any_file`, the file must be memory and nothing else, or an access could hold up a worker, and with it
    /// every device that it serves, for as long as the front end likes. `[control]`
    ///
    /// # Errors
    /// As [`map`](Self::map), or the quota is used up, or an access to the file could block.
    pub fn map_for(quota: &Quota, any_file: bool, file: &File, offset: u64, length: u64) -> Result<Self, ForeignError> {
        let share = quota.take(length)?;
        let system = FileSystem::of(file).map_err(ForeignError::Inspect)?;
        // What is not a file at all is reported below.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if is_file && !any_file && !system.is_memory() {
            return Err(ForeignError::NotMemory(system.magic));
        }
        let mapping = Self::map(file, offset, length, true)?;
        Ok(ForeignMapping { share: Some(share), ..mapping })
    }

    /// Where the byte at `offset` of the file is.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address
    }

    /// Size in bytes, as asked for; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Size in bytes of the pages that the file has: that of the system, or of its huge pages.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Whether it may be written to; if not, a write ends the process.
    pub fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Copies bytes out of it, from `offset` on. Another process may be writing them.
    ///
    /// # Panics
    /// The range ends beyond it.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.byte(offset + index).load(Ordering::Acquire);
        }
    }

    /// Copies bytes into it, from `offset` on, in order: if this process is killed meanwhile, a prefix of them has been
    /// written.
    ///
    /// # Panics
    /// The range ends beyond it, or it is not writable.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(self.is_writable, "the mapping may be written to");
        for (index, byte) in bytes.iter().enumerate() {
            self.byte(offset + index).store(*byte, Ordering::Release);
        }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.length, "the byte lies in the mapping");
        // SAFETY: a byte of the mapping, which lives as long as `self`; a loss of its page is caught by the guard.
        unsafe { AtomicU8::from_ptr(self.address.wrapping_add(offset)) }
    }

    /// Whether the file has lost pages of this mapping that were accessed since. After a `false`, all that the caller
    /// had read before came from the file.
    pub fn is_damaged(&self) -> bool {
        self.registration.is_damaged()
    }
}

/// Identifies a file, whatever its descriptor's number: device and inode.
///
/// # Errors
/// The system does not tell.
pub fn file_identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whole pages of a file.
#[derive(Debug)]
struct Pages {
    address: *mut u8,
    length: usize,
}

impl Pages {
    fn map(file: &File, offset: u64, length: u64, protection: libc::c_int) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // Not reserved: the owner has done that, or overcommits on purpose.
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, file.as_raw_fd(), offset as libc::off_t) };
        match address {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            address => Ok(Pages { address: address.cast(), length }),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which is not used any more.
        if unsafe { libc::munmap(self.address.cast(), self.length) } != 0 {
            // The kernel was short of memory for its own records; what stays mapped does no harm.
            tracing::warn!("cannot unmap {} bytes: {}", self.length, io::Error::last_os_error());
        }
    }
}

/// What the descriptor is, if guest memory cannot be in it.
fn unsuitable(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_socket() => Some("a socket"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_char_device() => Some("a character device"),
        () if kind.is_block_device() => Some("a block device"),
        () => Some("not a file of any file system (an event, a timer or the like)"),
    }
}
