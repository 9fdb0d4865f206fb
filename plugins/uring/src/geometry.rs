//! Sizes, alignments and identity of an open file or block device, as the kernel tells them.
use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    mem::zeroed,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
};

/// What requests must be aligned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Of a segment's address, in bytes.
    pub(crate) memory: u32,
    /// Of offsets and lengths, in bytes.
    pub(crate) offset: u32,
}

impl Alignment {
    /// The page cache takes everything.
    pub(crate) const NONE: Alignment = Alignment { memory: 1, offset: 1 };
}

/// What a medium is like. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub(crate) is_block_device: bool,
    pub(crate) capacity: u64,
    pub(crate) alignment: Alignment,
    pub(crate) logical_block_size: u32,
    pub(crate) physical_block_size: u32,
    pub(crate) minimum_io_size: u32,
    pub(crate) optimal_io_size: u32,
    pub(crate) discard_alignment: u32,
    /// Of what a range that is discarded or zeroed must consist. A file system zeroes parts of its blocks by itself.
    pub(crate) allocation_unit: u32,
    /// `st_dev` and `st_ino` of a file. A block device has its own number and 0: it may have several names.
    pub(crate) identity: (u64, u64),
}

/// Why a medium has no geometry.
#[derive(Debug)]
pub(crate) enum GeometryError {
    /// The kernel refuses direct I/O on it.
    NoDirect,
    /// Another call failed.
    Io(io::Error),
}

impl From<io::Error> for GeometryError {
    fn from(error: io::Error) -> Self {
        GeometryError::Io(error)
    }
}

impl Geometry {
    /// Asks about `file`, which was opened with `O_DIRECT` if `direct`. Guests address it in blocks of `block_size`, if
    /// given.
    ///
    /// The blocks of a file are 512 bytes whatever its file system says: what direct I/O takes changes when the file is
    /// copied (by a reflink on XFS, to a disk with larger sectors), and a guest finds neither partitions nor file
    /// systems when its blocks have another size.
    pub(crate) fn of(file: &File, direct: bool, block_size: Option<u32>) -> Result<Self, GeometryError> {
        let metadata = file.metadata()?;
        let is_block_device = metadata.file_type().is_block_device();
        let sector = if is_block_device { block_device_number(file, libc::BLKSSZGET)?.max(512) } else { 512 };
        let mut alignment =
            if direct { direct_alignment(file, is_block_device.then_some(sector))? } else { Alignment::NONE };
        if direct && is_block_device && disk_names(metadata.rdev()).iter().any(|name| name.starts_with("zram")) {
            // With pages of 4096 bytes zram takes each part of a transfer for a whole page (is_partial_io in
            // zram_drv.c, Linux 6.18): memory that straddles pages, which it says it takes, gets other data.
            alignment.memory = alignment.memory.max(4096);
        }
        if !is_block_device {
            // A file system's block is what it reads, changes and writes back when less is written. What the larger
            // values of network file systems mean is another thing: their best transfer.
            let block = u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(512, 4096).next_power_of_two();
            let logical_block_size = block_size.unwrap_or(512);
            let block = block.max(logical_block_size).max(alignment.offset);
            return Ok(Geometry {
                is_block_device,
                capacity: metadata.len(),
                alignment,
                logical_block_size,
                physical_block_size: block,
                minimum_io_size: 0,
                optimal_io_size: 0,
                discard_alignment: block,
                allocation_unit: 1,
                identity: (metadata.dev(), metadata.ino()),
            });
        }
        let unit = sector.max(alignment.offset);
        let logical_block_size = block_size.unwrap_or(unit);
        let physical = block_device_number(file, libc::BLKPBSZGET)?.next_power_of_two();
        let granularity = queue_limit(metadata.rdev(), "discard_granularity").unwrap_or(0);
        Ok(Geometry {
            is_block_device,
            capacity: end_of(file)?,
            alignment,
            logical_block_size,
            physical_block_size: physical.max(logical_block_size).max(unit),
            minimum_io_size: block_device_number(file, libc::BLKIOMIN)?,
            optimal_io_size: block_device_number(file, libc::BLKIOOPT)?,
            discard_alignment: u32::try_from(granularity).unwrap_or(0).max(logical_block_size).max(unit),
            allocation_unit: sector,
            identity: (metadata.rdev(), 0),
        })
    }

    /// Whether a guest's block is less than what direct I/O takes.
    pub(crate) fn has_parts(&self) -> bool {
        self.alignment.offset > self.logical_block_size
    }

