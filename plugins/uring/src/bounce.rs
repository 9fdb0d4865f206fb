//! Aligned memory for segments that direct I/O does not take, and a stretch of zeroes to write.
use pollux_abi::block::Segment;
use std::{io, ptr};

/// Bytes that pass through one chunk at a time. A longer request goes through its chunk several times.
pub(crate) const CHUNK_SIZE: usize = 128 << 10;

/// A bounced request that has no chunk yet.
pub(crate) const NO_CHUNK: u32 = u32::MAX;

/// Most bytes of zeroes that are written at a time.
pub(crate) const ZEROES_SIZE: usize = 1 << 20;

/// One mapping: `chunks` chunks, then zeroes. Its pages take no memory until they are first used.
#[derive(Debug)]
pub(crate) struct BouncePool {
    base: *mut u8,
    length: usize,
    free: Vec<u32>,
}

// SAFETY: the mapping belongs to the pool alone.
unsafe impl Send for BouncePool {}

impl BouncePool {
    pub(crate) fn new(chunks: u32) -> io::Result<Self> {
        let length = chunks as usize * CHUNK_SIZE + ZEROES_SIZE;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(BouncePool { base: base.cast(), length, free: (0..chunks).rev().collect() })
    }

    /// A chunk for the caller alone until it is given back.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    pub(crate) fn give_back(&mut self, chunk: u32) {
        self.free.push(chunk);
    }

    /// The first of the chunk's [`CHUNK_SIZE`] bytes, aligned to a page.
    pub(crate) fn chunk(&self, chunk: u32) -> *mut u8 {
        let offset = chunk as usize * CHUNK_SIZE;
        assert!(offset < self.length - ZEROES_SIZE);
        // SAFETY: the offset lies within the mapping.
        unsafe { self.base.add(offset) }
    }

    /// Keeps the memory for ever, since the kernel may still be using it.
    pub(crate) fn abandon(&mut self) {
        self.length = 0;
    }

    /// The first of [`ZEROES_SIZE`] bytes that nobody ever writes.
    pub(crate) fn zeroes(&self) -> *const u8 {
        // SAFETY: the offset lies within the mapping.
        unsafe { self.base.add(self.length - ZEROES_SIZE) }
    }
}

impl Drop for BouncePool {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the mapping is the pool's own, and nothing points into it any more (`abandon`).
            unsafe { libc::munmap(self.base.cast(), self.length) };
        }
    }
}

/// Calls `action` with each piece of memory that holds the bytes `skip..skip + length` of `segments`, and with where in
/// that range the piece begins.
fn for_each_piece(segments: &[Segment], mut skip: u64, length: usize, mut action: impl FnMut(*mut u8, usize, usize)) {
    let mut at = 0;
    for segment in segments {
        if at == length {
            break;
        }
        if skip >= segment.length as u64 {
            skip -= segment.length as u64;
            continue;
        }
        let piece = (segment.length - skip as usize).min(length - at);
        action(segment.base.wrapping_add(skip as usize), at, piece);
        at += piece;
        skip = 0;
    }
}

/// Copies `length` bytes from `source` to the segments, from their byte `skip` on.
///
/// # Safety
/// The segments must be those of a request in flight, and `source` must have `length` bytes.
pub(crate) unsafe fn scatter(source: *const u8, segments: &[Segment], skip: u64, length: usize) {
    for_each_piece(segments, skip, length, |target, at, piece| {
        // SAFETY: the piece lies in a segment of a request in flight; bounce memory is no guest memory.
        unsafe { ptr::copy_nonoverlapping(source.add(at), target, piece) };
    });
}

/// Copies `length` bytes from the segments, from their byte `skip` on, to `target`.
///
/// # Safety
/// As for [`scatter`].
pub(crate) unsafe fn gather(segments: &[Segment], skip: u64, target: *mut u8, length: usize) {
    for_each_piece(segments, skip, length, |source, at, piece| {
        // SAFETY: as in `scatter`.
        unsafe { ptr::copy_nonoverlapping(source, target.add(at), piece) };
    });
}
