//! The segment as another process reads it.
use super::{
    header::{Header, LAYOUT_VERSION, MAGIC},
    places::{self, Places},
    process::Writer,
    snapshot::Snapshot,
};
use crate::memory::ForeignMapping;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or mapped.
    #[error("{0}: cannot be read: {1}")]
    Open(String, io::Error),
    /// It is something else.
    #[error("{0}: is not a statistics segment: it does not begin with POLLUXST")]
    Magic(String),
    /// It was written by another version.
    #[error(
        "{0}: cannot be read: its layout is version {1}, made by another release of pollux, and this one reads version \
         {LAYOUT_VERSION}: read it with the pollux that made it, or restart that process with this one"
    )]
    Version(String, u64),
    /// It is not as long as it says, or its parts do not lie within it.
    #[error("{0}: is incomplete or damaged: {1}")]
    Damaged(String, String),
    /// There is no such process, or it has none.
    #[error("process {0}: {1}")]
    Process(u32, String),
}

/// A segment that another process writes, or has written. Reading costs its workers only the cache lines that are read,
/// which a worker takes back with its next write. If the file is truncated, reading it becomes an error.
#[derive(Debug)]
pub struct SegmentReader {
    map: ForeignMapping,
    places: Places,
    name: String,
    file: File,
}

/// Segments are smaller. Larger files may be disks, which must not be opened just to look.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl SegmentReader {
    /// Opens the segment in a file.
    ///
    /// # Errors
    /// It is not a segment, is one of another version, or is damaged.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let name = path.display().to_string();
        let file = open_regular(path).map_err(|error| ReadError::Open(name.clone(), error))?;
        Self::map(file, name)
    }

    /// Finds the segment of a process among the files that it has open.
    ///
    /// # Errors
    /// There is no such process, it may not be looked into, or it has none.
    pub fn of_process(process: u32) -> Result<Self, ReadError> {
        let error = |reason: &str| ReadError::Process(process, reason.into());
        let folder = PathBuf::from(format!("/proc/{process}/fd"));
        let entries = fs::read_dir(&folder).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => error("there is no such process"),
            io::ErrorKind::PermissionDenied => error("it belongs to another user: read it as that user, or as root"),
            _ => error(&cause.to_string()),
        })?;
        for entry in entries.flatten() {
            // The disks of a process are open as well, but are not such files, or are too large.
            let is_candidate = |file: &fs::Metadata| file.is_file() && file.len() <= SEGMENT_BYTES_MAX;
            if !fs::metadata(entry.path()).is_ok_and(|file| is_candidate(&file)) {
                continue;
            }
            let Ok(file) = open_regular(&entry.path()) else { continue };
            let mut magic = [0; 8];
            if file.read_exact_at(&mut magic, 0).is_ok() && u64::from_le_bytes(magic) == MAGIC {
                return Self::map(file, format!("process {process}"));
            }
        }
        Err(error("it has no statistics segment: it is no pollux, or one that has just begun or ended"))
    }

    fn map(file: File, name: String) -> Result<Self, ReadError> {
        let open = |error| ReadError::Open(name.clone(), error);
        let damaged = |reason: String| ReadError::Damaged(name.clone(), reason);
        let length = file.metadata().map_err(open)?.len();
        let mut start = [0; 24];
        let read = file.read_at(&mut start, 0).map_err(open)?;
        let word = |index: usize| u64::from_ne_bytes(start[8 * index..][..8].try_into().unwrap_or_default());
        if read < 8 || word(0) != MAGIC {
            return Err(ReadError::Magic(name));
        }
        // Version 1 did not state the length.
        if read >= 16 && word(1) != LAYOUT_VERSION {
            return Err(ReadError::Version(name, word(1)));
        }
        if length < size_of::<Header>() as u64 || length != word(2) {
            return Err(damaged(format!("it has {length} bytes and says that it has {}", word(2))));
        }
        let map = ForeignMapping::map(&file, 0, length, false).map_err(|error| open(io::Error::other(error)))?;
        let places = Places::read(places::header(&map), length).map_err(damaged)?;
        let reader = SegmentReader { map, places, name, file };
        reader.check_whole()?;
        Ok(reader)
    }

    /// The process that writes it; process 0 if the file has become shorter.
    pub fn writer(&self) -> Writer {
        Writer::of(places::header(&self.map))
    }

    /// All numbers as they are now.
    ///
    /// # Errors
    /// The file has become shorter.
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let snapshot = Snapshot::take(&self.map, &self.places);
        self.check_whole()?;
        Ok(snapshot)
    }

    /// Checks that the file still contained everything that was read so far. Its writer never shortens it.
    fn check_whole(&self) -> Result<(), ReadError> {
        let length = self.file.metadata().map_err(|error| ReadError::Open(self.name.clone(), error))?.len();
        // What is lost reads as zeroes, from the first access on.
        if length < self.map.len() as u64 || self.map.is_damaged() {
            return Err(ReadError::Damaged(self.name.clone(), "it was truncated".into()));
        }
        Ok(())
    }
}

/// Opens a file without waiting for anything, as the other end of a pipe.
fn open_regular(path: &Path) -> io::Result<File> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let file = File::open(path)?;
    let opened = file.metadata()?;
    if (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "it was replaced; try again"));
    }
    Ok(file)
}
