//! The PCI registers as a driver uses and misuses them.
use super::*;
use crate::{
    event::ISR_CONFIG,
    transport::{
        STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET,
        test_device::{Recorded, recorded_device},
    },
};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const QUEUES: usize = 2;

fn transport() -> (PciTransport, Recorded) {
    let (device, recorded) = recorded_device(&[256; QUEUES]);
    let vectors = (0..=QUEUES).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).expect("made"))).collect();
    (PciTransport::new(device, vectors).expect("made"), recorded)
}

fn read<const N: usize>(transport: &mut PciTransport, offset: u64) -> [u8; N] {
    let mut data = [0xee; N];
    transport.read_bar(offset, &mut data);
    data
}

fn read16(transport: &mut PciTransport, offset: u64) -> u16 {
    u16::from_le_bytes(read(transport, offset))
}

fn status(transport: &mut PciTransport) -> u8 {
    read::<1>(transport, common::DEVICE_STATUS)[0]
}

/// What a driver does before DRIVER_OK: accept everything, set up every queue with its own vector.
fn set_up(transport: &mut PciTransport) {
    transport.write_bar(common::DEVICE_STATUS, &[STATUS_ACKNOWLEDGE | STATUS_DRIVER]);
    for page in 0..2u32 {
        transport.write_bar(common::DEVICE_FEATURE_SELECT, &page.to_le_bytes());
        let offered: [u8; 4] = read(transport, common::DEVICE_FEATURE as u64);
        transport.write_bar(common::DRIVER_FEATURE_SELECT, &page.to_le_bytes());
        transport.write_bar(common::DRIVER_FEATURE, &offered);
    }
    transport.write_bar(common::DEVICE_STATUS, &[STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK]);
    transport.write_bar(common::CONFIG_VECTOR, &0u16.to_le_bytes());
    for queue in 0..QUEUES as u16 {
        transport.write_bar(common::QUEUE_SELECT, &queue.to_le_bytes());
        transport.write_bar(common::QUEUE_SIZE, &64u16.to_le_bytes());
        transport.write_bar(common::QUEUE_VECTOR, &(queue + 1).to_le_bytes());
        let base = 0x1000 + u32::from(queue) * 0x3000;
        for (register, address) in
            [(common::QUEUE_DESC, base), (common::QUEUE_DRIVER, base + 0x1000), (common::QUEUE_DEVICE, base + 0x2000)]
        {
            transport.write_bar(register, &address.to_le_bytes());
            transport.write_bar(register + 4, &0u32.to_le_bytes());
        }
        transport.write_bar(common::QUEUE_ENABLE, &1u16.to_le_bytes());
    }
}

fn start(transport: &mut PciTransport) {
    set_up(transport);
    let all = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
    transport.write_bar(common::DEVICE_STATUS, &[all]);
    assert_eq!(status(transport), all);
}

#[test]
fn capabilities_describe_the_bar() {
    let capabilities = capabilities();
    let kinds: Vec<u8> = capabilities.iter().map(|bytes| bytes[3]).collect();
    assert_eq!(kinds, [TYPE_COMMON, TYPE_NOTIFY, TYPE_ISR, TYPE_DEVICE, TYPE_PCI_ACCESS]);
    for bytes in &capabilities {
        assert_eq!((bytes[0], usize::from(bytes[2])), (CAPABILITY_VENDOR, bytes.len()));
        let field = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the length fits")));
        assert!(field(8) + field(12) <= REGISTERS_END);
    }
    assert_eq!(capabilities[1][16..], 4u32.to_le_bytes());
    assert_eq!(capabilities[4].len(), pci_access::BYTES);
}

