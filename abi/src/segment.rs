//! Where the data of a request or a frame lies. Frozen.
use abi_stable::StableAbi;

/// A range of host memory, laid out as `struct iovec`. It usually lies in guest memory, which the guest may change at
/// any time.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct Segment {
    /// First byte.
    pub base: *mut u8,
    /// Length in bytes.
    pub length: usize,
}

const _: () = assert!(size_of::<Segment>() == 16);
