//! What is known about a configuration space without its layout.
use std::ops::Range;

/// Fields of a configuration space that may differ from what the driver first read. The others stay as they are,
/// whatever happens to the medium.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFields {
    /// What the device changes, with a configuration change notification (virtio 1.3, 2.5).
    pub device: Range<usize>,
    /// What the driver sets.
    pub driver: Range<usize>,
}

/// The configuration space that a driver was told of before its rings start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToldConfig {
    /// It starts afresh, and reads the space as it is.
    #[default]
    Nothing,
    /// These bytes, from the space's start on, in which its own settings are as it has set them.
    Space(Vec<u8>),
    /// It started elsewhere, and it is unknown what it was told there.
    Unknown,
}
