//! What both servers do.
use pollux_loadgen::ideal;
use std::{fs::File, io, path::Path};
use tempfile::TempDir;

/// Bytes of each medium.
pub(crate) const SIZE: u64 = 256 << 20;

/// What stands behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing: every request completes at once.
    Null,
    /// Memory, a file on tmpfs: ours is mapped by the `mem` plugin, theirs read by native AIO, which is their fastest there.
    Memory,
    /// A file on a disk, past the page cache: io_uring on both sides.
    File,
}

impl Work {
    pub(crate) const ALL: [Work; 3] = [Work::Null, Work::Memory, Work::File];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::Null => "null",
            Work::Memory => "memory",
            Work::File => "file",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Work::Null => "null: the null plugin, and null-co",
            Work::Memory => "memory: a file on tmpfs, mapped by the mem plugin, and by native AIO",
            Work::File => "file: a file on the disk of this machine with O_DIRECT, io_uring on both sides",
        }
    }

    /// The ideal device that does the same, where there is one.
    pub(crate) fn ideal(self) -> Option<ideal::Kind> {
        match self {
            Work::Null => Some(ideal::Kind::Null),
            Work::Memory => Some(ideal::Kind::Memory),
            Work::File => None,
        }
    }

    /// A folder with the medium in it, where it has to be: a disk, not memory, for a file.
    pub(crate) fn folder(self) -> io::Result<TempDir> {
        let folder = match self {
            Work::Memory => TempDir::new_in("/dev/shm")?,
            Work::Null => TempDir::new()?,
            Work::File => TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?,
        };
        if self != Work::Null {
            fill(&folder.path().join("medium"))?;
        }
        Ok(folder)
    }

    /// Our side's `[block]`.
    pub(crate) fn block(self, folder: &Path) -> String {
        match self {
            Work::Null => format!("plugin = \"null\"\noptions = {{ size = {SIZE} }}"),
            // The same file as theirs: pages that were never written would all be one, and in the cache.
            Work::Memory => {
                let path = folder.join("medium");
                format!("plugin = \"mem\"\noptions = {{ path = {path:?}, lock = false }}")
            }
            Work::File => {
                let path = folder.join("medium");
                format!("plugin = \"uring\"\noptions = {{ path = {path:?}, direct = true, lock = false }}")
            }
        }
    }

    /// Their side's `--blockdev`.
    pub(crate) fn blockdev(self, folder: &Path) -> String {
        let path = folder.join("medium");
        let path = path.display();
        match self {
            Work::Null => format!("driver=null-co,node-name=n,size={SIZE},read-zeroes=off"),
            Work::Memory => {
                format!("driver=file,node-name=n,filename={path},aio=native,cache.direct=on,locking=off")
            }
            Work::File => format!("driver=file,node-name=n,filename={path},aio=io_uring,cache.direct=on,locking=off"),
        }
    }
}

/// A file with all of its blocks: holes are answered without the disk.
fn fill(path: &Path) -> io::Result<()> {
    let file = File::create(path)?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..SIZE >> 20 {
        io::Write::write_all(&mut &file, &block)?;
    }
    file.sync_all()
}