    /// What the capacity consists of. The rest of a unit at the end could be read and not written.
    pub(crate) fn capacity_unit(&self, read_only: bool) -> u32 {
        if read_only { self.logical_block_size } else { self.logical_block_size.max(self.alignment.offset) }
    }
}

/// The size in bytes that a file or block device has now: it may have changed since it was opened.
pub(crate) fn capacity_of(file: &File, is_block_device: bool) -> io::Result<u64> {
    if is_block_device { end_of(file) } else { Ok(file.metadata()?.len()) }
}

/// Where an open file ends now. It moves the file's position, which nothing here uses, and takes half as long as
/// `fstat(2)`.
pub(crate) fn end_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// File systems whose kernel may have to ask somebody else for a file's length (linux/magic.h, and the systems' own
/// sources for those that are not there).
const SHARED_FILE_SYSTEMS: [u32; 13] = [
    0x6969,      // NFS
    0x6573_5546, // FUSE
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x00c3_6400, // Ceph
    0x0102_1997, // 9P
    0x5346_414f, // AFS
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
    0x786f_4256, // VirtualBox shared folders
];

/// Whether the kernel always knows the file's length by itself, so that to look at it never waits.
pub(crate) fn knows_its_length(file: &File) -> bool {
    file_system(file).is_some_and(|magic| !SHARED_FILE_SYSTEMS.contains(&magic))
}

/// The magic number of the file's file system.
pub(crate) fn file_system(file: &File) -> Option<u32> {
    // SAFETY: an all-zero statfs is a value of the type.
    let mut answer: libc::statfs = unsafe { zeroed() };
    // SAFETY: the answer has room.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) };
    // The type of the field differs between architectures; the numbers have 32 bits.
    (result == 0).then_some(answer.f_type as u32)
}

/// A limit of the request queue of the block device `device`, such as `discard_max_bytes`. Partitions share their
/// disk's.
pub(crate) fn queue_limit(device: u64, name: &str) -> Option<u64> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    ["queue", "../queue"]
        .iter()
        .find_map(|queue| fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}")).ok())
        .and_then(|text| text.trim().parse().ok())
}

/// The names in /sys of the block device `device` and, for a partition, of its disk.
pub(crate) fn disk_names(device: u64) -> Vec<String> {
    let link = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let Ok(place) = fs::canonicalize(link) else { return Vec::new() };
    let names = place.components().rev().map(|part| part.as_os_str().to_string_lossy().into_owned());
    names.take_while(|name| name != "block").collect()
}

/// One of the `ioctl(2)` requests of block devices that answer with an `int`.
fn block_device_number(file: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the requests passed here write one int to the pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut number) } {
        0 => Ok(number),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The alignment of direct I/O: what `statx(2)` says (Linux 6.1), else the sector size of a block device, else the
/// smallest that a read of the file accepts.
fn direct_alignment(file: &File, sector: Option<u32>) -> Result<Alignment, GeometryError> {
    // SAFETY: an all-zero statx is a value of the type.
    let mut answer: libc::statx = unsafe { zeroed() };
    // SAFETY: the path is an empty C string, and the answer has room.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut answer)
    };
    if result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0 {
        if answer.stx_dio_offset_align == 0 || answer.stx_dio_mem_align == 0 {
            return Err(GeometryError::NoDirect);
        }
        return Ok(Alignment { memory: answer.stx_dio_mem_align, offset: answer.stx_dio_offset_align });
    }
    if let Some(sector) = sector {
        return Ok(Alignment { memory: sector, offset: sector });
    }
    [512, 1024, 2048, 4096]
        .into_iter()
        .find(|&size| accepts_direct_read(file, size))
        .map(|size| Alignment { memory: size, offset: size })
        .ok_or(GeometryError::NoDirect)
}

/// Whether a direct read of `size` bytes into memory that is aligned to `size` and to nothing larger succeeds.
fn accepts_direct_read(file: &File, size: u32) -> bool {
    #[repr(align(8192))]
    struct Aligned([u8; 8192]);
    let mut room = Aligned([0; 8192]);
    let target = &mut room.0[size as usize..][..size as usize];
    // SAFETY: the target has `size` bytes of room. The offset must be no multiple of a larger size either; reading
    // beyond the end of the file is checked for alignment like any other read.
    unsafe { libc::pread(file.as_raw_fd(), target.as_mut_ptr().cast(), size as usize, i64::from(size)) >= 0 }
}
