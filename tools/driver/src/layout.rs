//! Descriptors as they lie in memory (virtio 1.3, 2.7.5 and 2.8.13), and buffers that are to be described.

/// `flags` of a descriptor: another one follows.
pub const NEXT: u16 = 1;
/// `flags` of a descriptor: the device writes it.
pub const WRITE: u16 = 2;
/// `flags` of a descriptor: it points to a table.
pub const INDIRECT: u16 = 4;
/// `flags` of a descriptor: the wrap counter of the driver's lap in which it was made available.
pub const AVAILABLE: u16 = 1 << 7;
/// `flags` of a descriptor: that of the device's lap in which it was used; the inverse of the driver's while it is not.
pub const USED: u16 = 1 << 15;

/// A buffer to be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A descriptor of a split ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
    /// `NEXT`, `WRITE`, `INDIRECT`.
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

/// A descriptor of a packed ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PackedDescriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Its length in bytes; when used, the bytes written.
    pub length: u32,
    /// Buffer ID, in the last one of a chain.
    pub id: u16,
    /// `NEXT`, `WRITE`, `INDIRECT`, `AVAILABLE`, `USED`.
    pub flags: u16,
}
