//! A virtio device of a machine, and what connects it.
use pollux_core::transport::{DeviceHandle, mmio::MmioTransport, pci::PciTransport};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// A virtio device and what connects it, which both outlive the runs of the machine.
pub(crate) enum Attached {
    /// With the event of each MSI-X vector.
    Pci { place: usize, transport: Arc<Mutex<PciTransport>>, vectors: Vec<Arc<EventFd>> },
    /// With the event of its line.
    Mmio { index: usize, transport: Arc<Mutex<MmioTransport>>, line: Arc<EventFd> },
}

impl Attached {
    /// The device's name in the configuration.
    pub(crate) fn name(&self) -> String {
        match self {
            Attached::Pci { transport, .. } => {
                transport.lock().unwrap_or_else(PoisonError::into_inner).device().name().to_owned()
            }
            Attached::Mmio { transport, .. } => {
                transport.lock().unwrap_or_else(PoisonError::into_inner).device().name().to_owned()
            }
        }
    }

    /// The verbs of the device.
    pub(crate) fn handle(&self) -> DeviceHandle {
        match self {
            Attached::Pci { transport, .. } => PciTransport::handle(transport),
            Attached::Mmio { transport, .. } => MmioTransport::handle(transport),
        }
    }

    /// Resets the device; returns when its data path is drained. No vCPU runs.
    pub(crate) fn reset(&self) {
        match self {
            Attached::Pci { transport, .. } => transport.lock().unwrap_or_else(PoisonError::into_inner).reset(),
            Attached::Mmio { transport, .. } => transport.lock().unwrap_or_else(PoisonError::into_inner).reset(),
        }
    }
}
