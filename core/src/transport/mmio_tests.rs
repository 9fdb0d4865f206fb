//! The MMIO registers as a driver uses and misuses them.
use super::*;
use crate::{
    event::{ISR_CONFIG, ISR_QUEUE},
    transport::{
        STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK,
        test_device::{Recorded, recorded_device},
    },
};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

fn transport() -> (MmioTransport, Recorded) {
    let (device, recorded) = recorded_device(&[256, 128]);
    (MmioTransport::new(device, Arc::new(EventFd::new(EFD_NONBLOCK).expect("made"))), recorded)
}

fn read(transport: &mut MmioTransport, offset: u64) -> u32 {
    let mut data = [0xee; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &mut MmioTransport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

fn start(transport: &mut MmioTransport) {
    let mut status = u32::from(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    write(transport, register::STATUS, status);
    for page in 0..2 {
        write(transport, register::DEVICE_FEATURES_SELECT, page);
        let offered = read(transport, register::DEVICE_FEATURES);
        write(transport, register::DRIVER_FEATURES_SELECT, page);
        write(transport, register::DRIVER_FEATURES, offered);
    }
    status |= u32::from(STATUS_FEATURES_OK);
    write(transport, register::STATUS, status);
    for queue in 0..2 {
        write(transport, register::QUEUE_SELECT, queue);
        write(transport, register::QUEUE_SIZE, 32);
        let base = 0x1000 + queue * 0x3000;
        write(transport, register::QUEUE_DESC_LOW, base);
        write(transport, register::QUEUE_DRIVER_LOW, base + 0x1000);
        write(transport, register::QUEUE_DEVICE_LOW, base + 0x2000);
        write(transport, register::QUEUE_READY, 1);
        assert_eq!(read(transport, register::QUEUE_READY), 1);
    }
    status |= u32::from(STATUS_DRIVER_OK);
    write(transport, register::STATUS, status);
    assert_eq!(read(transport, register::STATUS), status);
}

#[test]
fn the_device_identifies_itself() {
    let (mut transport, _recorded) = transport();
    assert_eq!(read(&mut transport, register::MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!(read(&mut transport, register::VERSION), 2);
    assert_eq!(read(&mut transport, register::DEVICE_ID), 2);
    assert_eq!(read(&mut transport, register::SHARED_MEMORY_LENGTH_LOW), u32::MAX);
}

#[test]
fn a_driver_starts_the_device_with_its_queues() {
    let (mut transport, recorded) = transport();
    start(&mut transport);
    let activation = recorded.take_activation().expect("activated");
    assert_eq!(activation.queues.len(), 2);
    assert_eq!(activation.queues[1].config.size, 32);
    assert_eq!(activation.queues[1].config.device_area, 0x6000);
}

#[test]
fn used_buffers_raise_the_line_until_they_are_acknowledged() {
    let (mut transport, recorded) = transport();
    start(&mut transport);
    let activation = recorded.take_activation().expect("activated");
    activation.queues[1].notifier.signal();
    assert_eq!(transport.line.read().expect("readable"), 1);
    transport.device().interrupts().config_changed();
    assert_eq!(transport.line.read().expect("readable"), 1);
    let pending = u32::from(ISR_QUEUE | ISR_CONFIG);
    assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), pending);
    assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), pending, "reading does not acknowledge");
    write(&mut transport, register::INTERRUPT_ACKNOWLEDGE, ISR_QUEUE.into());
    assert_eq!(read(&mut transport, register::INTERRUPT_STATUS), u32::from(ISR_CONFIG));
}

#[test]
fn writing_zero_resets_everything() {
    let (mut transport, recorded) = transport();
    start(&mut transport);
    write(&mut transport, register::STATUS, 0);
    assert_eq!(read(&mut transport, register::STATUS), 0);
    assert_eq!(recorded.deactivations(), 1);
    assert_eq!(read(&mut transport, register::QUEUE_READY), 0);
    recorded.take_activation();
    start(&mut transport);
    let activation = recorded.take_activation().expect("a second driver can start it");
    activation.interrupts.config_changed();
    assert_eq!(transport.line.read().expect("readable"), 1);
}

#[test]
fn a_status_of_reserved_bits_alone_resets_as_zero_does() {
    let (mut transport, recorded) = transport();
    start(&mut transport);
    write(&mut transport, register::STATUS, 0x100);
    assert_eq!((read(&mut transport, register::STATUS), recorded.deactivations()), (0, 1));
    assert_eq!(transport.queue_select, 0);
    start(&mut transport);
    transport.device().interrupts().config_changed();
    assert_eq!(transport.line.read().expect("readable"), 1, "configuration changes still reach the driver");
}

#[test]
fn a_queue_that_does_not_exist_has_no_size() {
    let (mut transport, _recorded) = transport();
    write(&mut transport, register::QUEUE_SELECT, 1);
    assert_eq!(read(&mut transport, register::QUEUE_SIZE_MAX), 128);
    for select in [2, 0xffff, 0x1_0000, u32::MAX] {
        write(&mut transport, register::QUEUE_SELECT, select);
        assert_eq!(read(&mut transport, register::QUEUE_SIZE_MAX), 0);
        write(&mut transport, register::QUEUE_READY, 1);
        assert_eq!(read(&mut transport, register::QUEUE_READY), 0);
    }
}

#[test]
fn a_notification_kicks_its_queue() {
    let (mut transport, _recorded) = transport();
    write(&mut transport, register::QUEUE_NOTIFY, 1);
    write(&mut transport, register::QUEUE_NOTIFY, 2);
    assert_eq!(transport.device().kick(1).expect("an event").read().expect("readable"), 1);
    assert!(transport.device().kick(0).expect("an event").read().is_err());
}

#[test]
fn the_configuration_space_takes_accesses_of_every_width() {
    let (mut transport, recorded) = transport();
    for width in [1, 2, 4, 8] {
        let mut data = vec![0xee; width];
        transport.read(register::CONFIG + 1, &mut data);
        assert_eq!(data, recorded.config()[1..=width]);
    }
    transport.write(register::CONFIG + 3, &[7]);
    assert_eq!(recorded.config()[3], 7);
}

#[test]
fn every_access_is_harmless() {
    let (mut transport, _recorded) = transport();
    for value in [0, 1, 0x80, 0xff] {
        for width in [0, 1, 2, 3, 4, 7, 8, 64] {
            for offset in (0..0x200).chain(0xff0..0x1010) {
                transport.write(offset, &vec![value; width]);
                transport.read(offset, &mut vec![0; width]);
            }
        }
    }
}
