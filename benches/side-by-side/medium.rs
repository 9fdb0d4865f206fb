//! What is read.
use super::{work::Work, zram::Zram};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const PAGE_BYTES: usize = 4096;

/// A file or a device full of data, and a folder for sockets beside it.
#[derive(Debug)]
pub(crate) struct Medium {
    folder: TempDir,
    path: PathBuf,
    _zram: Option<Zram>,
}

impl Medium {
    /// Bytes of each.
    pub(crate) const BYTES: u64 = 256 << 20;

    /// What the work reads. `Err`: why there is none.
    pub(crate) fn new(work: Work) -> Result<Self, String> {
        let folder = match work {
            Work::Memory | Work::Tmpfs => folder(Path::new("/dev/shm"))?,
            // A disk, not memory.
            Work::File => folder(Path::new(env!("CARGO_TARGET_TMPDIR")))?,
            Work::Null | Work::Packed | Work::PackedDirect | Work::Zram => folder(&std::env::temp_dir())?,
        };
        let zram = (work == Work::Zram).then(|| Zram::new(Self::BYTES)).transpose()?;
        let path = zram.as_ref().map_or_else(|| folder.path().join("medium"), Zram::path);
        let medium = Medium { folder, path, _zram: zram };
        if !matches!(work, Work::Null | Work::Packed | Work::PackedDirect) {
            let fill = fill(medium.path(), work != Work::Zram)
                .and_then(|()| File::options().read(true).custom_flags(libc::O_DIRECT).open(medium.path()).map(drop));
            fill.map_err(|error| format!("{} cannot be filled and opened: {error}", medium.path().display()))?;
        }
        Ok(medium)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn folder(place: &Path) -> Result<TempDir, String> {
    TempDir::new_in(place).map_err(|error| format!("no folder in {}: {error}", place.display()))
}

/// Writes all of the blocks: holes are answered without the disk. The first half of each page is random and the other
/// zero, so that a disk that compresses has something to do and something to gain. What takes it longer brings all
/// servers nearer to each other.
fn fill(path: &Path, is_new: bool) -> io::Result<()> {
    let mut random = File::open("/dev/urandom")?;
    let mut file = File::options().write(true).create_new(is_new).open(path)?;
    let mut block = vec![0; 1 << 20];
    for _ in 0..Medium::BYTES / block.len() as u64 {
        for page in block.chunks_exact_mut(PAGE_BYTES) {
            random.read_exact(&mut page[..PAGE_BYTES / 2])?;
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}