#[test]
fn a_driver_starts_the_device_with_its_queues_and_vectors() {
    let (mut transport, recorded) = transport();
    assert_eq!(read16(&mut transport, common::NUM_QUEUES as u64), QUEUES as u16);
    start(&mut transport);
    let mut activation = recorded.take_activation().expect("activated");
    assert_eq!(activation.queues.len(), QUEUES);
    for (index, queue) in activation.queues.iter_mut().enumerate() {
        let base = 0x1000 + index as u64 * 0x3000;
        assert_eq!((queue.index, queue.config.size), (index, 64));
        assert_eq!(queue.config.descriptors, base);
        assert_eq!((queue.config.driver_area, queue.config.device_area), (base + 0x1000, base + 0x2000));
        queue.notifier.signal();
        assert_eq!(transport.vectors[index + 1].read().expect("readable"), 1, "queue {index} signals its vector");
    }
    assert_eq!(read::<1>(&mut transport, ISR_OFFSET), [0], "MSI-X leaves the ISR register alone");
}

#[test]
fn a_configuration_change_signals_its_vector_and_shows_in_isr_and_generation() {
    let (mut transport, _recorded) = transport();
    start(&mut transport);
    let before = read::<1>(&mut transport, common::CONFIG_GENERATION as u64);
    transport.device().interrupts().config_changed();
    assert_eq!(transport.vectors[0].read().expect("readable"), 1);
    assert_ne!(read::<1>(&mut transport, common::CONFIG_GENERATION as u64), before);
    assert_eq!(read::<1>(&mut transport, ISR_OFFSET), [ISR_CONFIG]);
    assert_eq!(read::<1>(&mut transport, ISR_OFFSET), [0], "reading acknowledges");
}

#[test]
fn writing_zero_resets_everything() {
    let (mut transport, recorded) = transport();
    start(&mut transport);
    transport.write_bar(common::DEVICE_STATUS, &[0]);
    assert_eq!(status(&mut transport), 0);
    assert_eq!(recorded.deactivations(), 1);
    assert_eq!(read16(&mut transport, common::CONFIG_VECTOR), NO_VECTOR);
    assert_eq!(read16(&mut transport, common::QUEUE_SELECT), 0);
    assert_eq!(read16(&mut transport, common::QUEUE_VECTOR), NO_VECTOR);
    assert_eq!(read16(&mut transport, common::QUEUE_ENABLE), 0);
    assert_eq!(read16(&mut transport, common::QUEUE_SIZE), 256);
    start(&mut transport);
    assert!(recorded.take_activation().is_some(), "a second driver can start it");
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let (mut transport, _recorded) = transport();
    for register in [common::CONFIG_VECTOR, common::QUEUE_VECTOR] {
        transport.write_bar(register, &2u16.to_le_bytes());
        assert_eq!(read16(&mut transport, register), 2);
        transport.write_bar(register, &3u16.to_le_bytes());
        assert_eq!(read16(&mut transport, register), NO_VECTOR);
    }
}

#[test]
fn a_running_queue_keeps_its_vector_and_says_so() {
    let (mut transport, recorded) = transport();
    start(&mut transport);
    let activation = recorded.take_activation().expect("activated");
    transport.write_bar(common::QUEUE_SELECT, &0u16.to_le_bytes());
    for vector in [2, NO_VECTOR] {
        transport.write_bar(common::QUEUE_VECTOR, &vector.to_le_bytes());
        assert_eq!(read16(&mut transport, common::QUEUE_VECTOR), 1);
    }
    activation.queues[0].notifier.signal();
    assert_eq!(transport.vectors[1].read().expect("readable"), 1);
    transport.write_bar(common::DEVICE_STATUS, &[0]);
    transport.write_bar(common::QUEUE_VECTOR, &2u16.to_le_bytes());
    assert_eq!(read16(&mut transport, common::QUEUE_VECTOR), 2);
}

#[test]
fn a_queue_that_does_not_exist_is_all_zero_and_takes_nothing() {
    let (mut transport, _recorded) = transport();
    transport.write_bar(common::QUEUE_SELECT, &(QUEUES as u16).to_le_bytes());
    for (register, width) in [(common::QUEUE_SIZE, 2), (common::QUEUE_ENABLE, 2), (common::QUEUE_DESC, 8)] {
        transport.write_bar(register, &[1; 8][..width]);
        let mut data = vec![0xee; width];
        transport.read_bar(register, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "register {register}");
    }
}

