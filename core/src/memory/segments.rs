//! Copies between our memory and segments of a guest's memory.
use pollux_abi::block_v1::Segment;
use std::ptr::copy_nonoverlapping;

/// Copies as many bytes to the start of the segments as fit.
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
