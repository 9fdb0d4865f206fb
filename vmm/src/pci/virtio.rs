//! A virtio device as a PCI function: configuration space, MSI-X, and the events of its queues.
use super::{
    bus::Function,
    config::{ConfigSpace, Identity},
    msix::{self, Msix},
};
use crate::{
    irq::InterruptRouter,
    layout::{PCI_WINDOW_BYTES, PCI_WINDOW_START},
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use pollux_core::transport::pci::{
    BAR_BYTES, BAR_INDEX, MSIX_PENDING_OFFSET, MSIX_TABLE_OFFSET, PciTransport, REGISTERS_END, REVISION, SUBSYSTEM_ID,
    VENDOR_ID, capabilities, notify_offset, pci_access,
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// Why a device could not be made a PCI function.
#[derive(Debug, Error)]
pub enum FunctionError {
    /// KVM's table is full.
    #[error("no interrupt numbers are left for its {vectors} MSI-X vectors; use fewer queues")]
    NoInterrupts {
        /// How many it wants.
        vectors: usize,
    },
    /// KVM refuses a queue's event.
    #[error("cannot register or move the notification event of queue {queue}: {source}")]
    Notification {
        /// Which queue.
        queue: usize,
        /// What KVM said.
        source: vmm_sys_util::errno::Error,
    },
}

/// "The BAR answers nowhere."
const NOWHERE: u64 = u64::MAX;

/// What configuration accesses change.
struct State {
    config: ConfigSpace,
    msix: Msix,
    /// Which queues' events are registered with KVM, at the BAR.
    registered: Vec<bool>,
}

/// A virtio device in one place of the bus, for one run of the machine.
pub struct VirtioFunction {
    vm: Arc<VmFd>,
    transport: Arc<Mutex<PciTransport>>,
    state: Mutex<State>,
    /// Where the BAR answers, or NOWHERE. Changed only with `state` locked.
    bar: AtomicU64,
    /// Offsets of the capabilities whose writes have effects.
    msix_capability: usize,
    access_capability: usize,
}

impl VirtioFunction {
    /// Makes a function whose BAR is at `bar`. `vectors` are the events that the transport signals.
    pub fn new(
        vm: &Arc<VmFd>,
        router: &Arc<InterruptRouter>,
        transport: Arc<Mutex<PciTransport>>,
        vectors: &[Arc<EventFd>],
        bar: u32,
    ) -> Result<VirtioFunction, FunctionError> {
        let (mut config, msix, registered) = {
            let transport = lock(&transport);
            let config = ConfigSpace::new(Identity {
                vendor: VENDOR_ID,
                device: transport.device_id(),
                subsystem_vendor: VENDOR_ID,
                subsystem: SUBSYSTEM_ID,
                revision: REVISION,
                class: transport.class(),
            });
            let device = transport.device();
            (config, Msix::new(router.clone(), vectors, device), vec![false; device.queue_count()])
        };
        let msix = msix.ok_or(FunctionError::NoInterrupts { vectors: vectors.len() })?;
        config.set_bar(bar, BAR_BYTES as u32);
        let mut access_capability = 0;
        for capability in capabilities() {
            // The last one is the access capability.
            access_capability = config.add_capability(&capability);
        }
        config.allow(access_capability + pci_access::BAR, &[0xff]);
        config.allow(access_capability + pci_access::OFFSET, &[0xff; 4]);
        config.allow(access_capability + pci_access::LENGTH, &[0xff; 4]);
        let table = (MSIX_TABLE_OFFSET as u32, MSIX_PENDING_OFFSET as u32);
        let msix_capability = config.add_capability(&msix::capability(vectors.len(), BAR_INDEX, table.0, table.1));
        config.allow(msix_capability + msix::MESSAGE_CONTROL, &msix::MESSAGE_CONTROL_WRITABLE.to_le_bytes());
        let function = VirtioFunction {
            vm: vm.clone(),
            transport,
            state: Mutex::new(State { config, msix, registered }),
            bar: AtomicU64::new(NOWHERE),
            msix_capability,
            access_capability,
        };
        lock(&function.transport).set_bus_master(false);
        function.move_bar(&mut lock(&function.state), bar.into())?;
        Ok(function)
    }

    /// Makes the BAR answer at `to`, queue events included. All leave the old place before the first takes its new one,
    /// and one that KVM refuses does not stop the others: one that stayed behind would swallow the notifications of the
    /// device that comes there next.
    fn move_bar(&self, state: &mut State, to: u64) -> Result<(), FunctionError> {
        let from = self.bar.swap(to, Ordering::AcqRel);
        if from == to {
            return Ok(());
        }
        let transport = lock(&self.transport);
        let device = transport.device();
        let address = |bar: u64, queue| IoEventAddress::Mmio(bar + notify_offset(queue));
        let mut outcome = Ok(());
        for (queue, registered) in state.registered.iter_mut().enumerate() {
            let Some(kick) = device.kick(queue) else { continue };
            if std::mem::take(registered)
                && let Err(source) = self.vm.unregister_ioevent(kick, &address(from, queue), NoDatamatch)
            {
                outcome = outcome.and(Err(FunctionError::Notification { queue, source }));
            }
        }
        if to == NOWHERE {
            return outcome;
        }
        for (queue, registered) in state.registered.iter_mut().enumerate() {
            let Some(kick) = device.kick(queue) else { continue };
            match self.vm.register_ioevent(kick, &address(to, queue), NoDatamatch) {
                Ok(()) => *registered = true,
                Err(source) => outcome = outcome.and(Err(FunctionError::Notification { queue, source })),
            }
        }
        outcome
    }

    /// Applies the effects of a write to configuration space.
    fn follow(&self, state: &mut State) {
        let control = state.config.u32_at(self.msix_capability) >> 16;
        state.msix.set_control(control as u16);
        self.follow_bus_master(state);
        let window = PCI_WINDOW_START..=PCI_WINDOW_START + PCI_WINDOW_BYTES - BAR_BYTES;
        let bar = state.config.bar_address().filter(|bar| window.contains(bar)).unwrap_or(NOWHERE);
        // Software that turns the registers off, or moves them, is searching for devices, as a starting kernel does:
        // finding the size of a BAR requires writing to it (PCI 3.0, 6.2.5.1). What an earlier driver had left in its
        // rings must not be carried out in the new kernel's memory.
        if !state.config.is_bus_master() && bar != self.bar.load(Ordering::Acquire) {
            lock(&self.transport).abandon_rings();
        }
        if let Err(error) = self.move_bar(state, bar) {
            let transport = lock(&self.transport);
            let device = transport.device();
            if device.interrupts().may_log(device.name()) {
                // The guest has put two BARs at one address. Notifications of this device arrive as exits instead.
                tracing::warn!(device = device.name(), %error, "a guest moved a BAR");
            }
        }
    }

    /// Sets whether the device may access memory and send messages. A guest's write that clears the bit ends when its
    /// requests in flight have completed, as its reset of the device does. Apart from that reset, it is the only way
    /// for the guest to take its memory back: the function has neither a power management capability, and so no state
    /// but D0 (PCI PM 1.2, 3.2), nor one that offers a function level reset (PCI Express 4.0, 7.5.3.3; PCI 3.0 ECN
    /// Advanced Capabilities).
    fn follow_bus_master(&self, state: &mut State) {
        let enabled = state.config.is_bus_master();
        if state.msix.is_bus_master() == enabled {
            return;
        }
        if !enabled {
            lock(&self.transport).set_bus_master(false);
        }
        state.msix.set_bus_master(enabled);
        if enabled {
            lock(&self.transport).set_bus_master(true);
        }
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0..REGISTERS_END => lock(&self.transport).read_bar(offset, data),
            MSIX_TABLE_OFFSET..MSIX_PENDING_OFFSET => {
                lock(&self.state).msix.read_table(offset - MSIX_TABLE_OFFSET, data)
            }
            _ => lock(&self.state).msix.read_pending(offset - MSIX_PENDING_OFFSET, data),
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match offset {
            0..REGISTERS_END => lock(&self.transport).write_bar(offset, data),
            MSIX_TABLE_OFFSET..MSIX_PENDING_OFFSET => {
                lock(&self.state).msix.write_table(offset - MSIX_TABLE_OFFSET, data)
            }
            // Pending bits are read-only.
            _ => {}
        }
    }

    /// Offset in the BAR of an address, if the whole access lies in there.
    fn offset_of(&self, address: u64, length: usize) -> Option<u64> {
        let offset = address.checked_sub(self.bar.load(Ordering::Acquire))?;
        (offset + length as u64 <= BAR_BYTES).then_some(offset)
    }

    /// Whether a configuration access touches the data of the access capability.
    fn touches_window(&self, offset: usize, length: usize) -> bool {
        let data = self.access_capability + pci_access::DATA;
        offset < data + 4 && data < offset + length
    }

    /// The access that the access capability describes: offset in the BAR and length (virtio 1.3, 4.1.4.9).
    fn described_access(&self) -> Option<(u64, usize)> {
        let state = lock(&self.state);
        let bar = state.config.u32_at(self.access_capability + pci_access::BAR) as u8;
        let offset = state.config.u32_at(self.access_capability + pci_access::OFFSET);
        let length = state.config.u32_at(self.access_capability + pci_access::LENGTH);
        let valid = bar == BAR_INDEX
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && u64::from(offset) + u64::from(length) <= BAR_BYTES;
        valid.then_some((offset.into(), length as usize))
    }
}

impl Function for VirtioFunction {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((bar_offset, length)) = self.described_access()
        {
            let mut value = [0; 4];
            self.read_bar(bar_offset, &mut value[..length]);
            lock(&self.state).config.put(self.access_capability + pci_access::DATA, &value);
        }
        lock(&self.state).config.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        {
            let mut state = lock(&self.state);
            state.config.write(offset, data);
            self.follow(&mut state);
        }
        // The driver writes the data with one access of the described length (virtio 1.3, 4.1.4.9.1).
        if offset == self.access_capability + pci_access::DATA
            && let Some((bar_offset, length)) = self.described_access()
            && length == data.len()
        {
            self.write_bar(bar_offset, data);
        }
    }

    fn read_window(&self, address: u64, data: &mut [u8]) -> bool {
        match self.offset_of(address, data.len()) {
            Some(offset) => {
                self.read_bar(offset, data);
                true
            }
            None => false,
        }
    }

    fn write_window(&self, address: u64, data: &[u8]) -> bool {
        match self.offset_of(address, data.len()) {
            Some(offset) => {
                self.write_bar(offset, data);
                true
            }
            None => false,
        }
    }
}

/// Locks, whatever happened to another vCPU's thread: registers are consistent between accesses.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Vm;
    use kvm_ioctls::Kvm;
    use pollux_core::{
        device::{ActivateError, Activation, ActiveQueue, DeviceModel},
        memory::GuestMemory,
        queue::Position,
        transport::VirtioDevice,
    };
    use std::sync::atomic::AtomicUsize;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    /// Offset of BAR 0 in configuration space.
    const BAR0: usize = 0x10;
    const QUEUES: usize = 3;

    /// A device that does nothing, and counts how often a queue was started.
    #[derive(Default)]
    struct Idle {
        starts: Arc<AtomicUsize>,
    }

    impl DeviceModel for Idle {
        fn name(&self) -> &str {
            "idle0"
        }
        fn device_id(&self) -> u32 {
            2
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &[16; QUEUES]
        }
        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
        fn write_config(&mut self, _offset: u64, _data: &[u8], _features: u64) {}
        fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
            Ok(())
        }
        fn start_queue(&mut self, _queue: ActiveQueue) -> Result<(), ActivateError> {
            self.starts.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn stop_queue(&mut self, _index: usize) -> Option<Position> {
            Some(Position::default())
        }
        fn deactivate(&mut self) {}
    }

    /// Whether KVM turns a write to `address` into an event.
    fn is_registered(vm: &VmFd, address: u64) -> bool {
        let (probe, address) = (EventFd::new(EFD_NONBLOCK).expect("made"), IoEventAddress::Mmio(address));
        let is_free = vm.register_ioevent(&probe, &address, NoDatamatch).is_ok();
        if is_free {
            vm.unregister_ioevent(&probe, &address, NoDatamatch).expect("registered");
        }
        !is_free
    }

    /// What functions are made in.
    struct Slots {
        vm: Vm,
        router: Arc<InterruptRouter>,
        memory: GuestMemory,
    }

    impl Slots {
        /// `None`: there is no KVM, which is said.
        fn new() -> Option<Slots> {
            let Ok(kvm) = Kvm::new() else {
                println!("SKIPPED: cannot open /dev/kvm");
                return None;
            };
            let memory = GuestMemory::create(&[(0, 1 << 20)], None).expect("created");
            let vm = Vm::new(&kvm, &memory).expect("made");
            let router = Arc::new(InterruptRouter::new(vm.fd().clone()).expect("made"));
            Some(Slots { vm, router, memory })
        }

        fn function(&self, bar: u64) -> VirtioFunction {
            self.function_of(Idle::default(), bar)
        }

        fn function_of(&self, model: Idle, bar: u64) -> VirtioFunction {
            let device = VirtioDevice::new(Box::new(model), self.memory.clone()).expect("made");
            let vectors: Vec<_> = (0..=QUEUES).map(|_| Arc::new(EventFd::new(EFD_NONBLOCK).expect("made"))).collect();
            let transport = Arc::new(Mutex::new(PciTransport::new(device, vectors.clone()).expect("made")));
            VirtioFunction::new(self.vm.fd(), &self.router, transport, &vectors, bar as u32).expect("made")
        }
    }

    /// A driver can take its memory back by a reset of the device, and by the Bus Master Enable bit. If a power
    /// management (1), an Express (0x10) or an Advanced Features (0x13) capability is ever offered here, it has to stop
    /// the rings, too.
    #[test]
    fn no_capability_offers_a_power_state_or_a_function_level_reset() {
        let Some(slots) = Slots::new() else { return };
        let function = slots.function(PCI_WINDOW_START);
        let byte = |offset: usize| {
            let mut data = [0];
            function.read_config(offset, &mut data);
            data[0]
        };
        let pointers = std::iter::successors(Some(byte(0x34)), |at| Some(byte(usize::from(*at) + 1)));
        let ids: Vec<u8> = pointers.take_while(|at| *at != 0).map(|at| byte(at.into())).collect();
        assert_eq!(ids, [0x09, 0x09, 0x09, 0x09, 0x09, 0x11]);
    }

    /// What a driver does to start the device with queue 0 (virtio 1.3, 3.1.1), through the common configuration
    /// (4.1.4.3).
    fn start(function: &VirtioFunction) {
        let status = |value: u8| function.write_bar(20, &[value]);
        [1, 3].into_iter().for_each(status);
        // VERSION_1.
        function.write_bar(8, &1u32.to_le_bytes());
        function.write_bar(12, &1u32.to_le_bytes());
        status(11);
        for (at, value) in [(22, 0), (24, 16u16)] {
            function.write_bar(at, &value.to_le_bytes());
        }
        for (at, address) in [(32, 0x1000u32), (40, 0x2000), (48, 0x3000)] {
            function.write_bar(at, &address.to_le_bytes());
            function.write_bar(at + 4, &0u32.to_le_bytes());
        }
        function.write_bar(28, &1u16.to_le_bytes());
        status(15);
    }

    /// A kernel that another one hands over to by kexec sizes the BARs, then sets the Bus Master Enable bit, and only
    /// then resets the device.
    #[test]
    fn rings_go_on_with_their_own_driver_and_not_with_the_next_one() {
        let Some(slots) = Slots::new() else { return };
        let model = Idle::default();
        let starts = model.starts.clone();
        let function = slots.function_of(model, PCI_WINDOW_START);
        let command = |value: u16| function.write_config(0x04, &value.to_le_bytes());
        let started = || starts.load(Ordering::Relaxed);
        command(6);
        start(&function);
        assert_eq!(started(), 1);
        command(2);
        command(6);
        assert_eq!(started(), 2, "the bit alone was cleared and set");
        command(2);
        command(0);
        function.write_config(BAR0, &[0xff; 4]);
        function.write_config(BAR0, &(PCI_WINDOW_START as u32).to_le_bytes());
        command(2);
        command(6);
        assert_eq!(started(), 2, "the rings of the kernel before");
        function.write_bar(20, &[0]);
        start(&function);
        assert_eq!(started(), 3, "after a reset they are its own");
    }

    #[test]
    fn what_happens_while_it_is_no_bus_master_stays_pending() {
        let Some(slots) = Slots::new() else { return };
        let function = slots.function(PCI_WINDOW_START);
        let command = |value: u16| function.write_config(0x04, &value.to_le_bytes());
        let is_pending = || {
            let mut bits = [0];
            function.read_bar(MSIX_PENDING_OFFSET, &mut bits);
            bits[0] & 1 != 0
        };
        // MSI-X on, vector 0 unmasked and that of configuration changes.
        function.write_config(function.msix_capability + 2, &0x8000u16.to_le_bytes());
        for (at, word) in [(0, 0xfee0_0000u32), (4, 0), (8, 0x40), (12, 0)] {
            function.write_bar(MSIX_TABLE_OFFSET + at, &word.to_le_bytes());
        }
        function.write_bar(16, &0u16.to_le_bytes());
        let interrupts = lock(&function.transport).device().interrupts().clone();
        interrupts.config_changed();
        assert!(is_pending(), "a function begins without bus mastering");
        command(6);
        assert!(!is_pending(), "it is delivered");
        interrupts.config_changed();
        assert!(!is_pending());
        command(2);
        interrupts.config_changed();
        assert!(is_pending());
        command(6);
        assert!(!is_pending());
    }

    #[test]
    fn a_bar_that_was_put_upon_another_leaves_nothing_behind() {
        let Some(slots) = Slots::new() else { return };
        let vm = &slots.vm;
        let [first, second, third] = [0, 1, 2].map(|place| PCI_WINDOW_START + place * BAR_BYTES);
        let (one, other) = (slots.function(first), slots.function(second));
        let move_to = |function: &VirtioFunction, bar: u64| function.write_config(BAR0, &(bar as u32).to_le_bytes());
        let registered =
            |bar: u64| (0..QUEUES).filter(|queue| is_registered(vm.fd(), bar + notify_offset(*queue))).count();
        let all = |bar: u64| registered(bar) == QUEUES;
        let none = |bar: u64| registered(bar) == 0;
        assert!(all(first) && all(second));

        move_to(&other, first);
        assert!(all(first) && none(second), "the other's events have all left its old place");
        move_to(&one, second);
        assert!(all(second), "the one's events are all at its new place");
        move_to(&other, third);
        assert!(none(first) && all(second) && all(third));
        other.write_config(0x04, &[0, 0]);
        assert!(none(third), "a function that does not answer has no events");
    }
}