#[test]
fn sixty_four_bit_registers_take_whole_and_half_writes() {
    let (mut transport, _recorded) = transport();
    transport.write_bar(common::QUEUE_DESC, &0x1_2345_6780u64.to_le_bytes());
    assert_eq!(u64::from_le_bytes(read(&mut transport, common::QUEUE_DESC)), 0x1_2345_6780);
    transport.write_bar(common::QUEUE_DESC + 4, &2u32.to_le_bytes());
    assert_eq!(u64::from_le_bytes(read(&mut transport, common::QUEUE_DESC)), 0x2_2345_6780);
}

#[test]
fn an_enabled_queue_keeps_its_set_up() {
    let (mut transport, _recorded) = transport();
    set_up(&mut transport);
    transport.write_bar(common::QUEUE_SIZE, &128u16.to_le_bytes());
    transport.write_bar(common::QUEUE_DESC, &0x7000u32.to_le_bytes());
    transport.write_bar(common::QUEUE_ENABLE, &0u16.to_le_bytes());
    assert_eq!(read16(&mut transport, common::QUEUE_SIZE), 64);
    assert_eq!(read16(&mut transport, common::QUEUE_ENABLE), 1);
    assert_eq!(u64::from_le_bytes(read(&mut transport, common::QUEUE_DESC)), 0x4000);
}

#[test]
fn a_notification_written_to_the_register_kicks_its_queue() {
    let (mut transport, _recorded) = transport();
    transport.write_bar(notify_offset(1), &1u16.to_le_bytes());
    assert_eq!(transport.device().kick(1).expect("an event").read().expect("readable"), 1);
    assert!(transport.device().kick(0).expect("an event").read().is_err());
}

#[test]
fn queues_outside_of_memory_make_the_device_need_a_reset() {
    let (mut transport, recorded) = transport();
    set_up(&mut transport);
    transport.write_bar(common::DEVICE_STATUS, &[0]);
    recorded.take_activation();
    transport.write_bar(common::DEVICE_STATUS, &[STATUS_ACKNOWLEDGE | STATUS_DRIVER]);
    transport.write_bar(common::DRIVER_FEATURE_SELECT, &1u32.to_le_bytes());
    transport.write_bar(common::DRIVER_FEATURE, &1u32.to_le_bytes());
    transport.write_bar(common::DEVICE_STATUS, &[STATUS_FEATURES_OK]);
    transport.write_bar(common::QUEUE_DESC, &0x7fff_0000_0000_0000u64.to_le_bytes());
    transport.write_bar(common::QUEUE_ENABLE, &1u16.to_le_bytes());
    transport.write_bar(common::DEVICE_STATUS, &[STATUS_DRIVER_OK]);
    assert_ne!(status(&mut transport) & STATUS_NEEDS_RESET, 0);
    assert!(recorded.take_activation().is_none());
}

#[test]
fn the_configuration_space_is_the_models() {
    let (mut transport, recorded) = transport();
    assert_eq!(read::<4>(&mut transport, DEVICE_OFFSET + 2), recorded.config()[2..6]);
    transport.write_bar(DEVICE_OFFSET + 1, &[9, 8]);
    assert_eq!(recorded.config()[1..3], [9, 8]);
}

#[test]
fn every_access_is_harmless() {
    let (mut transport, _recorded) = transport();
    for value in [0, 1, 0x80, 0xff] {
        for width in [0, 1, 2, 3, 4, 7, 8, 64] {
            for offset in
                (0..0x200).chain(0xff0..0x1010).chain(0x1ff0..0x2040).chain(0x2ff0..0x3040).chain(0x3ff0..0x4010)
            {
                transport.write_bar(offset, &vec![value; width]);
                transport.read_bar(offset, &mut vec![0; width]);
            }
        }
    }
    transport.write_bar(u64::MAX, &[1; 8]);
    transport.read_bar(u64::MAX, &mut [1; 8]);
}
