//! A driver, or whoever keeps the region for requests in flight, that follows no rule.
use super::request::DEPTH;
use crate::input::Input;
use pollux_core::ring::RingKind;
use pollux_driver::{AVAILABLE, Descriptor, INDIRECT, NEXT, PackedDescriptor, RingDriver, USED, WRITE, ring_bytes};
use pollux_testing::blk::BlkDriver;
use std::{fs::File, os::unix::fs::FileExt};

/// Breaks something.
pub(super) fn step(driver: &mut BlkDriver, region: Option<(&File, u64)>, input: &mut Input<'_>) {
    let end = BlkDriver::bytes(driver.ring.config().size, DEPTH);
    match input.below(8) {
        0 => {
            let (at, value) = (ring_address(driver, input), input.long());
            driver.ring.write(at, value);
        }
        1 => {
            let (at, value) = (ring_address(driver, input), input.half());
            driver.ring.write(at, value);
        }
        2 | 3 => describe(driver, input, end),
        4 => make_available(driver, input),
        5 => {
            // A header, or a table, of a request that may be on its way.
            let (area, offset) = (driver.area_address(), u64::from(input.byte()) << 2);
            let value = input.long();
            driver.ring.write(area + offset, value);
        }
        6 => {
            let Some((file, bytes)) = region else { return };
            let value = input.bytes(8);
            let at = u64::from(input.half()) % bytes.saturating_sub(value.len() as u64).max(1);
            file.write_all_at(value, at).expect("a write within the file");
        }
        _ => table(driver, input, end),
    }
    driver.ring.publish();
}

/// Somewhere in the ring.
fn ring_address(driver: &BlkDriver, input: &mut Input<'_>) -> u64 {
    let kind = match driver.ring {
        RingDriver::Split(_) => RingKind::Split,
        RingDriver::Packed(_) => RingKind::Packed,
    };
    u64::from(input.half()) % (ring_bytes(kind, driver.ring.config().size) - 8)
}

/// Where a buffer might be: in the memory for requests, in the ring, at the end of memory, anywhere.
fn buffer(driver: &BlkDriver, input: &mut Input<'_>, end: u64) -> (u64, u32) {
    let length = match input.below(4) {
        0 => u32::from(input.byte()),
        1 => input.choose(&[0, 1, 15, 16, 512, 4096]),
        2 => input.half().into(),
        _ => input.word(),
    };
    let address = match input.below(4) {
        0 => driver.area_address() + u64::from(input.half()),
        1 => u64::from(input.half()) % 0x3000,
        2 => end.wrapping_sub(u64::from(length)).wrapping_add(u64::from(input.below(3) as u8)).wrapping_sub(1),
        _ => input.long(),
    };
    (address, length)
}

fn describe(driver: &mut BlkDriver, input: &mut Input<'_>, end: u64) {
    let (address, length) = buffer(driver, input, end);
    let size = driver.ring.config().size;
    let (index, flags) = (u16::from(input.byte()) % size, u16::from(input.byte()) & (NEXT | WRITE | INDIRECT));
    match &mut driver.ring {
        RingDriver::Split(ring) => {
            let next = u16::from(input.byte()) % (size + 1);
            ring.write_descriptor(index, Descriptor { address, length, flags, next });
        }
        RingDriver::Packed(ring) => {
            let laps = input.choose(&[0, AVAILABLE, USED, AVAILABLE | USED]);
            let id = u16::from(input.byte()) % (size + 1);
            ring.write_descriptor(index, PackedDescriptor { address, length, id, flags: flags | laps });
        }
    }
}

fn make_available(driver: &mut BlkDriver, input: &mut Input<'_>) {
    let value = if input.flag() { input.half() } else { input.byte().into() };
    match &mut driver.ring {
        RingDriver::Split(ring) if input.flag() => ring.set_available_index(value),
        RingDriver::Split(ring) => ring.push_head(value),
        RingDriver::Packed(ring) => {
            let flags = u16::from(input.byte()) & (NEXT | WRITE | INDIRECT);
            let (address, length) = (u64::from(input.half()), input.byte().into());
            ring.push(PackedDescriptor { address, length, id: value, flags });
        }
    }
}

/// An entry of an indirect table, where [`describe`] finds it.
fn table(driver: &mut BlkDriver, input: &mut Input<'_>, end: u64) {
    let (address, length) = buffer(driver, input, end);
    let (flags, next) = (u16::from(input.byte()) & 7, u16::from(input.byte()) & 15);
    let at = driver.area_address() + 16 * u64::from(input.byte() & 15);
    driver.ring.write(at, Descriptor { address, length, flags, next });
}
