//! The end of a run that went wrong.
use crate::{
    low::{outb, report_set},
    mailbox::report as r,
};

/// Ports, see `pollux_vmm::layout`.
const SLEEP_CONTROL_PORT: u16 = 0x600;
const SLEEP_VALUE_OFF: u8 = 0x34;

/// Switches the machine off, as ACPI has it.
pub fn power_off() {
    outb(SLEEP_CONTROL_PORT, SLEEP_VALUE_OFF);
}

/// Reports what went wrong and powers off.
pub fn fail(line: u32, detail: u64) -> ! {
    report_set(r::ERROR, line as u64);
    report_set(r::DETAIL, detail);
    power_off();
    loop {
        core::hint::spin_loop();
    }
}

/// Fails the run unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $detail:expr) => {
        if !$condition {
            $crate::failure::fail(line!(), $detail as u64)
        }
    };
}
