//! The handful of ports that a PC's chipset answers and a kernel expects: power, reset, keyboard controller, clock.
use crate::{
    bus::{Bus, BusDevice, RangeTaken},
    control::{Control, Ending},
    layout::{RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, SLEEP_VALUE_OFF},
};
use std::{ops::Range, sync::Arc};

/// The keyboard controller's command and status port.
const KEYBOARD_PORT: u16 = 0x64;
/// The keyboard controller's command that pulses the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// Index and data port of the battery-backed clock.
const CLOCK_PORTS: Range<u64> = 0x70..0x72;

/// Puts the platform's ports on the port bus.
pub(crate) fn insert(bus: &mut Bus, control: &Arc<Control>) -> Result<(), RangeTaken> {
    let sleep = u64::from(SLEEP_CONTROL_PORT)..u64::from(SLEEP_STATUS_PORT) + 1;
    bus.insert(sleep, Arc::new(Sleep(control.clone())))?;
    bus.insert(port(RESET_PORT), Arc::new(Reset(control.clone())))?;
    bus.insert(port(KEYBOARD_PORT), Arc::new(Keyboard(control.clone())))?;
    bus.insert(CLOCK_PORTS, Arc::new(Clock))
}

fn port(port: u16) -> Range<u64> {
    u64::from(port)..u64::from(port) + 1
}

/// ACPI sleep control and status registers (ACPI 6.5, 4.8.3.7).
struct Sleep(Arc<Control>);

impl BusDevice for Sleep {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 && data[0] == SLEEP_VALUE_OFF {
            self.0.end(Ending::PowerOff);
        }
    }
}

/// The reset control register, named by the FADT.
struct Reset(Arc<Control>);

impl BusDevice for Reset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        // Bit 2 resets; bit 1, which says how hard, may be written in a step before.
        if data[0] & RESET_VALUE & 0x04 != 0 {
            self.0.end(Ending::Reset);
        }
    }
}

/// As much of a keyboard controller as resets the machine: always ready for a command, never with data.
struct Keyboard(Arc<Control>);

impl BusDevice for Keyboard {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data[0] == KEYBOARD_RESET {
            self.0.end(Ending::Reset);
        }
    }
}

/// There is no clock, and these registers say so: kernels that read ones here wait a second for an update to end (ten
/// seconds in a nested guest).
struct Clock;

impl BusDevice for Clock {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending_after(writes: &[(u64, &[u8])]) -> Option<Ending> {
        let control = Arc::new(Control::new().expect("made"));
        let mut bus = Bus::new("port");
        insert(&mut bus, &control).expect("there is room");
        for (port, data) in writes {
            bus.write(*port, data);
        }
        control.take()
    }

    #[test]
    fn sleep_type_five_powers_off() {
        assert!(matches!(ending_after(&[(0x600, &[0x34])]), Some(Ending::PowerOff)));
        // Another sleep type, the type without the enable bit, the status register.
        assert!(ending_after(&[(0x600, &[0x24]), (0x600, &[0x14]), (0x601, &[0x34])]).is_none());
    }

    #[test]
    fn three_ports_reset() {
        assert!(matches!(ending_after(&[(0xcf9, &[0x06])]), Some(Ending::Reset)));
        assert!(matches!(ending_after(&[(0xcf9, &[0x02]), (0xcf9, &[0x0e])]), Some(Ending::Reset)));
        assert!(matches!(ending_after(&[(0x64, &[0xfe])]), Some(Ending::Reset)));
        assert!(ending_after(&[(0xcf9, &[0x02]), (0x64, &[0xd1])]).is_none());
    }

    #[test]
    fn the_clock_reads_zero() {
        let mut bus = Bus::new("port");
        insert(&mut bus, &Arc::new(Control::new().expect("made"))).expect("there is room");
        let mut data = [0xff];
        bus.read(0x71, &mut data);
        assert_eq!(data, [0]);
    }
}
