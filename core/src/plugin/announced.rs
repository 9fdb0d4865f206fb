//! Which parts of the guest's memory an instance of a plugin knows.
use crate::memory::GuestMemory;
use pollux_abi::block_v1::MemoryRegion;

/// The regions that the instance was told about, each with the map that keeps it mapped until it is withdrawn.
#[derive(Debug, Default)]
pub(super) struct AnnouncedMemory(Vec<(MemoryRegion, GuestMemory)>);

// SAFETY: regions are described by their addresses, which lead into memory of the whole process.
unsafe impl Send for AnnouncedMemory {}

impl AnnouncedMemory {
    /// Tells the instance, by `announce`, about the regions that it does not know yet.
    ///
    /// # Errors
    /// A region was refused. Those before it are known then.
    pub(super) fn add<E>(
        &mut self,
        memory: &GuestMemory,
        mut announce: impl FnMut(&MemoryRegion) -> Result<(), E>,
    ) -> Result<(), E> {
        for region in memory.regions() {
            if self.0.iter().any(|(old, _)| is_same_region(old, &region)) {
                continue;
            }
            announce(&region)?;
            self.0.push((region, memory.clone()));
        }
        Ok(())
    }

    /// Withdraws, by `take_back`, all regions that are not in `memory`. No request that points into one may be in
    /// flight.
    pub(super) fn remove_but(&mut self, memory: Option<&GuestMemory>, mut take_back: impl FnMut(&MemoryRegion)) {
        let kept = memory.map(GuestMemory::regions).unwrap_or_default();
        self.0.retain_mut(|(region, holder)| {
            let is_kept = kept.iter().any(|kept| is_same_region(kept, region));
            match (is_kept, memory) {
                // What keeps one region mapped should not keep others.
                (true, Some(memory)) => *holder = memory.clone(),
                _ => take_back(region),
            }
            is_kept
        });
    }
}

/// Whether both are the same mapping at the same guest address.
fn is_same_region(one: &MemoryRegion, other: &MemoryRegion) -> bool {
    let place = |region: &MemoryRegion| (region.guest_address, region.base, region.length);
    place(one) == place(other)
}
