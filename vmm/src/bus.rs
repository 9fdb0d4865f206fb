//! A bus: address ranges and the devices behind them.
//!
//! The machine has two, one for ports and one for memory addresses without memory. Both are built before the
//! first vCPU runs and never change while one does, so that a lookup takes no lock.
use std::{ops::Range, sync::Arc};
use thiserror::Error;

/// A device that a vCPU reaches by reads and writes in an address range.
///
/// Called on vCPU threads, several at a time. The guest chooses offset, length and data: every access must be
/// harmless and must return.
pub trait BusDevice: Send + Sync {
    /// Fills all of `data` with what the guest reads at `offset` from the start of the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices were given overlapping ranges.
#[derive(Debug, Error)]
#[error("the range {start:#x}..{end:#x} on the {bus} bus is taken")]
pub struct RangeTaken {
    bus: &'static str,
    start: u64,
    end: u64,
}

struct Slot {
    range: Range<u64>,
    device: Arc<dyn BusDevice>,
}

/// Devices by address range.
pub(crate) struct Bus {
    name: &'static str,
    /// Sorted by start; ranges do not overlap.
    slots: Vec<Slot>,
}

impl Bus {
    /// An empty bus. Its name appears in messages: "port" or "memory".
    pub(crate) fn new(name: &'static str) -> Bus {
        Bus { name, slots: Vec::new() }
    }

    /// What the guest reads in `address..address + data.len()`. Where no device answers, the bus floats at ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// What the guest writes from `address` on. Where no device answers, nothing happens.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// Puts a device at `range`.
    pub(crate) fn insert(&mut self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), RangeTaken> {
        let at = self.slots.partition_point(|slot| slot.range.start < range.start);
        let before_free = at == 0 || self.slots[at - 1].range.end <= range.start;
        let behind_free = self.slots.get(at).is_none_or(|slot| range.end <= slot.range.start);
        if !(before_free && behind_free) {
            return Err(RangeTaken { bus: self.name, start: range.start, end: range.end });
        }
        self.slots.insert(at, Slot { range, device });
        Ok(())
    }

    /// The device that owns the whole access. An access that crosses the end of a range belongs to no device.
    fn find(&self, address: u64, length: usize) -> Option<(u64, &dyn BusDevice)> {
        let behind = self.slots.partition_point(|slot| slot.range.start <= address);
        let slot = &self.slots[behind.checked_sub(1)?];
        let end = address.checked_add(length as u64)?;
        (end <= slot.range.end).then(|| (address - slot.range.start, &*slot.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().expect("nobody panics with this lock").push((offset, data.to_vec()));
        }
    }

    fn read(bus: &Bus, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xaa; length];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn accesses_reach_the_device_of_their_range() {
        let recorder = Arc::new(Recorder::default());
        let mut bus = Bus::new("port");
        bus.insert(0x20..0x30, recorder.clone()).expect("there is room");
        bus.insert(0x10..0x20, Arc::new(Recorder::default())).expect("there is room");
        assert_eq!(read(&bus, 0x24, 2), [4, 4]);
        assert_eq!(read(&bus, 0x1f, 1), [0xf]);
        bus.write(0x2c, &[1, 2, 3, 4]);
        assert_eq!(*recorder.0.lock().expect("nobody panics with this lock"), [(0xc, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn accesses_outside_or_across_a_range_float() {
        let mut bus = Bus::new("port");
        bus.insert(0x20..0x30, Arc::new(Recorder::default())).expect("there is room");
        for address in [0, 0x1f, 0x2e, 0x30, u64::MAX - 1] {
            assert_eq!(read(&bus, address, 4), [0xff; 4], "at {address:#x}");
            bus.write(address, &[0; 4]);
        }
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let mut bus = Bus::new("memory");
        let device = Arc::new(Recorder::default());
        bus.insert(0x20..0x30, device.clone()).expect("there is room");
        for range in [0x10..0x21, 0x2f..0x40, 0x20..0x30, 0x10..0x40, 0x24..0x26] {
            assert!(bus.insert(range, device.clone()).is_err());
        }
        let message = bus.insert(0x2f..0x40, device).expect_err("it fails").to_string();
        assert_eq!(message, "the range 0x2f..0x40 on the memory bus is taken");
    }
}
