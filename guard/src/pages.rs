//! The pages in which a file is mapped.
use std::{fs::File, io, os::fd::AsRawFd};

/// What is known of the file system that a file lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its number, as statfs(2) has it.
    pub magic: libc::__fsword_t,
    /// Size in bytes of the pages in which its files can be mapped.
    pub page_size: u64,
}

impl FileSystem {
    /// Of this file.
    ///
    /// # Errors
    /// The system does not say.
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid statfs; the call fills it in.
        let (result, system) = unsafe {
            let mut system: libc::statfs = std::mem::zeroed();
            (libc::fstatfs(file.as_raw_fd(), &mut system), system)
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let page_size = match system.f_type {
            // Its block is its page.
            libc::HUGETLBFS_MAGIC => system.f_bsize as u64,
            // SAFETY: the call touches no memory of ours.
            _ => unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 },
        };
        if !page_size.is_power_of_two() {
            return Err(io::Error::other("odd size of huge pages"));
        }
        Ok(FileSystem { magic: system.f_type, page_size })
    }

    /// Whether its files are nothing but memory, whose pages the kernel has at hand or makes itself: tmpfs, to which
    /// memfds belong too, ramfs and hugetlbfs. A page of another may have to come from a disk, from over the network or
    /// from a program (FUSE), which can take as long as it likes.
    pub fn is_memory(&self) -> bool {
        const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6_u32 as libc::__fsword_t;
        matches!(self.magic, libc::TMPFS_MAGIC | libc::HUGETLBFS_MAGIC | RAMFS_MAGIC)
    }
}

/// Size in bytes of the pages in which the file can be mapped.
pub(crate) fn page_size_of(file: &File) -> io::Result<u64> {
    Ok(FileSystem::of(file)?.page_size)
}
