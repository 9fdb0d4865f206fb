//! Copies between our memory and the segments of a guest's.
use pollux_abi::block_v1::Segment;
use std::ptr::copy_nonoverlapping;

/// Copies bytes to the start of the segments, as many as there is room for.
///
/// # Safety
/// The segments were translated for a chain that the device has not given back.
pub(crate) unsafe fn scatter(segments: &[Segment], mut bytes: &[u8]) {
    for segment in segments {
        let (now, later) = bytes.split_at(segment.length.min(bytes.len()));
        // SAFETY: the caller's promise; no Rust reference covers guest memory.
        unsafe { copy_nonoverlapping(now.as_ptr(), segment.base, now.len()) };
        bytes = later;
    }
}
