//! The maker that each table names.

pub(super) const OEM: [u8; 6] = *b"POLLUX";
pub(super) const OEM_TABLE: [u8; 8] = *b"POLLUXVM";
pub(super) const OEM_REVISION: u32 = 1;
