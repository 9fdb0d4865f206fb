//! Where the parts of a ring are in host memory.
use super::error::RingError;
use crate::memory::Translator;

/// The host address of a part of a ring. What is aligned for the guest is so for us: parts are read and written by
/// words.
///
/// # Errors
/// It does not lie in guest memory, or is not aligned (virtio 1.3, 2.7 and 2.8.10.1).
pub(super) fn place<T>(
    tables: &mut Translator,
    address: u64,
    length: u64,
    align: u64,
    what: &'static str,
) -> Result<*mut T, RingError> {
    let host = tables.translate(address, length);
    let is_aligned = |host: &*mut u8| address.is_multiple_of(align) && host.addr().is_multiple_of(align as usize);
    host.filter(is_aligned).map(<*mut u8>::cast).ok_or(RingError::Placement(what))
}
