//! The bus: one segment, one bus, functions in its 32 places, reached by the configuration window (ECAM) and by the
//! window in which their BARs lie.
use super::config::{ConfigSpace, Identity};
use crate::{
    bus::BusDevice,
    layout::{PCI_WINDOW_BYTES, PCI_WINDOW_START},
};
use std::sync::Arc;

/// Places on the bus; place 0 is the host bridge's.
pub(crate) const PLACES: usize = 32;

/// Where firmware would have put the BAR of the function at `place`.
pub fn bar_address(place: usize) -> u32 {
    PCI_WINDOW_START as u32 + place as u32 * pollux_core::transport::pci::BAR_BYTES as u32
}

const _: () = assert!(PLACES as u64 * pollux_core::transport::pci::BAR_BYTES <= PCI_WINDOW_BYTES);

/// A function of the bus. Called on vCPU threads, several at a time.
pub trait Function: Send + Sync {
    /// The guest reads configuration space.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// The guest writes configuration space.
    fn write_config(&self, offset: usize, data: &[u8]);
    /// The guest reads at an address of the window. False if no BAR of this function answers there.
    fn read_window(&self, address: u64, data: &mut [u8]) -> bool;
    /// The guest writes at an address of the window.
    fn write_window(&self, address: u64, data: &[u8]) -> bool;
}

/// The functions by their place. Function number 0 of each place only.
pub struct PciBus {
    functions: Vec<Option<Arc<dyn Function>>>,
}

impl PciBus {
    /// A bus with a host bridge.
    pub fn new() -> PciBus {
        let mut functions: Vec<Option<Arc<dyn Function>>> = vec![None; PLACES];
        functions[0] = Some(Arc::new(HostBridge::new()));
        PciBus { functions }
    }

    /// Puts a function in a free place.
    pub fn insert(&mut self, place: usize, function: Arc<dyn Function>) {
        let free = self.functions[place].replace(function).is_none();
        assert!(free, "two functions in place {place}");
    }
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

/// The configuration window of a bus.
pub struct Ecam(pub Arc<PciBus>);

impl Ecam {
    /// Which function an offset belongs to, and the offset in its configuration space (PCI Express 4.0, 7.2.2).
    fn locate(&self, offset: u64) -> Option<(&dyn Function, usize)> {
        let (device, function) = ((offset >> 15 & 0x1f) as usize, offset >> 12 & 0x7);
        let found = self.0.functions[device].as_ref().filter(|_| function == 0)?;
        Some((&**found, (offset & 0xfff) as usize))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.locate(offset) {
            Some((function, offset)) => function.read_config(offset, data),
            // All ones: there is no function.
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.locate(offset) {
            function.write_config(offset, data);
        }
    }
}

/// The window of a bus.
pub struct Window(pub Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = PCI_WINDOW_START + offset;
        if !self.0.functions.iter().flatten().any(|function| function.read_window(address, data)) {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = PCI_WINDOW_START + offset;
        let _ = self.0.functions.iter().flatten().any(|function| function.write_window(address, data));
    }
}

/// The host bridge: it exists for software that expects one in place 0.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> HostBridge {
        // Red Hat's vendor ID and the generic host bridge's device ID, for which no system has a driver.
        HostBridge(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 0,
            class: [0x06, 0x00, 0x00],
        }))
    }
}

impl Function for HostBridge {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    fn read_window(&self, _address: u64, _data: &mut [u8]) -> bool {
        false
    }

    fn write_window(&self, _address: u64, _data: &[u8]) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bus_has_a_host_bridge_and_nothing_else() {
        let bus = Arc::new(PciBus::new());
        let ecam = Ecam(bus.clone());
        for place in 0..PLACES as u64 {
            for function in 0..8 {
                let mut vendor = [0; 2];
                ecam.read(place << 15 | function << 12, &mut vendor);
                let expected = if (place, function) == (0, 0) { 0x1b36 } else { 0xffff };
                assert_eq!(u16::from_le_bytes(vendor), expected, "{place}.{function}");
            }
        }
        let window = Window(bus);
        let mut data = [0; 8];
        window.read(0x8000, &mut data);
        window.write(0x8000, &[0; 8]);
        assert_eq!(data, [0xff; 8]);
    }
}
