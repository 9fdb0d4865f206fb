//! One descriptor chain after its walk: segments of host memory.
use pollux_abi::block_v1::Segment;

/// What a walk found out about a chain. Its segments are in the list that was passed to the walk: those to read first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Segments that the device reads.
    pub readable: u32,
    /// Segments that the device writes.
    pub writable: u32,
    /// Sum of the readable lengths in bytes.
    pub readable_bytes: u64,
    /// Sum of the writable lengths in bytes.
    pub writable_bytes: u64,
}

/// Room for the segments of one chain: a short inline part, which most chains fit, and a long one that is only
/// touched when a chain outgrows the first. The segments are always contiguous.
#[derive(Debug)]
pub struct SegmentList<'a> {
    inline: &'a mut [Segment],
    overflow: &'a mut [Segment],
    length: usize,
}

impl<'a> SegmentList<'a> {
    /// An empty list over this room. `overflow` is the longer one.
    #[inline(always)]
    pub fn new(inline: &'a mut [Segment], overflow: &'a mut [Segment]) -> Self {
        SegmentList { inline, overflow, length: 0 }
    }

    /// Adds a segment. `false`: there is no room, so the chain has more segments than the device said it takes.
    #[inline(always)]
    pub fn push(&mut self, segment: Segment) -> bool {
        if let Some(slot) = self.inline.get_mut(self.length) {
            *slot = segment;
            self.length += 1;
            return true;
        }
        self.push_overflow(segment)
    }

    #[cold]
    #[inline(never)]
    fn push_overflow(&mut self, segment: Segment) -> bool {
        if self.length >= self.overflow.len() {
            return false;
        }
        if self.length == self.inline.len() {
            self.overflow[..self.length].copy_from_slice(self.inline);
        }
        self.overflow[self.length] = segment;
        self.length += 1;
        true
    }

    /// The segments.
    #[inline(always)]
    pub fn into_slice(self) -> &'a mut [Segment] {
        if self.length <= self.inline.len() {
            &mut self.inline[..self.length]
        } else {
            &mut self.overflow[..self.length]
        }
    }
}
