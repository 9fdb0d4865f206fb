//! The PCI Express bus, and virtio devices on it.
//!
//! | module | holds |
//! |---|---|
//! | `config` | a function's configuration space |
//! | `bus` | places, and the windows by which the guest reaches the functions in them |
//! | `msix` | MSI-X vectors |
//! | `virtio` | a virtio device as a function |

mod bus;
mod config;
#[allow(unsafe_code)] // poll(2)
mod msix;
mod virtio;

pub(crate) use self::bus::PLACES;
pub use self::{
    bus::{Ecam, Function, PciBus, Window, bar_address},
    virtio::{FunctionError, VirtioFunction},
};
