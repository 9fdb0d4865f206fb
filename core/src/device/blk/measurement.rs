//! The result of measuring the medium of a block device, until the device applies it.
use crate::{block::Disk, device::measure::Measure};
use pollux_abi::block_v1::BlockInfo;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::warn;

/// The disk's last answer, until the device takes it.
#[derive(Debug)]
pub(super) struct Measurement {
    /// The device's name, for messages.
    device: String,
    disk: Arc<dyn Disk>,
    found: Mutex<Option<BlockInfo>>,
}

impl Measurement {
    pub(super) fn new(device: &str, disk: &Arc<dyn Disk>) -> Arc<Self> {
        Arc::new(Measurement { device: device.into(), disk: disk.clone(), found: Mutex::default() })
    }

    /// The answer, once.
    pub(super) fn take(&self) -> Option<BlockInfo> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Measure for Measurement {
    fn measure(&self) {
        match self.disk.describe() {
            Ok(info) => *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(info),
            Err(error) => warn!("{}: stays as it is: {error}", self.device),
        }
    }
}
