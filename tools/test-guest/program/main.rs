//! The test guest: a program without an operating system that drives a virtio block device.
//!
//! It is entered at privilege level 0, goes to level 3 at once and stays there but for interrupts, because there are
//! KVMs that run level 3 natively and emulate level 0. Memory is mapped one to one; ports and devices are open to it.
//! It does what the plan in `mailbox` says. Compiled by `pollux_test_guest`, not by cargo.
#![no_std]
#![no_main]

mod block;
#[macro_use]
mod failure;
mod features;
mod low;
#[allow(dead_code)] // the other half is the test's
mod mailbox;
mod mmio;
mod pci;
mod ring;

use block::Disk;
use failure::{fail, power_off};
use low::{plan, report_add, report_set};
use mailbox::{plan as p, report as r};

/// Ports, see `pollux_vmm::layout`.
const RESET_PORT: u16 = 0xcf9;
const RESET_VALUE: u8 = 6;

/// Called by `low`, by this name, at level 3.
#[unsafe(no_mangle)]
extern "C" fn guest_main() -> ! {
    for _ in 0..plan(p::SESSIONS) {
        let mut disk = Disk::start();
        match plan(p::ACTION) {
            p::ACTION_MEASURE => measure(&mut disk),
            p::ACTION_MASK => disk.masked_request(),
            p::ACTION_BUS_MASTER => {
                disk.verify();
                disk.request_without_bus_master();
                disk.verify();
            }
            p::ACTION_ABUSE => {
                disk.stop();
                abuse();
                disk = Disk::start();
                disk.verify();
            }
            _ => disk.verify(),
        }
        report_set(r::INTERRUPTS, low::interrupts());
        disk.stop();
    }
    report_set(r::DONE, 1);
    end()
}

fn measure(disk: &mut Disk) {
    // Rings and caches warm up, and the worker switches the guest's notifications off.
    disk.read_all(plan(p::REQUESTS));
    low::wait_for_test();
    let start = low::ticks();
    disk.read_all(plan(p::REQUESTS));
    report_set(r::TICKS, low::ticks() - start);
    low::wait_for_test();
}

/// Reads and writes the registers of every device with every size and all kinds of values, as nobody should.
fn abuse() {
    const PLACES: [(u64, u64); 5] = [
        (0xe000_0000, 0x2_0000),
        (0xc000_0000, 0x2_0000),
        (0xd000_0000, 0x3000),
        (0xcfff_0000, 0x1_0000),
        (0xe00f_f000, 0x2000),
    ];
    let mut random = low::Random(0x9e37_79b9_7f4a_7c15);
    for turn in 0..plan(p::REQUESTS) {
        let (start, length) = PLACES[(turn % PLACES.len() as u64) as usize];
        let address = start + random.next() % length;
        low::touch(address, random.next(), random.next());
    }
    for turn in 0..plan(p::REQUESTS) / 10 {
        // Ports where nobody is and those of the serial port, but not those that end the run.
        let port =
            if turn % 2 == 0 { 0x3f9 + (random.next() % 7) as u16 } else { 0x1000 + random.next() as u16 % 0x1000 };
        low::outb(port, random.next() as u8);
        report_add(r::DETAIL, low::inb(port) as u64);
    }
    report_set(r::DETAIL, 0);
}

fn end() -> ! {
    match plan(p::END) {
        0 => power_off(),
        1 => low::outb(RESET_PORT, RESET_VALUE),
        _ => {}
    }
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    fail(info.location().map_or(0, |location| location.line()), u64::MAX)
}
