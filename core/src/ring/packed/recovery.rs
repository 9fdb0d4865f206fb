//! What a packed ring records for the next process, and how it uses the records of the previous one.
use super::{
    super::{
        chain::{Chain, SegmentList},
        error::RingError,
        table::{Buffer, DESCRIPTOR_INDIRECT},
    },
    AVAILABLE, BOTH, Cursor, PackedRing, Place, RECOVERED, USED, first_half, flags_of, second_half,
};
use crate::memory::Translator;
use std::sync::atomic::Ordering;

impl PackedRing {
    /// Continues where an earlier process died.
    pub(super) fn recover(&mut self) -> Result<(), RingError> {
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        let descriptors = self.descriptors;
        let is_available = |index: u16, wrap: bool| {
            let flags = flags_of(u64::from_le(second_half(descriptors, index).load(Ordering::Acquire)));
            flags & BOTH == if wrap { AVAILABLE } else { USED }
        };
        let Some(found) = inflight.recover(self.used.bits(), is_available)? else { return Ok(()) };
        // Every chain taken has been given back or is in flight, so this holds whatever base the front end gives.
        self.used = Cursor::new(found.used, BOTH);
        self.available = Cursor::new(found.used, AVAILABLE);
        for chain in &found.chains {
            // There are no more than entries of the region, which is of our size.
            let count = chain.descriptors.len() as u16;
            self.places[usize::from(chain.id)] = Place { index: RECOVERED, kept: 0, count, table: 0 };
            self.available.advance(count, self.size);
            self.taken += count;
        }
        self.recovered = found.chains;
        self.recovered.reverse();
        self.erase_unpublished();
        Ok(())
    }

    /// The previous process may have died between writing used descriptors and showing the first of them to the driver,
    /// which must not run into the later ones. The driver has not got there, and writes nothing between here and the
    /// available chains.
    fn erase_unpublished(&mut self) {
        let mut place = self.used;
        for _ in 0..self.taken {
            let half = second_half(self.descriptors, place.index);
            let rest = u64::from_le(half.load(Ordering::Relaxed));
            if flags_of(rest) & BOTH == place.flags {
                half.store((rest ^ u64::from(USED) << 48).to_le(), Ordering::Relaxed);
            }
            place.advance(1, self.size);
        }
    }

    /// # Errors
    /// The driver has used a buffer ID again whose chain it has not seen used yet.
    #[cold]
    #[inline(never)]
    pub(super) fn note_taken(&mut self, ids: &[u16]) -> Result<(), RingError> {
        let Some(inflight) = &mut self.inflight else { return Ok(()) };
        let (descriptors, size) = (self.descriptors, u32::from(self.size));
        for &id in ids {
            let Place { index, kept, count, .. } = self.places[usize::from(id)];
            let rests = &self.kept[usize::from(kept)..usize::from(kept + count)];
            // Addresses are read here for the copy, and once more when the chain is walked: the next process checks
            // what it finds in the copy.
            let pairs = rests.iter().zip(u32::from(index)..);
            inflight.take(id, pairs.map(|(&rest, at)| [first_half(descriptors, (at % size) as u16), rest]))?;
        }
        Ok(())
    }

    /// As [`walk`](Ring::walk), for a chain of which only the copy in the in-flight region remains.
    #[cold]
    #[inline(never)]
    pub(super) fn walk_recovered(
        &mut self,
        id: u16,
        data: &mut Translator,
        segments: &mut SegmentList<'_>,
    ) -> Result<Chain, RingError> {
        let at = self.popped_recovered.iter().position(|chain| chain.id == id);
        let descriptors = at.map(|at| self.popped_recovered.swap_remove(at).descriptors).unwrap_or_default();
        if let &[[address, rest]] = &descriptors[..]
            && flags_of(rest) & DESCRIPTOR_INDIRECT != 0
        {
            return self.walk_table(id, (address, rest), data, segments);
        }
        let mut chain = Chain::default();
        for [address, rest] in descriptors {
            let flags = flags_of(rest);
            if flags & DESCRIPTOR_INDIRECT != 0 {
                return Err(RingError::Indirect(id));
            }
            chain.add(id, Buffer { address, length: rest as u32, flags }, data, segments)?;
        }
        Ok(chain)
    }
}
