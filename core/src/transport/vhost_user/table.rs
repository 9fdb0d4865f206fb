//! The front end's memory table: which files hold the guest's memory, at which guest addresses, and at which of the
//! front end's own (vhost-user document, "Memory region description").
use crate::memory::{
    ForeignMapping, ForeignRegion, GuestMemory, MemoryError,
    foreign::{ForeignError, file_identity},
};
use std::{fs::File, io, sync::Arc};
use vhost::vhost_user::message::VhostUserMemoryRegion;

/// Most regions: more than any front end has slots for.
pub(super) const SLOTS_MAX: usize = 1024;

/// How a part of a file is mapped: by offset and length in bytes.
pub(super) type Map<'m> = &'m dyn Fn(&File, u64, u64) -> Result<Arc<ForeignMapping>, ForeignError>;

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("the memory region at guest address {0:#x}: {1}")]
    Region(u64, ForeignError),
    #[error("the memory region at guest address {0:#x}: {1}")]
    File(u64, io::Error),
    #[error("the memory region at guest address {0:#x} overlaps another")]
    Overlap(u64),
    #[error("there is no memory region of {1} bytes at guest address {0:#x}")]
    Missing(u64, u64),
    #[error("there is room for {SLOTS_MAX} memory regions")]
    Full,
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// One region. Clones share the mapping.
#[derive(Clone, Debug)]
struct Region {
    guest: u64,
    user: u64,
    length: u64,
    offset: u64,
    /// Device and inode of the file.
    identity: (u64, u64),
    file: Arc<File>,
    mapping: Arc<ForeignMapping>,
}

/// All regions. A change makes a new table, which shares the mappings that stay.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryTable {
    regions: Vec<Region>,
}

impl MemoryTable {
    /// A table of these regions, each with its file. Mappings that `self` already has are reused, however often a front
    /// end sends the same table.
    pub(super) fn replaced(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        map: Map<'_>,
    ) -> Result<Self, TableError> {
        let mut table = MemoryTable::default();
        for (region, file) in regions.iter().zip(files) {
            table.push(self.region(region, file, map)?)?;
        }
        Ok(table)
    }

    /// This table with one more region.
    pub(super) fn with(&self, region: &VhostUserMemoryRegion, file: File, map: Map<'_>) -> Result<Self, TableError> {
        let mut table = self.clone();
        table.push(self.region(region, file, map)?)?;
        Ok(table)
    }

    /// This table without a region, which is identified by its addresses and length.
    pub(super) fn without(&self, region: &VhostUserMemoryRegion) -> Result<Self, TableError> {
        let (guest, length, user) = (region.guest_phys_addr, region.memory_size, region.user_addr);
        let is_it = |old: &Region| (old.guest, old.length, old.user) == (guest, length, user);
        let at = self.regions.iter().position(is_it).ok_or(TableError::Missing(guest, length))?;
        let mut table = self.clone();
        table.regions.remove(at);
        Ok(table)
    }

    fn region(&self, region: &VhostUserMemoryRegion, file: File, map: Map<'_>) -> Result<Region, TableError> {
        let (guest, user) = (region.guest_phys_addr, region.user_addr);
        let (length, offset) = (region.memory_size, region.mmap_offset);
        let identity = file_identity(&file).map_err(|error| TableError::File(guest, error))?;
        let is_same = |old: &&Region| {
            (old.guest, old.user, old.length, old.offset, old.identity) == (guest, user, length, offset, identity)
        };
        if let Some(old) = self.regions.iter().find(is_same)
            && !old.mapping.is_damaged()
        {
            return Ok(old.clone());
        }
        let mapping = map(&file, offset, length).map_err(|error| TableError::Region(guest, error))?;
        Ok(Region { guest, user, length, offset, identity, file: Arc::new(file), mapping })
    }

    fn push(&mut self, region: Region) -> Result<(), TableError> {
        if self.regions.len() >= SLOTS_MAX {
            return Err(TableError::Full);
        }
        // Two regions may be the same memory of the front end, at two guest addresses.
        let clashes = |old: &Region| {
            region.guest < old.guest.saturating_add(old.length)
                && old.guest < region.guest.saturating_add(region.length)
        };
        if self.regions.iter().any(clashes) {
            return Err(TableError::Overlap(region.guest));
        }
        self.regions.push(region);
        Ok(())
    }

    /// The memory as devices see it.
    pub(super) fn memory(&self) -> Result<GuestMemory, TableError> {
        let regions = self.regions.iter().map(|region| ForeignRegion {
            guest_address: region.guest,
            mapping: region.mapping.clone(),
            file: region.file.clone(),
            file_offset: region.offset,
        });
        Ok(GuestMemory::from_foreign(regions.collect())?)
    }

    /// The guest address of a front end's address; it specifies rings by the latter.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user.wrapping_sub(region.user);
            (offset < region.length).then(|| region.guest + offset)
        })
    }

    /// Whether the owner of a file has taken memory away that was in use.
    pub(super) fn is_damaged(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_damaged())
    }
}

/// The regions of a memory table, as they stand in its message.
pub(super) fn regions_of(bytes: &[u8], count: u32) -> Result<Vec<VhostUserMemoryRegion>, String> {
    const BYTES: usize = size_of::<VhostUserMemoryRegion>();
    if bytes.len() != BYTES * count as usize {
        return Err(format!("its table of {count} memory regions has {} bytes", bytes.len()));
    }
    let region = |bytes: &[u8]| {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_ne_bytes(word)
        };
        VhostUserMemoryRegion::new(word(0), word(1), word(2), word(3))
    };
    Ok(bytes.chunks_exact(BYTES).map(region).collect())
}
